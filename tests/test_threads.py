"""Pieces of work on several threads: in order where order matters, and never waiting without end."""

from __future__ import annotations

import threading
import time
import weakref

import numpy as np
import pytest

from refimpl.threads import in_turn, share

THREADS = [1, 2, 3, 9]


@pytest.mark.parametrize("threads", THREADS)
def test_results_and_what_follows_are_in_order(threads):
    order, where = [], {}

    def work(piece):
        where[piece] = threading.get_ident()
        time.sleep(0.002 * (7 - piece) % 0.005)  # later pieces are often done sooner
        return piece * piece

    def then(piece, result):
        assert where[piece] == threading.get_ident()
        order.append((piece, result))

    assert share(work, 7, threads, then) == [0, 1, 4, 9, 16, 25, 36]
    assert order == [(piece, piece * piece) for piece in range(7)]
    assert len(set(where.values())) <= threads


def test_pieces_run_at_the_same_time():
    together = threading.Barrier(3, timeout=30)  # broken unless three threads meet
    share(lambda piece: together.wait(), 3, 3)


@pytest.mark.parametrize("threads", THREADS)
def test_no_thread_holds_more_than_one_result(threads):
    class Result:
        pass

    there, most = weakref.WeakSet(), []

    def work(piece):
        time.sleep(0.001 * (piece % 3))
        there.add(result := Result())
        return result

    in_turn(work, 30, threads, lambda piece, result: most.append(len(there)))
    assert max(most) <= threads
    assert not there


def test_no_pieces_are_no_work():
    assert share(lambda piece: 1 / 0, 0, 4) == []


@pytest.mark.parametrize("threads", THREADS)
def test_the_first_error_is_raised_and_nothing_follows_it(threads):
    begun, followed = [], []

    def work(piece):
        begun.append(piece)
        if piece in (2, 3):
            raise ValueError(f"piece {piece}")

    with pytest.raises(ValueError, match="piece 2"):
        share(work, 100, threads, lambda piece, _: followed.append(piece))
    assert followed == [0, 1]
    assert len(begun) <= 2 + threads


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_in_what_follows_is_raised(threads):
    with pytest.raises(ZeroDivisionError):
        share(lambda piece: piece, 5, threads, lambda piece, _: 1 // (piece - 3))


def test_work_may_share_its_own_pieces():
    def rows(row):
        return share(lambda column: 10 * row + column, 4, 3, lambda *_: time.sleep(0.001))

    assert share(rows, 6, 5) == [[10 * row + column for column in range(4)] for row in range(6)]


@pytest.mark.parametrize("threads", [1, 3])
def test_numpy_treats_faults_as_where_the_work_was_asked_for(threads):
    zero = np.zeros(1)
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        share(lambda piece: 1 / zero if piece else time.sleep(0.01), 3, threads)
