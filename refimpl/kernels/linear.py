"""Fully connected layer: forward, input gradient, weight gradient, with per-sample masks.

A mask over inputs may be coarser than the features: G columns over I features stand for G groups of
I/G consecutive features, which is what a channel mask becomes when an image is flattened.

Source: mathematics.md §2.1 and §2.3b.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels import plain
from refimpl.kernels.conv import or_all_on


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    reads: np.ndarray | None = None,
    writes: np.ndarray | None = None,
) -> np.ndarray:
    """x (N,I) weight (O,I)^T + bias (O,) -> (N,O); `reads` (N,G), `writes` (N,O)."""
    y = np.empty((x.shape[0], weight.shape[0]), dtype=x.dtype)
    plain.linear_forward(x, weight, bias, or_all_on(reads), or_all_on(writes), y)
    return y


def input_grad(
    dy: np.ndarray,
    weight: np.ndarray,
    dy_mask: np.ndarray | None = None,
    dx_mask: np.ndarray | None = None,
) -> np.ndarray:
    """dy (N,O) weight (O,I) -> dx (N,I); `dy_mask` (N,O), `dx_mask` (N,G): features wanted."""
    dx = np.empty((dy.shape[0], weight.shape[1]), dtype=dy.dtype)
    plain.linear_input_grad(dy, weight, or_all_on(dy_mask), or_all_on(dx_mask), dx)
    return dx


def weight_grad(
    x: np.ndarray,
    dy: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
    x_mask: np.ndarray | None = None,
    dy_mask: np.ndarray | None = None,
) -> None:
    """Write dweight (O,I) = dy^T x and dbias (O,), summed over the batch in sample order."""
    plain.linear_weight_grad(x, dy, or_all_on(x_mask), or_all_on(dy_mask), dweight, dbias)
