"""What a compiled program is made of: the row of an operation, the workspace, and views into it.

A program is a record array `OPERATION`, one row an operation, made by `nn/lowering.py`. Rows speak of
places in a workspace: offsets are per sample, so the region of n samples starts at n * offset.

Source: mathematics.md §2 (what an operation computes is at the layers, `nn/`). Derived.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.kernels.jit import kernel

CONV, LINEAR, RELU, SOFTPLUS, TANH, MAX_POOL, AVERAGE_POOL, GLOBAL_POOL, DECIDE, PRODUCT = range(10)
HARD, GUMBEL, STE, SOFT = range(4)
NOWHERE = -1

OPERATION = np.dtype(
    [
        ("kind", np.int64),
        ("input", np.int64, 3),  # channels, height, width of one sample's input (features, 1, 1)
        ("output", np.int64, 3),
        ("window", np.int64, 2),
        ("stride", np.int64, 2),
        ("pad", np.int64, 2),
        ("weight", np.int64),  # places in w and in the gradient
        ("bias", np.int64),
        ("weight2", np.int64),  # the gate's second layer
        ("bias2", np.int64),
        ("hidden", np.int64),  # hidden units of a gate
        ("x", np.int64),  # places of activations, per sample
        ("y", np.int64),
        ("dx", np.int64),  # places of their gradients; NOWHERE: not wanted
        ("dy", np.int64),
        ("spare", np.int64),  # the operation's own scratch: argmax, gate activations
        ("sign", np.int64),  # RELU: place of the values whose sign its derivative goes by
        ("reads", np.int64),  # places of masks, NOWHERE: all on
        ("writes", np.int64),
        ("dy_mask", np.int64),
        ("dx_mask", np.int64),
        ("groups", np.int64),  # columns of the mask of x
        ("gate", np.int64),  # number of the gate this operation belongs to
        ("mask", np.int64),  # place of the mask a DECIDE makes and a PRODUCT applies
        ("clears", np.bool_),  # CONV: zero closed channels (else what reads them skips them)
        ("need_dw", np.bool_),
        ("learns", np.bool_),  # gate rows: does the gate get a gradient
        ("scales", np.bool_),  # PRODUCT: multiply forward (else closed channels were skipped)
    ],
    align=True,
)


class Workspace(NamedTuple):
    """One thread's memory: activations, their gradients, masks, pooling positions, kernels' scratch."""

    values: np.ndarray
    slopes: np.ndarray
    masks: np.ndarray
    where: np.ndarray
    floats: np.ndarray
    ints: np.ndarray


class Activations(NamedTuple):
    """The part of a workspace that a later descent may find filled."""

    values: np.ndarray
    masks: np.ndarray
    where: np.ndarray


class Kept(NamedTuple):
    """Activations that outlive a descent, and operations whose results an earlier one left.

    values, masks, where: entries per sample of each, where those of all samples are kept; 0: only those of
    the part at work. first, later: leading operations (decisions excepted) whose results are there already,
    in the first step and in later ones.
    """

    values: int = 0
    masks: int = 0
    where: int = 0
    first: int = 0
    later: int = 0


NOTHING_KEPT = Kept()


class Decisions(NamedTuple):
    """How gates decide: temperature, mode, and noise (n, gates, widest gate), read in mode GUMBEL only."""

    tau: float
    mode: int
    noise: np.ndarray


@kernel
def maps_at(values, at, n, shape):
    """The region at `at` as (n, C, pixels)."""
    pixels = shape[1] * shape[2]
    return values[at * n : at * n + n * shape[0] * pixels].reshape(n, shape[0], pixels)


@kernel
def images_at(values, at, n, shape):
    """The region at `at` as (n, C, H, W)."""
    size = n * shape[0] * shape[1] * shape[2]
    return values[at * n : at * n + size].reshape(n, shape[0], shape[1], shape[2])


@kernel
def rows_at(values, at, n, width):
    """The region at `at` as (n, width)."""
    return values[at * n : at * n + n * width].reshape(n, width)


@kernel
def mask_at(masks, at, n, width):
    """The mask at `at` as (n, width); (0, width), which stands for "all on", where there is none."""
    if at < 0:
        return masks[:0].reshape(0, width)
    return masks[at * n : at * n + n * width].reshape(n, width)


@kernel
def matrix_at(w, at, rows, columns):
    """A weight matrix inside w."""
    return w[at : at + rows * columns].reshape(rows, columns)


@kernel
def filters_at(w, op):
    """A convolution's weights inside w."""
    size = op.output[0] * op.input[0] * op.window[0] * op.window[1]
    shape = (op.output[0], op.input[0], op.window[0], op.window[1])
    return w[op.weight : op.weight + size].reshape(shape)


@kernel
def vector_at(w, at, size):
    """A bias inside w."""
    return w[at : at + size]


@kernel
def pair_of(field):
    """A field of two as the tuple kernels take."""
    return (field[0], field[1])
