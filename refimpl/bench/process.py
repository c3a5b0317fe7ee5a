"""Run measurements in a child process that is started with the number of threads its libraries may use.

BLAS and OpenMP libraries read their thread count when they are loaded; some (XLA) only look at the cores
that the process may run on. So the child gets both, and sends its results to the parent as JSON lines.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from refimpl.errors import InputError, RefimplError
from refimpl.files.environment import another_python, cores

Event = tuple[str, Any]  # kind, value

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def pin(threads: int) -> None:
    """Confine this process to its last `threads` cores, where the system can; before libraries load."""
    if threads > cores():
        raise InputError(f"bench: {threads} threads on {cores()} cores measure nothing; use fewer")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def emit(events: Iterable[Event]) -> None:
    """In the child: print events as JSON lines on stdout."""
    for event in events:
        print(json.dumps(event), flush=True)


def listen(module: str, arguments: Sequence[str], threads: int) -> Iterator[Event]:
    """In the parent: run `python -m module --threads N arguments` and yield its events as they come.

    Raises `RefimplError` with the last line of the child's error output if the child fails.
    """
    command, environment = another_python(module, "--threads", str(threads), *arguments)
    environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                kind, value = json.loads(line)
                yield kind, value
        except BaseException:
            child.terminate()
            raise
        if child.wait() != 0:
            errors.seek(0)
            complaint = errors.read().strip().splitlines() or [f"exit code {child.returncode}"]
            raise RefimplError(f"bench: measuring failed: {complaint[-1]}")
