"""Progress of work that may compile kernels first, and the notice that says so."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from refimpl.cli.progress import Progress, Talk, duration

EVERY = 20  # functions compiled between two plain lines of progress
WARM_UP = 227  # about how many functions a warm-up in one floating-point type compiles with an empty cache
SECOND = 165  # about how many a warm-up in the other type adds


@contextmanager
def notice(progress: Progress, total: int | None = None) -> Iterator[list[str]]:
    """Show within the block that kernels are being compiled, if they are; yields the names so far.

    total: how many there will be if the cache on disk is empty; then the time left is shown as well.
    """
    from refimpl.kernels import compiling, jit

    names: list[str] = []
    kept = any(jit.cache_folder().glob("*/*.nb[ic]"))
    first = time.monotonic()

    def told(name: str) -> None:
        nonlocal first
        names.append(name)
        if len(names) == 1:
            first = time.monotonic()
            progress.say("compiling kernels for this machine, once; this takes about a minute")
        elif len(names) % EVERY == 0:
            expected = None if kept else total
            progress.say(f"compiling kernels: {_so_far(len(names), expected, time.monotonic() - first)}")

    with compiling.watch(told):
        yield names


@contextmanager
def working(steps: int, talk: Talk, compiled: int | None = None) -> Iterator[Progress]:
    """Progress of so many steps, with the `notice`, whose `total` is `compiled`."""
    with Progress(steps, talk) as progress, notice(progress, compiled):
        yield progress


def _so_far(done: int, total: int | None, seconds: float) -> str:
    """How many functions are compiled after so many seconds, and of how many with the time left, if known."""
    if total is None or done > total:
        return f"{done} functions so far"
    rate = done / max(seconds, 1e-3)  # some clocks are coarse and may have shown no time yet
    return f"{done} of about {total} functions  {rate:.3g}/s  {duration((total - done) / rate)} left"
