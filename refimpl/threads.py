"""Work in numbered pieces, divided among threads so that results do not depend on how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import lru_cache
from threading import Condition
from typing import TypeVar

T = TypeVar("T")
MOST = 256  # threads besides those that ask


@lru_cache(maxsize=1)
def _others() -> ThreadPoolExecutor:
    """Threads that stay for later work, because each keeps its kernels' memory; idle ones are used first."""
    return ThreadPoolExecutor(MOST)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_others.cache_clear)  # a forked child has no threads


def share(
    work: Callable[[int], T],
    pieces: int,
    threads: int,
    then: Callable[[int, T], None] = lambda piece, result: None,
) -> list[T]:
    """Return [work(0), ..., work(pieces - 1)]; `in_turn` says how they are made and when `then` is called."""
    results: list[T] = []

    def keep(piece: int, result: T) -> None:
        then(piece, result)
        results.append(result)

    in_turn(work, pieces, threads, keep)
    return results


def in_turn(work: Callable[[int], T], pieces: int, threads: int, then: Callable[[int, T], None]) -> None:
    """Do work(0), ..., work(pieces - 1) on this thread and up to `threads` - 1 others, and keep no result.

    Pieces begin in order. On the thread of its piece, `then(piece, result)` follows when that of the piece
    before has returned: what it adds up has a fixed order, and no thread holds more than one result. `work`
    may itself share its pieces. Raises the error of the first piece that has one; pieces that have not begun
    by then are left out.
    """
    if min(threads, pieces) <= 1:  # a small piece takes less time than what follows here
        for piece in range(pieces):
            then(piece, work(piece))
        return
    left, turn, errors = iter(range(pieces)), _Turn(), dict[int, BaseException]()

    def follow(piece: int, result: T) -> None:
        turn.wait(piece)
        if not errors:
            then(piece, result)

    def take() -> None:
        for piece in left:  # the next one that nobody has taken
            try:
                follow(piece, work(piece))
            except BaseException as error:
                errors[piece] = error
                list(left)  # nobody begins another piece
            finally:
                turn.end(piece)

    others = [_others().submit(copy_context().run, take) for _ in range(min(threads, pieces) - 1)]
    try:
        take()
    finally:  # an interruption may come at any point
        list(left)
        wait([other for other in others if not other.cancel()])
    if errors:
        raise errors[min(errors)]


class _Turn:
    """The piece whose turn it is: that after the last one that has ended."""

    def __init__(self) -> None:
        self._piece = 0
        self._moved = Condition()

    def wait(self, piece: int) -> None:
        """Return when the pieces before have ended, or one behind has ended with an error."""
        with self._moved:
            self._moved.wait_for(lambda: self._piece >= piece)

    def end(self, piece: int) -> None:
        """Say that a piece has ended."""
        with self._moved:
            self._piece = max(self._piece, piece + 1)
            self._moved.notify_all()
