"""What a compiled program is made of: the row of an operation, the workspace, and views into it.

A program is a record array `OPERATION`, one row an operation, made by `nn/lowering.py`. Rows speak of
places in a workspace: offsets are per sample, so the region of n samples starts at n * offset.

Source: mathematics.md §2 (what an operation computes is at the layers, `nn/`). Derived.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.kernels.jit import kernel
from refimpl.kernels.shaping import Shaping
from refimpl.kernels.views import view

CONV, LINEAR, RELU, SOFTPLUS, TANH, MAX_POOL, AVERAGE_POOL, GLOBAL_POOL = range(8)
DECIDE, PRODUCT, FORK, ADD, NOTHING, LEAKY, BATCH_NORM, GROUP_NORM, FROZEN_NORM = range(8, 17)
HARD, GUMBEL, STE, SOFT = range(4)
NOWHERE = -1

PLACES = (  # those that are NOWHERE unless a row says otherwise
    "weight", "bias",  # in w and in the gradient
    "running_mean", "running_var",  # in w: statistics of a FROZEN_NORM
    "x", "y",  # activations, per sample
    "x2",  # the second input: of ADD, and of PRODUCT the mask as numbers
    "dx", "dx2", "dy",  # gradients of activations; NOWHERE: not wanted
    "own",  # the operation's own memory: where maxima lay, slopes of a gate, normalised values
    "wide",  # its own memory in float64: 1/std; DECIDE: the term of the loss that shapes the gate
    "reads", "writes", "dy_mask", "dx_mask",  # masks; NOWHERE: all on
    "mask",  # the mask that a DECIDE makes
    "gate",  # not a place but a number: of the gate that the operation belongs to
    "kept", "kept_back", "kept_end",  # CONV that lost weights: where the tables of the others lie
)  # fmt: skip

OPERATION = np.dtype(
    [
        ("kind", np.int64),
        ("input", np.int64, 3),  # channels, height, width of one sample's input (features, 1, 1)
        ("output", np.int64, 3),
        ("window", np.int64, 2),
        ("stride", np.int64, 2),
        ("pad", np.int64, 2),
        ("dilation", np.int64, 2),
        *((place, np.int64) for place in PLACES),
        ("groups", np.int64),  # columns of the mask of x
        ("parts", np.int64),  # CONV: groups of output channels, each of which reads its own input channels
        ("number", np.float64),  # LEAKY: the slope; norms: what is added to the variance
        ("below", np.float64),  # norms, ADD, CONV: the slope of an activation behind it (`runs`), 1 for none
        ("sparse", np.bool_),  # CONV: multiply only kept weights, also forward and in the input gradient
        ("clears", np.bool_),  # CONV: zero closed channels (else what reads them skips them)
        ("need_dw", np.bool_),
        ("learns", np.bool_),  # DECIDE, ADD and norms: is there a backward pass
        ("steps", np.bool_),  # LINEAR: its weight may be stepped row by row, as gradients become known
    ],
    align=True,
)


def blank(rows: int) -> np.ndarray:
    """Operations that have nothing yet: no places, windows of one pixel."""
    operations = np.zeros(rows, dtype=OPERATION)
    for place in PLACES:
        operations[place] = NOWHERE
    operations["window"] = operations["stride"] = operations["dilation"] = operations["parts"] = 1
    operations["below"] = 1
    return operations


class Workspace(NamedTuple):
    """One thread's memory: activations, their gradients, masks, pooling positions, kernels' scratch.

    wide: float64 numbers that operations keep; zeros: the bias of layers without one; unused: where the
    gradients of parameters go that nobody wants. kept: tables of kept weights (`sparse.py`); pruned: entries
    of the gradient that are zero.
    """

    values: np.ndarray
    slopes: np.ndarray
    masks: np.ndarray
    where: np.ndarray
    floats: np.ndarray
    ints: np.ndarray
    wide: np.ndarray
    zeros: np.ndarray
    unused: np.ndarray
    kept: np.ndarray
    pruned: np.ndarray


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


class Span(NamedTuple):
    """The samples of a batch, from `first` up to `stop`, that a descent treats, `part` at a time.

    values: find activations and their gradients; sums: find the gradients of parameters from them, and go on
    from `loss`, that of the samples before. A span that does both is the whole batch, and steps are taken.
    """

    first: int
    stop: int
    part: int
    values: bool = True
    sums: bool = True
    loss: float = 0.0


class Pull(NamedTuple):
    """What a local step needs besides the gradient: step size and weight (dtype of w), and the centre."""

    eta: np.floating
    lam: np.floating
    centre: np.ndarray


class Decisions(NamedTuple):
    """How gates decide: temperature, mode, and noise (n, gates, widest gate), read in mode GUMBEL only.

    shaping: how strongly a program that shapes gates does it, and towards what.
    """

    tau: float
    mode: int
    noise: np.ndarray
    shaping: Shaping = Shaping()


@kernel
def maps_at(values, at, n, shape):
    """The region at `at` as (n, C, pixels)."""
    return view(values, at * n, (n, shape[0], shape[1] * shape[2]))


@kernel
def images_at(values, at, n, shape):
    """The region at `at` as (n, C, H, W)."""
    return view(values, at * n, (n, shape[0], shape[1], shape[2]))


@kernel
def rows_at(values, at, n, width):
    """The region at `at` as (n, width)."""
    return view(values, at * n, (n, width))


@kernel
def mask_at(masks, at, n, width):
    """The mask at `at` as (n, width); (0, width), which stands for "all on", where there is none."""
    return view(masks, max(0, at * n), (n if at >= 0 else 0, width))


@kernel
def matrix_at(w, op):
    """A linear layer's weights inside w."""
    return view(w, op.weight, (op.output[0], op.input[0]))


@kernel
def filters_at(w, op):
    """A convolution's weights inside w."""
    return view(w, op.weight, (op.output[0], op.input[0] // op.parts, op.window[0], op.window[1]))


@kernel
def vector_at(w, at, size):
    """A bias inside w."""
    return view(w, at, (size,))


@kernel
def bias_at(w, op, instead):
    """An operation's bias inside w; the beginning of `instead` where it has none."""
    return vector_at(w, op.bias, op.output[0]) if op.bias >= 0 else vector_at(instead, 0, op.output[0])


@kernel
def pair_of(field):
    """A field of two as the tuple kernels take."""
    return (field[0], field[1])
