"""Fully connected layer: forward, input gradient, weight gradient, with per-sample masks.

A mask over inputs may be coarser than the features: G columns over I features stand for G groups of
I/G consecutive features, which is what a channel mask becomes when an image is flattened. The compiled
kernel (`tiled_linear` or `plain`) is chosen as in `conv`.

Wrong shapes, dtypes or masks raise `InputError`. Source: mathematics.md §2.1 and §2.3b.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from refimpl.kernels import plain, tiled_linear
from refimpl.kernels.arrays import (
    check_axes,
    check_shape,
    check_target,
    tidy_floats,
    tidy_group_mask,
    tidy_mask,
)
from refimpl.kernels.jit import USE_TILE
from refimpl.kernels.workspace import result_array, scratch

Array = np.ndarray
Mask = Array | None
linear_scratch = lru_cache(maxsize=1024)(tiled_linear.scratch)  # as in `conv`


def forward(
    x: Array, weight: Array, bias: Array, reads: Mask = None, writes: Mask = None, out: Array | None = None
) -> Array:
    """x (N,I) weight (O,I)^T + bias (O,) -> (N,O), written to `out` if given.

    `reads` (N,G): groups of features that are not zero; `writes` (N,O): outputs wanted, the others are zero.
    """
    who = "linear.forward"
    x, weight, bias = tidy_floats(who, x=x, weight=weight, bias=bias)
    check_axes(who, "x", x, "NI")
    check_axes(who, "weight", weight, "OI")
    samples, (outputs, features) = x.shape[0], weight.shape
    check_shape(who, "x", x, (samples, features))
    check_shape(who, "bias", bias, (outputs,))
    needs = linear_scratch(samples, features, outputs)
    y = result_array(who, (samples, outputs), x.dtype, out)
    reads = tidy_group_mask(who, "reads", reads, samples, features)
    writes = tidy_mask(who, "writes", writes, samples, outputs)
    if USE_TILE:
        tiled_linear.forward(x, weight, bias, reads, writes, *scratch(x.dtype, *needs), y)
    else:
        plain.linear_forward(x, weight, bias, reads, writes, y)
    return y


def input_grad(
    dy: Array, weight: Array, dy_mask: Mask = None, dx_mask: Mask = None, out: Array | None = None
) -> Array:
    """dy (N,O) weight (O,I) -> dx (N,I); `dy_mask` (N,O), `dx_mask` (N,G): features wanted."""
    who = "linear.input_grad"
    dy, weight = tidy_floats(who, dy=dy, weight=weight)
    check_axes(who, "dy", dy, "NO")
    check_axes(who, "weight", weight, "OI")
    samples, (outputs, features) = dy.shape[0], weight.shape
    check_shape(who, "dy", dy, (samples, outputs))
    needs = linear_scratch(samples, features, outputs)
    dx = result_array(who, (samples, features), dy.dtype, out)
    dy_mask = tidy_mask(who, "dy_mask", dy_mask, samples, outputs)
    dx_mask = tidy_group_mask(who, "dx_mask", dx_mask, samples, features)
    if USE_TILE:
        tiled_linear.input_grad(dy, weight, dy_mask, dx_mask, *scratch(dy.dtype, *needs), dx)
    else:
        plain.linear_input_grad(dy, weight, dy_mask, dx_mask, dx)
    return dx


def weight_grad(
    x: Array, dy: Array, dweight: Array, dbias: Array, x_mask: Mask = None, dy_mask: Mask = None
) -> None:
    """Write dweight (O,I) = dy^T x and dbias (O,), summed over the batch in sample order."""
    who = "linear.weight_grad"
    x, dy = tidy_floats(who, x=x, dy=dy)
    check_axes(who, "x", x, "NI")
    check_axes(who, "dy", dy, "NO")
    (samples, features), outputs = x.shape, dy.shape[1]
    check_shape(who, "dy", dy, (samples, outputs))
    needs = linear_scratch(samples, features, outputs)
    check_target(who, "dweight", dweight, x.dtype, (outputs, features))
    check_target(who, "dbias", dbias, x.dtype, (outputs,))
    x_mask = tidy_group_mask(who, "x_mask", x_mask, samples, features)
    dy_mask = tidy_mask(who, "dy_mask", dy_mask, samples, outputs)
    if USE_TILE:
        memory = scratch(x.dtype, *needs)
        tiled_linear.weight_grad(x, dy, x_mask, dy_mask, False, *memory, dweight, dbias)
    else:
        plain.linear_weight_grad(x, dy, x_mask, dy_mask, dweight, dbias)
