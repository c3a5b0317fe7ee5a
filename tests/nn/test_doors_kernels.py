"""Whatever reaches the kernels from Python is made tidy or refused, in one line."""

from __future__ import annotations

import numpy as np
import pytest
from awkward import AWKWARD, REFUSED, refuses
from checks import assert_same_bits

from refimpl.kernels import activation, conv, linear, loss, norm, pool, vector


def kernel_calls():
    """Of every function Python may call, its arguments; those it writes are zeros, those it reads are not."""
    rng = np.random.default_rng(0)

    def reals(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def new(*shape, dtype=np.float32):
        return np.zeros(shape, dtype)

    maps, on, image, small = reals(4, 3, 5), rng.random((4, 3)) < 0.5, reals(4, 3, 6, 4), reals(4, 3, 3, 2)
    where, window, none, double = (
        rng.integers(0, 4, (4, 3, 3, 2)).astype(np.int32),
        (2, 2),
        (0, 0),
        np.float64,
    )
    calls = {
        pool.max_forward: (image, window, window, none, on, new(4, 3, 3, 2), new(4, 3, 3, 2, dtype=np.int32)),
        pool.max_backward: (small, where, window, window, none, on, new(4, 3, 6, 4)),
        pool.average_forward: (image, window, window, none, on, new(4, 3, 3, 2)),
        pool.average_backward: (small, window, window, none, on, new(4, 3, 6, 4)),
        activation.sigmoid_scaled: (reals(4, 3), 0.5, new(4, 3), new(4, 3)),
        activation.scale_channels: (maps, reals(4, 3), new(4, 3, 5)),
        activation.channel_products: (maps, reals(4, 3, 5), new(4, 3)),
        activation.channel_means: (maps, on, new(4, 3)),
        activation.share_out: (reals(4, 3), on, new(4, 3, 5)),
        norm.batch_norm_forward: (
            *(maps, reals(3), reals(3), 1e-5, 0.5),
            *(new(3, dtype=double), new(3, dtype=double), new(4, 3, 5)),
        ),
        norm.batch_norm_backward: (
            *(maps, reals(4, 3, 5), rng.random(3), rng.random(3), reals(3), reals(3), 0.5),
            *(new(3), new(3), new(4, 3, 5)),
        ),
        norm.group_norm_forward: (
            maps, reals(3), reals(3), 1e-5, new(4, 3, 5), new(4, 3, dtype=double), new(4, 3, 5)
        ),
        norm.group_norm_backward: (
            maps, reals(4, 3, 5), rng.random((4, 3)), reals(3), False, new(3), new(3), new(4, 3, 5)
        ),
        norm.frozen_norm_forward: (
            maps, reals(3), reals(3), reals(3), reals(3) ** 2, 1e-5, on, new(4, 3, 5)
        ),
        norm.frozen_norm_backward: (
            *(maps, reals(4, 3, 5), reals(3), reals(3), reals(3) ** 2, 1e-5, on, False),
            *(new(3), new(3), new(4, 3, 5)),
        ),
        activation.leaky_forward: (maps, 0.1, on, new(4, 3, 5)),
        activation.leaky_backward: (maps, reals(4, 3, 5), 0.1, on, new(4, 3, 5)),
        loss.softmax_cross_entropy: (reals(4, 3), np.array([0, 2, 1, 1]), new(4, 3)),
        vector.squared_norm: (reals(9),),
        vector.norm: (reals(9),),
        vector.local_step: (new(9), reals(9), reals(9), np.float32(0.1), np.float32(0.5)),
        vector.local_residual: (reals(9), reals(9), reals(9), np.float32(0.5)),
        vector.add_weighted: (reals(2, 9), np.array([0.5, 2.0]), new(9, dtype=np.float64)),
        vector.mean_of_rows: (reals(4, 9), rng.random(4), new(9)),
        vector.partial_shuffles: (
            np.array([[3, 0], [1, 2]]), new(4, dtype=np.int64), new(2, 2, dtype=np.int64)
        ),
        conv.forward: (image, reals(5, 3, 3, 3), reals(5), (1, 1), (1, 1), on),
        conv.input_grad: (reals(4, 5, 6, 4), reals(5, 3, 3, 3), (1, 1), (1, 1), (6, 4), None, on),
        conv.weight_grad: (image, reals(4, 5, 6, 4), (1, 1), (1, 1), new(5, 3, 3, 3), new(5), on),
        linear.forward: (reals(4, 6), reals(5, 6), reals(5), on),
        linear.input_grad: (reals(4, 5), reals(5, 6), None, on),
        linear.weight_grad: (reals(4, 6), reals(4, 5), new(5, 6), new(5), on),
    }  # fmt: skip
    for name in ("relu", "softplus", "tanh"):
        calls[getattr(activation, f"{name}_forward")] = (maps, on, new(4, 3, 5))
        calls[getattr(activation, f"{name}_backward")] = (maps, reals(4, 3, 5), on, new(4, 3, 5))
    return calls


def name_of(function):
    return getattr(function, "who", f"{function.__module__}.{function.__name__}")


CALLS = {name_of(function): (function, args) for function, args in kernel_calls().items()}


def is_written(array):
    return isinstance(array, np.ndarray) and array.size > 0 and not array.any()


def run(function, args):
    """The result, and the written arrays; the arguments stay as they are."""
    own = [array.copy() if is_written(array) else array for array in args]
    result = function(*own)
    return [result, *(array for array, given in zip(own, args, strict=True) if is_written(given))]


@pytest.mark.parametrize("form", AWKWARD)
@pytest.mark.parametrize("name", CALLS)
def test_kernels_read_arrays_however_they_lie(name, form):
    function, args = CALLS[name]
    expected = run(function, args)
    for at, array in enumerate(args):
        if isinstance(array, np.ndarray) and not is_written(array):
            found = run(function, (*args[:at], AWKWARD[form](array), *args[at + 1 :]))
            for got, wanted in zip(found, expected, strict=True):
                assert_same_bits(np.asarray(got), np.asarray(wanted), f"argument {at}")


def refused_forms(array):
    """Names of `REFUSED` that do not merely convert: labels, places and float64 weights may be narrower."""
    if array.dtype == np.bool_:
        return ["an axis less", "an axis more", "no axes", "whole numbers"]
    forms = set(REFUSED)
    if array.dtype == np.int64 or (array.dtype == np.int32 and not is_written(array)):
        forms.remove("whole numbers")
    if array.dtype == np.float64 and not is_written(array):
        forms -= {"whole numbers", "half precision"}
    return sorted(forms)


@pytest.mark.parametrize("name", CALLS)
def test_kernels_refuse_wrong_arrays_in_one_line(name):
    function, args = CALLS[name]

    def refuses_at(at, array):
        refuses(lambda: function(*(*args[:at], array, *args[at + 1 :])))

    arrays = {at: array for at, array in enumerate(args) if isinstance(array, np.ndarray)}
    for at, array in arrays.items():
        for form in refused_forms(array):
            refuses_at(at, REFUSED[form](array))
        if len(arrays) > 1:
            refuses_at(at, array[:-1].copy())
        if is_written(array):
            for form in ("strided", "read-only", "big-endian", "misaligned"):
                refuses_at(at, AWKWARD[form](array))
            refuses_at(at, array.tolist())


@pytest.mark.parametrize(
    "call",
    [
        lambda: loss.softmax_cross_entropy(np.ones((2, 3)), np.array([0, 3]), np.ones((2, 3))),
        lambda: loss.softmax_cross_entropy(np.ones((2, 3)), np.array([0, -1]), np.ones((2, 3))),
        lambda: loss.softmax_cross_entropy(np.ones((2, 3)), np.array([0.0, 1.0]), np.ones((2, 3))),
        lambda: loss.softmax_cross_entropy(np.ones((0, 3)), np.ones(0, int), np.ones((0, 3))),
        lambda: pool.max_forward(
            np.ones((1, 1, 4, 4)),
            (3, 3),
            (1, 1),
            (0, 0),
            None,
            np.ones((1, 1, 3, 3)),
            np.zeros((1, 1, 3, 3), np.int32),
        ),
        lambda: pool.max_backward(
            np.ones((1, 1, 2, 2)),
            np.full((1, 1, 2, 2), 4),
            (2, 2),
            (2, 2),
            (0, 0),
            None,
            np.ones((1, 1, 4, 4)),
        ),
        lambda: pool.max_backward(  # the first place of the first window is on the padding
            np.ones((1, 1, 2, 2)),
            np.zeros((1, 1, 2, 2), int),
            (3, 3),
            (2, 2),
            (1, 1),
            None,
            np.ones((1, 1, 4, 4)),
        ),
        lambda: vector.partial_shuffles(np.array([[0, 3]]), np.arange(4), np.zeros((1, 2), int)),
        lambda: vector.partial_shuffles(np.array([[-1]]), np.arange(4), np.zeros((1, 1), int)),
        lambda: conv.forward(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), np.ones(1), (1,), (0, 0)),
    ],
)
def test_kernels_refuse_numbers_that_lead_outside(call):
    for _ in range(2):  # an entry checks such numbers each time, however familiar the shapes are
        refuses(call)
