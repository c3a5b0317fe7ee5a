"""2-D convolution: forward, input gradient, weight gradient, with per-sample channel masks.

The layers call these functions, which choose the compiled kernel: `tiled_conv`, or `plain` if the environment
says REFIMPL_KERNELS=plain. Both give the same bits.
Each of G `groups` of output channels reads its own group of input channels: weight (K, C/G, kh, kw).
A mask is a boolean (N, C) array or None for "all channels take part". A closed channel is skipped: it is not
computed, what it holds has no effect, and its output is exactly zero.

Wrong shapes, dtypes or masks raise `InputError`. Source: mathematics.md §2.1 and §2.3b.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import plain, tiled_conv, tiled_weight_grad
from refimpl.kernels.arrays import (
    ALL_ON,
    Pair,
    check_shape,
    check_target,
    output_size,
    tidy_floats,
    tidy_mask,
)
from refimpl.kernels.jit import USE_TILE
from refimpl.kernels.workspace import result_array, scratch

__all__ = ["ALL_ON", "Pair", "forward", "input_grad", "or_all_on", "output_size", "weight_grad"]

# A layer asks for the same sizes at every call; at batch size 1 they would take several percent of its time.
convolve_scratch = lru_cache(maxsize=1024)(tiled_conv.convolve_scratch)
weight_grad_scratch = lru_cache(maxsize=1024)(tiled_weight_grad.weight_grad_scratch)


def or_all_on(mask: np.ndarray | None) -> np.ndarray:
    """The mask itself, or the empty mask that stands for "all on" inside compiled code."""
    return ALL_ON if mask is None else mask


@lru_cache(maxsize=1024)
def _result_size(
    who: str, size: Pair, weight: tuple[int, ...], stride: Pair, pad: Pair, dilation: Pair, groups: int
) -> Pair:
    """`output_size` for a weight of this shape. Raises InputError if the window does not fit."""
    if len(weight) != 4:
        raise InputError(f"{who}: expected a weight of shape (K, C, kh, kw), got {weight}")
    if groups < 1 or weight[0] % groups:
        raise InputError(f"{who}: expected a number of groups that divides {weight[0]} filters, got {groups}")
    if len(size) != 2:
        raise InputError(f"{who}: expected images of shape (N, C, H, W), got {size} in the place of (H, W)")
    pairs = len(stride) == len(pad) == len(dilation) == 2
    if not pairs or min(*stride, *dilation) < 1 or min(pad) < 0:
        raise InputError(
            f"{who}: expected two strides >= 1, two paddings >= 0 and two dilations >= 1, "
            f"got {stride}, {pad} and {dilation}"
        )
    rows, cols = output_size(size, weight[2:], stride, pad, dilation)
    if min(rows, cols) < 1:
        raise InputError(
            f"{who}: a {weight[2]}x{weight[3]} window with stride {stride}, padding {pad} and dilation "
            f"{dilation} does not fit into {size[0]}x{size[1]} pixels"
        )
    return rows, cols


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: Pair,
    pad: Pair,
    reads: np.ndarray | None = None,
    writes: np.ndarray | None = None,
    out: np.ndarray | None = None,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """conv(x (N,C,H,W), weight (K,C/G,kh,kw)) + bias (K,) -> (N,K,P,Q), written to `out` if given.

    `reads` (N,C): channels of x that are not zero; `writes` (N,K): channels wanted, the others are zero.
    """
    who = "conv.forward"
    x, weight, bias = tidy_floats(who, x=x, weight=weight, bias=bias)
    size = _result_size(who, x.shape[2:], weight.shape, stride, pad, dilation, groups)
    samples, filters, channels = x.shape[0], weight.shape[0], groups * weight.shape[1]
    check_shape(who, "x", x, (samples, channels, *x.shape[2:]))
    check_shape(who, "bias", bias, (filters,))
    shapes, moves = (x.shape[1:], (filters, *size)), (stride, pad, dilation)
    needs = convolve_scratch(*shapes, weight.shape[2:], moves, False, x.itemsize, groups)
    y = result_array(who, (samples, filters, *size), x.dtype, out)
    reads = tidy_mask(who, "reads", reads, samples, channels)
    writes = tidy_mask(who, "writes", writes, samples, filters)
    masks, memory = (reads, writes), scratch(x.dtype, *needs)
    if USE_TILE:
        tiled_conv.convolve(x, weight, bias, stride, pad, dilation, False, *masks, True, *memory, y)
    else:
        plain.conv_forward(x, weight, bias, stride, pad, dilation, *masks, y)
    return y


def input_grad(
    dy: np.ndarray,
    weight: np.ndarray,
    stride: Pair,
    pad: Pair,
    size: Pair,
    dy_mask: np.ndarray | None = None,
    dx_mask: np.ndarray | None = None,
    out: np.ndarray | None = None,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """Gradient w.r.t. an input of height and width `size`: dy (N,K,P,Q) -> dx (N,C,H,W).

    `dy_mask` (N,K): channels of dy that are not zero; `dx_mask` (N,C): channels of dx that are wanted.
    """
    who = "conv.input_grad"
    dy, weight = tidy_floats(who, dy=dy, weight=weight)
    result = _result_size(who, size, weight.shape, stride, pad, dilation, groups)
    filters, channels = weight.shape[0], groups * weight.shape[1]
    check_shape(who, "dy", dy, (*dy.shape[:1], filters, *result))
    samples = dy.shape[0]
    shapes, moves = (dy.shape[1:], (channels, *size)), (stride, pad, dilation)
    needs = convolve_scratch(*shapes, weight.shape[2:], moves, True, dy.itemsize, groups)
    dx = result_array(who, (samples, channels, *size), dy.dtype, out)
    dy_mask = tidy_mask(who, "dy_mask", dy_mask, samples, filters)
    dx_mask = tidy_mask(who, "dx_mask", dx_mask, samples, channels)
    masks, memory = (dy_mask, dx_mask), scratch(dy.dtype, *needs)
    if USE_TILE:  # no bias is read in this direction
        tiled_conv.convolve(dy, weight, memory[0], stride, pad, dilation, True, *masks, True, *memory, dx)
    else:
        plain.conv_input_grad(dy, weight, stride, pad, dilation, *masks, dx)
    return dx


def weight_grad(
    x: np.ndarray,
    dy: np.ndarray,
    stride: Pair,
    pad: Pair,
    dweight: np.ndarray,
    dbias: np.ndarray,
    x_mask: np.ndarray | None = None,
    dy_mask: np.ndarray | None = None,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> None:
    """Write dweight (K,C/G,kh,kw) and dbias (K,), summed over the batch in sample order."""
    who = "conv.weight_grad"
    x, dy = tidy_floats(who, x=x, dy=dy)
    shape = np.shape(dweight)
    size = _result_size(who, x.shape[2:], shape, stride, pad, dilation, groups)
    samples, filters, channels = x.shape[0], shape[0], groups * shape[1]
    check_shape(who, "x", x, (samples, channels, *x.shape[2:]))
    check_shape(who, "dy", dy, (samples, filters, *size))
    needs = weight_grad_scratch(
        channels, filters, shape[2:], stride, pad, x.shape[2:], size, x.itemsize, dilation, groups
    )
    check_target(who, "dweight", dweight, x.dtype, shape)
    check_target(who, "dbias", dbias, x.dtype, (filters,))
    x_mask = tidy_mask(who, "x_mask", x_mask, samples, channels)
    dy_mask = tidy_mask(who, "dy_mask", dy_mask, samples, filters)
    moves, masks, memory = (stride, pad, dilation), (x_mask, dy_mask), scratch(x.dtype, *needs)
    if USE_TILE:
        tiled_weight_grad.weight_grad(x, dy, *moves, *masks, False, *memory, dweight, dbias)
    else:
        plain.conv_weight_grad(x, dy, *moves, *masks, dweight, dbias)
