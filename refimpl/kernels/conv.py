"""2-D convolution: forward, input gradient, weight gradient, with per-sample channel masks.

These are the functions the layers call; which compiled kernel does the work is decided here.
A mask is a boolean (N, C) array or None for "all channels take part"; a closed channel is skipped
(not read, not computed) and its output is exactly zero.

Source: mathematics.md §2.1 and §2.3b.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels import plain

Pair = tuple[int, int]
ALL_ON = np.ones((0, 0), dtype=np.bool_)


def or_all_on(mask: np.ndarray | None) -> np.ndarray:
    """The mask itself, or the empty mask that stands for "all on" inside compiled code."""
    return ALL_ON if mask is None else mask


def output_size(size: Pair, kernel: Pair, stride: Pair, pad: Pair) -> Pair:
    """Height and width after a window of `kernel` moved by `stride` over `size` padded by `pad`."""
    return (
        (size[0] + 2 * pad[0] - kernel[0]) // stride[0] + 1,
        (size[1] + 2 * pad[1] - kernel[1]) // stride[1] + 1,
    )


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: Pair,
    pad: Pair,
    reads: np.ndarray | None = None,
    writes: np.ndarray | None = None,
) -> np.ndarray:
    """conv(x (N,C,H,W), weight (K,C,kh,kw)) + bias (K,) -> (N,K,P,Q).

    `reads` (N,C): channels of x that are not zero; `writes` (N,K): channels wanted, the others are zero.
    """
    rows, cols = output_size(x.shape[2:], weight.shape[2:], stride, pad)
    y = np.empty((x.shape[0], weight.shape[0], rows, cols), dtype=x.dtype)
    plain.conv_forward(x, weight, bias, stride, pad, or_all_on(reads), or_all_on(writes), y)
    return y


def input_grad(
    dy: np.ndarray,
    weight: np.ndarray,
    stride: Pair,
    pad: Pair,
    size: Pair,
    dy_mask: np.ndarray | None = None,
    dx_mask: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient w.r.t. an input of height and width `size`: dy (N,K,P,Q) -> dx (N,C,H,W).

    `dy_mask` (N,K): channels of dy that are not zero; `dx_mask` (N,C): channels of dx that are wanted.
    """
    dx = np.empty((dy.shape[0], weight.shape[1], *size), dtype=dy.dtype)
    plain.conv_input_grad(dy, weight, stride, pad, or_all_on(dy_mask), or_all_on(dx_mask), dx)
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
) -> None:
    """Write dweight (K,C,kh,kw) and dbias (K,), summed over the batch in sample order."""
    plain.conv_weight_grad(x, dy, stride, pad, or_all_on(x_mask), or_all_on(dy_mask), dweight, dbias)
