"""Reports when Numba compiles, so that a first run can say why it takes long; and shares the work.

Another process compiles a part into the same folder on the disk, and each loads what the other has compiled.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from multiprocessing import parent_process
from typing import Any

from numba.core import event

from refimpl.files.environment import another_python, cores
from refimpl.kernels import jit
from refimpl.kernels.jit import USE_TILE

_listeners: list[Callable[[str], None]] = []  # callbacks of the `watch` contexts that are open


class _Listener(event.Listener):
    """Calls `told` with the name of every function whose compilation begins."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self.told = told

    def on_start(self, event: Any) -> None:
        """Report that a compilation begins; Numba sends no such event when it loads code from the disk."""
        self.told(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event: Any) -> None:
        """Report nothing when a compilation ends."""


@contextmanager
def watch(told: Callable[[str], None]) -> Iterator[None]:
    """Within the context, call `told(name)` whenever the compilation of a kernel begins.

    What a process started by `beside` compiles is reported when that process has ended.
    """
    listener = _Listener(told)
    event.register("numba:compile", listener)
    _listeners.append(told)
    try:
        yield
    finally:
        _listeners.remove(told)
        event.unregister("numba:compile", listener)


def may_share(threads: int | None) -> bool:
    """Whether another process may help: not on one core, not in a worker, not where code cannot be kept."""
    python = bool(sys.executable) and not hasattr(sys, "frozen")  # a frozen program would start itself again
    alone = parent_process() is None
    return USE_TILE and python and alone and min(cores(), threads or cores()) > 1 and jit.keeps_code()


def is_kept(compiled: Any, **dtypes: str) -> bool:
    """Whether the disk has code of a kernel for named arguments that are arrays of these dtypes."""
    names = list(inspect.signature(compiled.py_func).parameters)
    wanted = {names.index(name): dtype for name, dtype in dtypes.items()}
    return any(
        all(str(types[at].dtype) == dtype for at, dtype in wanted.items())
        for types in (*compiled.signatures, *jit.kept_types(compiled))
    )


@contextmanager
def beside(module: str, *arguments: str) -> Iterator[None]:
    """Run `python -m module arguments` in another process during the context, and wait for it at the end.

    If the process cannot start, or fails, nothing happens. If an exception leaves the context, it is killed.
    """
    command, environment = another_python(module, *arguments)
    environment["NUMBA_CACHE_DIR"] = str(jit.cache_folder().parent)
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        yield
        return
    try:
        yield
        names, _ = process.communicate()
    except BaseException:
        process.kill()
        process.communicate()
        raise
    for name in names.split():
        for told in _listeners:
            told(name)


def tell_names(work: Callable[[], None]) -> None:
    """Do the work of a process that runs `beside` another, and print the name of each kernel it compiles."""
    out = sys.stdout
    with redirect_stdout(sys.stderr), watch(lambda name: print(name, file=out)):
        work()
