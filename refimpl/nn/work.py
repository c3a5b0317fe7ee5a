"""Floating-point operations of one evaluation of a network: dense, and as executed under given masks.

The rule (mathematics.md §9): a multiply-add is 2 FLOPs; a convolution owes 2*C*K*kh*kw*P*Q per sample
(taps on padding included) and a linear layer 2*I*O, with the numbers of channels that take part; every
other element-wise or pooling layer, a bias, a residual sum and a product with a mask owe one FLOP per
output element of the layer. Each gate owes its pool and its MLP, and its gradient the products summed
into dL/dM. Decisions, the loss and parameter updates are not counted.

Backward, the same layers owe the same number for their input gradient and again for their weight
gradient, where each is wanted, over the channels that take part in it (§2.3b; the routing is that of
`nn/chain.py` and `nn/gate.py`).

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.nn.chain import Residual, chain_shape
from refimpl.nn.context import Context
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear, Shape
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

FORWARD, INPUT_GRAD, WEIGHT_GRAD, GATE = range(4)
ELEMENTWISE = (ReLU, Softplus, Tanh, MaxPool2d, AvgPool2d, GlobalAvgPool2d, BatchNorm2d)


@dataclass(frozen=True)
class Work:
    """FLOPs of a whole batch by pass; `gate` is the part of these three that gates owe, not a fourth."""

    forward: int = 0
    input_grad: int = 0
    weight_grad: int = 0
    gate: int = 0

    @property
    def total(self) -> int:
        """All passes together."""
        return self.forward + self.input_grad + self.weight_grad

    def __add__(self, other: Work) -> Work:
        return Work(
            self.forward + other.forward,
            self.input_grad + other.input_grad,
            self.weight_grad + other.weight_grad,
            self.gate + other.gate,
        )


def dense_work(network: Network, batch: int, train: tuple[str, ...] = ()) -> Work:
    """Work on `batch` samples of the same network without its gates, nothing skipped.

    With `train` naming "theta" the backward pass is included. Source: mathematics.md §9. Derived.
    """
    setting = Setting(tuple(part for part in train if part == "theta"), gated=False)
    return Work(*(batch * int(table[0, 0]) for table in work_tables(network, setting)))


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
    tables = work_tables(network, _setting(context, smooth)._replace(second=second))
    moments = counts.T @ counts  # sums over samples of products of two counts
    return Work(*(tables.reshape(4, -1) @ moments.ravel()).tolist())


def context_tables(network: Network, context: Context) -> np.ndarray:
    """The coefficients (4, G+1, G+1) that `executed_work` uses under a context; see `work_tables`."""
    return work_tables(network, _setting(context, context.gating.mode == "soft"))


class Setting(NamedTuple):
    """What decides, besides the masks, which work is done."""

    train: tuple[str, ...]
    gated: bool = True
    gates_learn: bool = False
    closed_channels_matter: bool = False
    gate_input_learns: bool = False
    smooth: bool = False
    second: bool = False


def _setting(context: Context, smooth: bool) -> Setting:
    return Setting(
        tuple(context.train),
        True,
        context.gates_learn,
        context.closed_channels_matter,
        not context.gating.detach_gate_input,
        smooth,
    )


class Count(NamedTuple):
    """A number of channels: `times` x (open channels of gate number `gate`); gate 0 counts as one."""

    gate: int
    times: int


ONE = Count(0, 1)


def full(channels: int) -> Count:
    """All channels, whatever the masks."""
    return Count(0, channels)


@lru_cache(maxsize=256)
def work_tables(network: Network, setting: Setting) -> np.ndarray:
    """Coefficients (4, G+1, G+1) for forward, input gradient, weight gradient and gates.

    With c the vector (1, open channels of gate 1, ..., of gate G) of a sample, its work is c^T table c.
    """
    tally = _Tally(network, setting)
    tally.chain(network.layers, network.input_shape, full(network.input_shape[0]), None, need_dx=False)
    tally.tables.flags.writeable = False
    return tally.tables


def leading_table(network: Network, context: Context, through_gate: bool) -> np.ndarray:
    """Forward coefficients (G+1, G+1) of what is in front of the first gate and, `through_gate`, its body."""
    return _leading(network, _setting(context, context.gating.mode == "soft"), through_gate)


@lru_cache(maxsize=256)
def _leading(network: Network, setting: Setting, through_gate: bool) -> np.ndarray:
    tally = _Tally(network, setting)
    gated = next(i for i, layer in enumerate(network.layers) if isinstance(layer, Gated))
    before, shape = network.layers[:gated], network.input_shape
    reads = tally.chain(before, shape, full(shape[0]), None, need_dx=False)
    if through_gate:
        body = _Body(Count(1, 1), Count(1, 1))
        tally.chain(network.gates[0].body, chain_shape(before, shape), reads, body, need_dx=False)
    return tally.tables[FORWARD]


class _Tally:
    """Walks a network once and notes what each layer owes, in both directions.

    A layer's backward work depends only on what is known when it is passed on the way forward: the
    channels it reads and writes, and whether anything at or below it is trained.
    """

    def __init__(self, network: Network, setting: Setting) -> None:
        size = 1 + len(network.gates)
        self.number = {block.gate.name: i for i, block in enumerate(network.gates, start=1)}
        self.tables = np.zeros((4, size, size), dtype=np.int64)
        self.setting = setting

    def owe(
        self, kind: int, flops: int, a: Count, b: Count = ONE, gate: bool = False, moving: int = 0
    ) -> None:
        """`flops` for each pair of a channel of `a` and one of `b`.

        moving: how many factors of the operation move along the direction of a Hessian-vector product.
        """
        repeats = (0 if kind == WEIGHT_GRAD else 1) + moving if self.setting.second else 1
        amount = repeats * flops * a.times * b.times
        self.tables[kind, a.gate, b.gate] += amount
        if gate:
            self.tables[GATE, a.gate, b.gate] += amount

    def wanted(self, reads: Count, channels: int) -> Count:
        """The channels of dx that are computed for an input of which `reads` are open."""
        return full(channels) if self.setting.closed_channels_matter else reads

    def chain(
        self, layers: Sequence[Layer], shape: Shape, reads: Count, body: _Body | None, need_dx: bool
    ) -> Count:
        """All layers in order; returns the channels that are open at the end."""
        trained = False
        for layer in layers:
            below = need_dx or trained  # something under this layer wants its dx
            own = any(parameter.part in self.setting.train for parameter in layer.parameters())
            reads = self.layer(layer, shape, reads, body, _Wants(below, own))
            shape = layer.output_shape(shape)
            trained = trained or own
        return reads

    def layer(self, layer: Layer, shape: Shape, reads: Count, body: _Body | None, wants: _Wants) -> Count:
        """One layer or block; returns the channels that are open after it."""
        if isinstance(layer, Gated):
            return self.gated(layer, shape, reads, wants)
        if isinstance(layer, Residual):
            return self.residual(layer, shape, reads, wants)
        if isinstance(layer, Flatten):
            return Count(reads.gate, reads.times * math.prod(shape[1:]))
        if isinstance(layer, (Conv2d, Linear)):
            return self.weighted(layer, shape, reads, body, wants)
        if isinstance(layer, ELEMENTWISE):
            return self.elementwise(layer, shape, reads, body, wants)
        raise InputError(
            f"work: no rule to count the operations of a {type(layer).__name__}; add it to nn/work.py"
        )

    def elementwise(
        self, layer: Layer, shape: Shape, reads: Count, body: _Body | None, wants: _Wants
    ) -> Count:
        """Activation, pooling or normalisation: one FLOP per output element."""
        out = layer.output_shape(shape)
        computed, live = full(out[0]), full(out[0])
        if body is not None:
            computed, live = body
        elif layer.keeps_zero:
            computed, live = reads, self.wanted(reads, out[0])
        elements, moving = math.prod(out[1:]), sum(wants)
        self.owe(FORWARD, elements, computed, moving=moving)
        if wants.dx:
            self.owe(INPUT_GRAD, elements, live, moving=moving)
        if wants.dw:
            self.owe(WEIGHT_GRAD, elements, live, moving=moving)
        return computed

    def weighted(
        self, layer: Conv2d | Linear, shape: Shape, reads: Count, body: _Body | None, wants: _Wants
    ) -> Count:
        """Convolution or linear layer: `taps` multiply-adds for each pair of channels."""
        out = layer.output_shape(shape)
        positions = math.prod(out[1:])
        window = math.prod(layer.window) if isinstance(layer, Conv2d) else 1
        taps = 2 * window * positions
        bias = positions if isinstance(layer, Linear) or layer.bias else 0
        writes, live = (full(out[0]), full(out[0])) if body is None else body
        moving = sum(wants)  # x moves if something below is trained, the weight if it is
        self.owe(FORWARD, taps, reads, writes, moving=moving)
        self.owe(FORWARD, bias, writes, moving=moving)
        if wants.dx:
            self.owe(INPUT_GRAD, taps, self.wanted(reads, shape[0]), live, moving=moving)
        if wants.dw:
            self.owe(WEIGHT_GRAD, taps, reads, live, moving=moving)
            self.owe(WEIGHT_GRAD, bias, live, moving=moving)
        return writes

    def residual(self, layer: Residual, shape: Shape, reads: Count, wants: _Wants) -> Count:
        """Both branches and their sums, forward and backward."""
        self.chain(layer.body, shape, reads, None, wants.dx)
        self.chain(layer.shortcut, shape, reads, None, wants.dx)
        out = layer.output_shape(shape)
        self.owe(FORWARD, math.prod(out), ONE, moving=int(any(wants)))
        if wants.dx:
            self.owe(INPUT_GRAD, math.prod(shape), ONE, moving=1)
        return full(out[0])

    def gated(self, layer: Gated, shape: Shape, reads: Count, wants: _Wants) -> Count:
        """The body on the channels it runs on, the gate, and the products with the mask."""
        setting, out = self.setting, chain_shape(layer.body, shape)
        everything = full(out[0])
        if not setting.gated:
            return self.chain(layer.body, shape, reads, None, wants.dx)
        mask = everything if setting.smooth else Count(self.number[layer.gate.name], 1)
        skip = not (setting.smooth or setting.closed_channels_matter)
        self.chain(layer.body, shape, reads, _Body(mask if skip else everything, mask), wants.dx)
        elements, moves = math.prod(out[1:]), wants.dx
        mask_moves, z_moves = moves or "phi" in setting.train, moves or "theta" in setting.train
        if not skip:  # the product M * Z
            self.owe(FORWARD, elements, mask, gate=True, moving=mask_moves + z_moves)
        if setting.smooth and z_moves:  # the product M * dZ'
            self.owe(INPUT_GRAD, elements, mask, gate=True, moving=1 + mask_moves)
        gate_wants = _Wants(wants.dx and setting.gate_input_learns, "phi" in setting.train)
        self.gate(layer.gate, shape, reads, gate_wants, moves)
        if setting.gates_learn and any(gate_wants):  # dM = sum of dZ' * Z
            products = everything if setting.closed_channels_matter else mask
            self.owe(INPUT_GRAD, 2 * elements, products, gate=True, moving=1 + z_moves)
        return mask

    def gate(self, gate: ChannelGate, shape: Shape, reads: Count, wants: _Wants, moves: bool) -> None:
        """Pool, fc1, ReLU, fc2: forward, and backward where gates learn; `moves`: whether the input does."""
        hidden, logits = full(gate.hidden), full(2 * gate.out_channels)
        pool = 1 if len(shape) == 3 else 0
        first, second = moves + wants.dw, (moves or wants.dw) + wants.dw  # moving factors of fc1 and fc2
        self.owe(FORWARD, pool, reads, gate=True, moving=int(moves))
        self.owe(FORWARD, 2, reads, hidden, gate=True, moving=first)
        self.owe(FORWARD, 2, hidden, gate=True, moving=first)  # bias and ReLU
        self.owe(FORWARD, 2, hidden, logits, gate=True, moving=second)
        self.owe(FORWARD, 1, logits, gate=True, moving=second)
        if not (self.setting.gates_learn and any(wants)):
            return
        self.owe(INPUT_GRAD, 2, hidden, logits, gate=True, moving=1 + wants.dw)
        self.owe(INPUT_GRAD, 1, hidden, gate=True, moving=1)
        if wants.dw:
            self.owe(WEIGHT_GRAD, 2, hidden, logits, gate=True, moving=second)
            self.owe(WEIGHT_GRAD, 1, logits, gate=True, moving=second)
            self.owe(WEIGHT_GRAD, 2, reads, hidden, gate=True, moving=first)
            self.owe(WEIGHT_GRAD, 1, hidden, gate=True, moving=first)
        if wants.dx:
            open_inputs = self.wanted(reads, shape[0])
            self.owe(INPUT_GRAD, 2, open_inputs, hidden, gate=True, moving=1 + wants.dw)
            self.owe(INPUT_GRAD, pool, open_inputs, gate=True, moving=1)


class _Body(NamedTuple):
    """The channels a gated body computes forward, and those that live backward."""

    writes: Count
    live: Count


class _Wants(NamedTuple):
    """Which gradients a layer owes: of its input, of its parameters."""

    dx: bool
    dw: bool
