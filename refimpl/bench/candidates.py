"""Programs that compute a case; every installation has two of them, this package and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refimpl.bench.cases import Case, LayerData
from refimpl.bench.oracle import Arrays, Reference, windows
from refimpl.kernels import conv, linear

OURS = "refimpl"
NUMPY = "numpy + BLAS"


class Candidate(NamedTuple):
    """A program to check and to time.

    run: the function that is timed; arrays: converts its result to arrays in PyTorch's layout; skips: whether
    closed channels are left out; own: the right result, if the program computes something else than the case
    (a network without gates).
    """

    name: str
    run: Callable[[], Any]
    arrays: Callable[[Any], Arrays]
    skips: bool = False
    own: Reference | None = None


Maker = Callable[[Case, LayerData], Candidate | None]  # None: this candidate has no such pass


def ours(case: Case, data: LayerData) -> Candidate:
    """This package's kernels: closed channels are skipped."""
    return (_our_linear if case.geometry.linear else _our_conv)(case, data)


def _our_conv(case: Case, data: LayerData) -> Candidate:
    x, weight, bias, dy, mask = data
    step, pad = (1, 1), (case.geometry.pad, case.geometry.pad)
    if case.pass_ == "forward":
        return Candidate(
            OURS,
            lambda: conv.forward(x, weight, bias, step, pad, None, mask),
            lambda y: {"y": y},
            skips=True,
        )
    if case.pass_ == "input_grad":
        size = (case.geometry.size, case.geometry.size)
        return Candidate(
            OURS,
            lambda: conv.input_grad(dy, weight, step, pad, size, mask),
            lambda dx: {"dx": dx},
            skips=True,
        )
    dw, db = np.empty_like(weight), np.empty_like(bias)
    return Candidate(
        OURS,
        lambda: conv.weight_grad(x, dy, step, pad, dw, db, None, mask),
        lambda _: {"dw": dw, "db": db},
        skips=True,
    )


def _our_linear(case: Case, data: LayerData) -> Candidate:
    x, weight, bias, dy, mask = data
    rows, matrix, drows = (np.ascontiguousarray(array.reshape(array.shape[:2])) for array in (x, weight, dy))
    if case.pass_ == "forward":
        return Candidate(
            OURS,
            lambda: linear.forward(rows, matrix, bias, None, mask),
            lambda y: {"y": y[:, :, None, None]},
            skips=True,
        )
    if case.pass_ == "input_grad":
        return Candidate(
            OURS,
            lambda: linear.input_grad(drows, matrix, mask),
            lambda dx: {"dx": dx[:, :, None, None]},
            skips=True,
        )
    dw, db = np.empty_like(matrix), np.empty_like(bias)
    return Candidate(
        OURS,
        lambda: linear.weight_grad(rows, drows, dw, db, None, mask),
        lambda _: {"dw": dw[:, :, None, None], "db": db},
        skips=True,
    )


def numpy_blas(case: Case, data: LayerData) -> Candidate:
    """Matrix products by NumPy's BLAS (for a convolution of unfolded windows), multiplied by the mask."""
    return (_numpy_linear if case.geometry.linear else _numpy_conv)(case, data)


def _numpy_linear(case: Case, data: LayerData) -> Candidate:
    mask = data.mask
    gate = None if mask is None else mask.astype(case.dtype)
    x, weight, dy = (array.reshape(array.shape[:2]) for array in (data.x, data.weight, data.dy))

    def forward() -> np.ndarray:
        y = x @ weight.T + data.bias
        return y if gate is None else y * gate

    def input_grad() -> np.ndarray:
        return (dy if gate is None else dy * gate) @ weight

    def weight_grad() -> tuple[np.ndarray, np.ndarray]:
        masked = dy if gate is None else dy * gate
        return masked.T @ x, masked.sum(axis=0)

    return _numpy_candidate(case, data, forward, input_grad, weight_grad)


def _numpy_conv(case: Case, data: LayerData) -> Candidate:
    x, weight, bias, dy, mask = data
    g = case.geometry
    gate = None if mask is None else mask[:, :, None].astype(case.dtype)
    matrix, pixels = weight.reshape(g.filters, -1), g.result_size**2
    columns = np.empty((case.batch, matrix.shape[1], pixels), dtype=case.dtype)
    shaped = columns.reshape(case.batch, g.channels, g.kernel, g.kernel, g.result_size, g.result_size)
    flat_dy = dy.reshape(case.batch, g.filters, pixels)

    def forward() -> np.ndarray:
        np.copyto(shaped, windows(x, g.kernel, g.pad))
        y = np.matmul(matrix, columns)
        y += bias[:, None]
        return y if gate is None else np.multiply(y, gate, out=y)

    def input_grad() -> np.ndarray:
        np.matmul(matrix.T, flat_dy if gate is None else flat_dy * gate, out=columns)
        edge, last = g.size + 2 * g.pad, g.result_size
        padded = np.zeros((case.batch, g.channels, edge, edge), dtype=case.dtype)
        for i in range(g.kernel):
            for j in range(g.kernel):
                padded[:, :, i : i + last, j : j + last] += shaped[:, :, i, j]
        return padded[:, :, g.pad : g.pad + g.size, g.pad : g.pad + g.size]

    def weight_grad() -> tuple[np.ndarray, np.ndarray]:
        np.copyto(shaped, windows(x, g.kernel, g.pad))
        masked = flat_dy if gate is None else flat_dy * gate
        dw = np.zeros_like(matrix)
        for one, part in zip(masked, columns, strict=True):
            dw += one @ part.T
        return dw, masked.sum(axis=(0, 2))

    return _numpy_candidate(case, data, forward, input_grad, weight_grad)


def _numpy_candidate(
    case: Case,
    data: LayerData,
    forward: Callable[[], np.ndarray],
    input_grad: Callable[[], np.ndarray],
    weight_grad: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> Candidate:
    """The candidate of the case's pass; flat results are given the shapes of the data."""
    if case.pass_ == "forward":
        return Candidate(NUMPY, forward, lambda y: {"y": y.reshape(data.dy.shape)})
    if case.pass_ == "input_grad":
        return Candidate(NUMPY, input_grad, lambda dx: {"dx": dx.reshape(data.x.shape)})
    return Candidate(NUMPY, weight_grad, lambda d: {"dw": d[0].reshape(data.weight.shape), "db": d[1]})


INSTALLED: tuple[Maker, ...] = (ours, numpy_blas)
