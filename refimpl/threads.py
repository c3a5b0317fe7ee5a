"""Work in numbered pieces, divided among threads so that results do not depend on how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import lru_cache
from threading import Event
from typing import TypeVar

T = TypeVar("T")
MOST = 256  # threads besides those that ask


@lru_cache(maxsize=1)
def _others() -> ThreadPoolExecutor:
    """Threads that stay for later work, because each keeps its kernels' memory; idle ones are used first."""
    return ThreadPoolExecutor(MOST)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_others.cache_clear)  # a forked child has no threads


def _nothing(piece: int, result: object) -> None:
    """What follows a piece unless `share` is told otherwise."""


def _one(work: Callable[[int], T], piece: int, then: Callable[[int, T], None]) -> T:
    """The result of a piece, after what follows it."""
    result = work(piece)
    then(piece, result)
    return result


def share(
    work: Callable[[int], T], pieces: int, threads: int, then: Callable[[int, T], None] = _nothing
) -> list[T]:
    """[work(0), ..., work(pieces - 1)] on this thread and up to `threads` - 1 others.

    Pieces begin in order. On the thread of its piece, `then(piece, result)` follows when that of the piece
    before has returned: what it adds up has a fixed order. `work` may itself share its pieces. Raises the
    error of the first piece that has one; pieces that have not begun by then are left out.
    """
    if min(threads, pieces) <= 1:  # a small piece takes less time than what follows here
        return [_one(work, piece, then) for piece in range(pieces)]
    left, results, errors = iter(range(pieces)), dict[int, T](), dict[int, BaseException]()
    done = [Event() for _ in range(pieces)]

    def take() -> None:
        for piece in left:  # the next one that nobody has taken
            try:
                results[piece] = work(piece)
                if piece:
                    done[piece - 1].wait()
                if not errors:
                    then(piece, results[piece])
            except BaseException as error:
                errors[piece] = error
                list(left)  # nobody begins another piece
            finally:
                done[piece].set()

    others = [_others().submit(copy_context().run, take) for _ in range(min(threads, pieces) - 1)]
    try:
        take()
    finally:  # an interruption may come at any point
        list(left)
        wait([other for other in others if not other.cancel()])
    if errors:
        raise errors[min(errors)]
    return [results[piece] for piece in range(pieces)]
