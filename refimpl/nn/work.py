"""Floating-point operations of one evaluation of a network: dense, and as executed under given masks.

The rule (mathematics.md §9): a multiply-add is 2 FLOPs; a convolution owes 2*C*K*kh*kw*P*Q per sample
(taps on padding included) and a linear layer 2*I*O, with the numbers of channels that take part; every
other element-wise or pooling layer, a bias, a residual sum and a product with a mask owe one FLOP per
output element of the layer. Each gate owes its pool and its MLP, and its gradient the products summed
into dL/dM. Decisions, the loss and parameter updates are not counted.

Backward, the same layers owe the same number for their input gradient and again for their weight
gradient, where each is wanted, over the channels that take part in it: the
plan says which (`plan.py`).

Every such number is a product of at most two channel counts. So the work of a batch is a quadratic form
in the counts of open channels per sample, whose coefficients depend on the network alone: they are
tabulated once, and one evaluation costs a few microseconds.

A Hessian-vector product (`nn/hessian.py`) repeats each operation once for every factor that moves along
the direction: forward and input gradient are done once plainly and again with each moving factor, the
weight gradient only with moving ones.

Source: mathematics.md §9. Derived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.nn.context import Context, Routing
from refimpl.nn.gate import Decide
from refimpl.nn.joins import Add, Fork, Product
from refimpl.nn.layers import Conv2d, Linear, Normalisation, rule_of
from refimpl.nn.network import Network
from refimpl.nn.plan import NONE, Step, plan
from refimpl.nn.pointwise import Pointwise
from refimpl.nn.pooling import Flatten, GlobalAvgPool2d, Window
from refimpl.nn.weightmask import WeightMask

FORWARD, INPUT_GRAD, WEIGHT_GRAD, GATE = range(4)
LACKING = "work: no rule to count the operations of a {}; add it to nn/work.py"


@dataclass(frozen=True)
class Work:
    """FLOPs of a whole batch.

    forward, input_grad, weight_grad: those of each pass; `gate` is the part of these three that gates owe,
    not a fourth.
    """

    forward: int = 0
    input_grad: int = 0
    weight_grad: int = 0
    gate: int = 0

    @property
    def total(self) -> int:
        """All passes together."""
        return self.forward + self.input_grad + self.weight_grad

    def __add__(self, other: Work) -> Work:
        return Work(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def dense_work(network: Network, batch: int, train: tuple[str, ...] = ()) -> Work:
    """Work on `batch` samples of the same network without its gates, nothing skipped.

    With `train` naming "theta" the backward pass is included. Source: mathematics.md §9. Derived.
    """
    routing = Routing(tuple(part for part in train if part == "theta"), gated=False)
    return Work(*(batch * int(table[0, 0]) for table in work_tables(network, routing)))


def executed_work(
    network: Network, masks: Mapping[str, np.ndarray], batch: int, context: Context, second: bool = False
) -> Work:
    """Work on `batch` samples under `masks`, as given by `Network.masks(trace)`.

    masks: by gate name, bool (batch, K), or float for smooth gates, which skip nothing. The backward pass
    is that of `context.train`; with `second`, the work is that of a Hessian-vector product. Raises
    `InputError` for missing gates or other shapes.
    Source: mathematics.md §9 and §2.3b. Derived.
    """
    counts = np.ones((batch, 1 + len(network.gates)), dtype=np.int64)
    smooth = False
    for column, block in enumerate(network.gates, start=1):
        given, wanted = masks.get(block.gate.name), (batch, block.gate.out_channels)
        mask = np.asarray(given)
        if mask.shape != wanted:
            got = "none" if given is None else f"shape {mask.shape}"
            raise InputError(
                f"executed_work: gate {block.gate.name} needs a mask of shape {wanted}, got {got}; "
                "pass network.masks(trace) of the same batch"
            )
        if mask.dtype == np.bool_:
            mask.sum(axis=1, out=counts[:, column])
        elif mask.dtype.kind == "f":
            smooth = True  # then the tables speak of all channels and have no use for counts
        else:
            raise InputError(
                f"executed_work: the mask of gate {block.gate.name} must be boolean, or floats of smooth "
                f"gates, got {mask.dtype}; pass mask != 0"
            )
    tables = work_tables(network, context.routing._replace(smooth=smooth), second, context.weights)
    moments = counts.T @ counts  # sums over samples of products of two counts
    return Work(*(tables.reshape(4, -1) @ moments.ravel()).tolist())


def total_table(network: Network, context: Context) -> np.ndarray:
    """Coefficients (G+1, G+1) of all passes together under a context; see `work_tables`."""
    return work_tables(network, context.routing, weights=context.weights)[:GATE].sum(axis=0)


class Count(NamedTuple):
    """A number of channels: `times` x (open channels of gate number `gate`); gate 0 counts as one."""

    gate: int
    times: int


ONE = Count(0, 1)


def full(channels: int) -> Count:
    """All channels, whatever the masks."""
    return Count(0, channels)


@lru_cache(maxsize=256)
def work_tables(
    network: Network, routing: Routing, second: bool = False, weights: WeightMask | None = None
) -> np.ndarray:
    """Coefficients (4, G+1, G+1) for forward, input gradient, weight gradient and gates.

    With c the vector (1, open channels of gate 1, ..., of gate G) of a sample, its work is c^T table c.
    """
    return _tables(network, plan(network.layers, network.input_shape, routing), second, weights)


@lru_cache(maxsize=256)
def leading_table(network: Network, routing: Routing, steps: int) -> np.ndarray:
    """Forward coefficients (G+1, G+1) of the first `steps` steps of the plan, those of gates left out."""
    first = plan(network.layers, network.input_shape, routing)[:steps]
    return _tables(network, [step for step in first if step.gate == NONE], second=False)[FORWARD]


def _tables(
    network: Network, steps: Sequence[Step], second: bool, weights: WeightMask | None = None
) -> np.ndarray:
    tally = Tally([block.gate.out_channels for block in network.gates], second, weights)
    for step in steps:
        rule_of(step.layer, RULES, LACKING)(tally, step)
    tally.tables.flags.writeable = False
    return tally.tables


class Tally:
    """Adds up what steps owe, in both directions. `widths` are the channels of each gate.

    second: the work is that of a Hessian-vector product; weights: which entries of w are kept.
    """

    def __init__(self, widths: Sequence[int], second: bool, weights: WeightMask | None) -> None:
        self.widths, self.second, self.weights = widths, second, weights
        self.tables = np.zeros((4, 1 + len(widths), 1 + len(widths)), dtype=np.int64)

    def count(self, mask: int, channels: int) -> Count:
        """The open ones of so many channels; a mask of fewer columns stands for groups of them."""
        return full(channels) if mask == NONE else Count(mask + 1, channels // self.widths[mask])

    def multiply(self, step: Step, kind: int, a: Count, b: Count, moving: int) -> None:
        """The multiply-adds of a weighted layer for each pair of a channel of `a` and one of `b`.

        A convolution without gated channels owes one for each kept weight and position.
        """
        layer, taps, kept = step.layer, 1, None
        if isinstance(layer, Conv2d):
            taps, kept = math.prod(layer.window), layer.kept(self.weights)
            a, b = _within(layer.groups, step.shape[0], a, b)
        if kept is not None and a.gate == b.gate == 0:
            taps, a, b = int(kept.sum()), ONE, ONE
        self.owe(step, kind, 2 * math.prod(step.result[1:]) * taps, a, b, moving)

    def owe(self, step: Step, kind: int, flops: int, a: Count, b: Count = ONE, moving: int = 0) -> None:
        """`flops` for each pair of a channel of `a` and one of `b`.

        moving: how many factors of the operation move along the direction of a Hessian-vector product.
        """
        repeats = (0 if kind == WEIGHT_GRAD else 1) + moving if self.second else 1
        for table in (kind,) if step.gate == NONE else (kind, GATE):
            self.tables[table, a.gate, b.gate] += repeats * flops * a.times * b.times


def _elementwise(tally: Tally, step: Step) -> None:
    """Activation, pooling or normalisation: one FLOP per output element."""
    elements, moving = math.prod(step.result[1:]), sum(step.moves) + step.need_dw
    live = tally.count(step.dy_mask, step.result[0])
    tally.owe(step, FORWARD, elements, tally.count(step.writes, step.result[0]), moving=moving)
    if any(step.needs):
        tally.owe(step, INPUT_GRAD, elements, live, moving=moving)
    if step.need_dw:
        tally.owe(step, WEIGHT_GRAD, elements, live, moving=moving)


def _within(groups: int, inputs: int, ins: Count, outs: Count) -> tuple[Count, Count]:
    """The two counts whose product is the number of pairs of an input and an output channel of one group.

    Where masks close channels on both sides, all inputs of a group count as open: how many of each group are
    is not known here. For a depthwise convolution under one mask that is exact.
    """
    if groups == 1:
        return ins, outs
    return (full(inputs // groups), outs) if outs.gate else (ins, full(outs.times // groups))


def _weighted(tally: Tally, step: Step) -> None:
    """Convolution or linear layer: multiply-adds for each pair of channels, or for each kept weight."""
    layer, positions = step.layer, math.prod(step.result[1:])
    bias = positions if len(layer.parameters()) == 2 else 0
    reads, writes = tally.count(step.reads, step.shape[0]), tally.count(step.writes, step.result[0])
    live, moving = tally.count(step.dy_mask, step.result[0]), sum(step.moves) + step.need_dw
    tally.multiply(step, FORWARD, reads, writes, moving)
    tally.owe(step, FORWARD, bias, writes, moving=moving)
    if any(step.needs):
        tally.multiply(step, INPUT_GRAD, tally.count(step.dx_mask, step.shape[0]), live, moving)
    if step.need_dw:
        tally.multiply(step, WEIGHT_GRAD, reads, live, moving)
        tally.owe(step, WEIGHT_GRAD, bias, live, moving=moving)


def _free(tally: Tally, step: Step) -> None:
    """Nothing: another view of the same numbers, or a comparison."""


def _fork(tally: Tally, step: Step) -> None:
    """Sum of two gradients; a gate's share of its input's is one number per channel, counted at its pool."""
    if step.gate == NONE:
        tally.owe(step, INPUT_GRAD, math.prod(step.shape), ONE, moving=1)


def _sum(tally: Tally, step: Step) -> None:
    """Sum of two branches."""
    tally.owe(step, FORWARD, math.prod(step.result), ONE, moving=int(any(step.moves)))


def _product(tally: Tally, step: Step) -> None:
    """M * Z where closed channels were not skipped; M * dY of smooth masks; dM = sum of dY * Z."""
    elements, channels, moves = math.prod(step.result[1:]), step.result[0], step.moves
    if step.reads == NONE:
        tally.owe(step, FORWARD, elements, tally.count(step.writes, channels), moving=sum(moves))
    if step.writes == NONE and step.needs[0]:
        tally.owe(step, INPUT_GRAD, elements, full(channels), moving=1 + moves[1])
    if step.needs[1]:
        tally.owe(step, INPUT_GRAD, 2 * elements, tally.count(step.dy_mask, channels), moving=1 + moves[0])


RULES: dict[type, Callable[[Tally, Step], None]] = {
    Conv2d: _weighted,
    Linear: _weighted,
    **dict.fromkeys((Pointwise, Window, GlobalAvgPool2d, Normalisation), _elementwise),
    **dict.fromkeys((Flatten, Decide), _free),
    Fork: _fork,
    Add: _sum,
    Product: _product,
}
