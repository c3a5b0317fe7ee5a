"""Working memory that is kept between calls, and batches that the kernels' tables cannot hold."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.kernels import conv, linear, tiled_conv, tiled_linear, tiled_weight_grad, workspace
from refimpl.nn import zoo
from refimpl.nn.context import Gating
from refimpl.nn.lowering import lower
from refimpl.nn.predict import predict
from refimpl.rng import SeedTree

FLOAT = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def empty_workspaces():
    workspace.release_workspaces()
    yield
    workspace.release_workspaces()


def kept_bytes():
    return sum(array.nbytes for memory in list(workspace._memories) for array in memory.arrays.values())


def test_memory_is_kept_grown_and_given_back():
    first = workspace.scratch_array("floats", FLOAT, 100)
    assert workspace.scratch_array("floats", FLOAT, 60).ctypes.data == first.ctypes.data
    assert first.ctypes.data % workspace.CACHE_LINE == 0
    workspace.scratch_array("floats", FLOAT, 200)
    assert kept_bytes() == 800
    workspace.release_workspaces()
    assert kept_bytes() == 0
    first[:] = 1  # who still uses it may do so


def test_memory_that_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(workspace, "POOL_BYTES", 1000)
    assert workspace.scratch_array("floats", FLOAT, 251).size == 251
    assert kept_bytes() == 0  # too much by itself
    for use, size, kept in (
        ("a", 100, 400),
        ("b", 100, 800),
        ("a", 100, 800),
        ("c", 150, 1000),
        ("c", 250, 1000),
    ):
        assert workspace.scratch_array(use, FLOAT, size).size == size
        assert kept_bytes() == kept
        if use == "c" and size == 150:  # b was unused for longer than a
            assert {name for memory in workspace._memories for name, _ in memory.arrays} == {"a", "c"}
    workspace.release("d", workspace.acquire("d", FLOAT, 1000))
    assert kept_bytes() == 1000


def test_memory_that_is_taken_is_nobody_elses():
    workspace.release("values", workspace.acquire("values", FLOAT, 50))
    acquire = workspace.acquire
    mine = acquire("values", FLOAT, 40)
    others = workspace.scratch_array("values", FLOAT, 40), acquire("values", FLOAT, 40)
    others += (acquire("values", FLOAT, 40),)
    assert not any(np.shares_memory(mine, other) for other in others)
    assert mine.size == 50


def test_memory_of_other_threads_is_given_back_too():
    leased, done = threading.Event(), threading.Event()
    gc.collect()
    before = max(1, len(workspace._memories))  # this thread's, and those of other threads that still run

    def work():
        workspace.scratch_array("floats", FLOAT, 1000)
        leased.set()
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    leased.wait()
    assert kept_bytes() == 4000
    workspace.release_workspaces()
    assert kept_bytes() == 0
    done.set()
    thread.join()
    gc.collect()
    assert len(workspace._memories) <= before  # that of a thread that has ended is gone


def test_results_do_not_depend_on_memory_given_back():
    network = zoo.digits()
    w = network.layout.initialise(SeedTree(0), "float32")
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype("float32")
    before = predict(network, w, x).logits.tobytes()
    assert kept_bytes() > 0
    workspace.release_workspaces()
    assert predict(network, w, x).logits.tobytes() == before


# Tables hold places in 32 bits


def huge(*shape):
    """An array of any size in four bytes of memory."""
    return np.broadcast_to(np.float32(0), shape)


@pytest.mark.parametrize(
    "call",
    [
        lambda: linear.forward(huge(2**16, 2**15), huge(1, 2**15), huge(1)),
        lambda: linear.forward(huge(2**16, 1), huge(2**15, 1), huge(2**15)),
        lambda: linear.input_grad(huge(2**16, 1), huge(1, 2**15)),
        lambda: linear.weight_grad(huge(2**16, 2**15), huge(2**16, 1), huge(1, 2**15), huge(1)),
        lambda: conv.forward(huge(1, 2**15, 2**8, 2**8), huge(1, 2**15, 1, 1), huge(1), (1, 1), (0, 0)),
        lambda: conv.forward(huge(1, 1, 2**16, 2**16), huge(1, 1, 1, 1), huge(1), (8, 8), (0, 0)),
        lambda: conv.input_grad(
            huge(1, 2**15, 2**8, 2**8), huge(2**15, 1, 1, 1), (1, 1), (0, 0), (2**8, 2**8)
        ),
        lambda: conv.weight_grad(
            huge(1, 2**15, 2**8, 2**8), huge(1, 1, 2**8, 2**8), (1, 1), (0, 0), huge(1, 2**15, 1, 1), huge(1)
        ),
    ],
)
def test_what_the_tables_cannot_hold_is_refused_before_anything_is_read(call):
    with pytest.raises(InputError, match=r"at most 2147483647 numbers, got \d+; split the batch") as error:
        call()
    assert "\n" not in str(error.value)
    assert kept_bytes() == 0


def test_the_largest_place_that_fits():
    sizes = (2**16 - 1, 2**15, 1)
    assert tiled_linear.scratch(*sizes)[0] > 2**31 - 2**16
    with pytest.raises(InputError, match=r"linear: expected x of at most 2147483647 numbers, got 2147483648"):
        tiled_linear.scratch(2**16, *sizes[1:])
    square = (2**15, 2**15)
    moves = ((1, 1), (0, 0), (1, 1))
    tiled_conv.convolve_scratch((1, *square), (1, *square), (1, 1), moves, False, 4)
    with pytest.raises(InputError, match="copies"):
        tiled_conv.convolve_scratch((2, *square), (1, *square), (1, 1), moves, False, 4)
    tiled_weight_grad.weight_grad_scratch(1, 1, (1, 1), (1, 1), (0, 0), square, square, 4)
    with pytest.raises(InputError, match="copies"):
        tiled_weight_grad.weight_grad_scratch(2, 1, (1, 1), (1, 1), (0, 0), square, square, 4)


def test_programs_refuse_such_batches_too():
    program = lower(zoo.mlp((2**10, 8, 4)), Gating(), ("theta",))
    if program is None:
        pytest.skip("REFIMPL_KERNELS=plain: no programs")
    with pytest.raises(InputError, match="linear: expected x of at most"):
        program.workspace(2**21, "float32")
    assert kept_bytes() == 0
