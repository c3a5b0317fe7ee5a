"""Being told when Numba compiles, so that a first run can say why it takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event


class _Listener(event.Listener):
    """Calls `told` with the name of every function whose compilation begins."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self.told = told

    def on_start(self, event: Any) -> None:
        """A compilation begins; loading from the disk cache is none."""
        self.told(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event: Any) -> None:
        """It is done."""


@contextmanager
def watch(told: Callable[[str], None]) -> Iterator[None]:
    """Within the context, call `told(name)` whenever the compilation of a kernel begins."""
    listener = _Listener(told)
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)
