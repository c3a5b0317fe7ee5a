"""From a plan to a compiled program (`program.py`): one row for each step, and where everything lies.

Networks with layers that programs have no operation for have no program: the layers run instead, and the
first use says so.

Source: mathematics.md §2.3b. Derived.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import pairwise
from multiprocessing import parent_process
from typing import Any

import numpy as np

from refimpl.kernels import operation as code
from refimpl.kernels.arrays import INDICES, INTS
from refimpl.kernels.jit import USE_TILE
from refimpl.kernels.operation import NOWHERE, blank
from refimpl.kernels.shaping import Shaping
from refimpl.kernels.sparse_tables import Geometry, tables_of
from refimpl.nn.context import Context, Gating
from refimpl.nn.gate import Decide, Gated
from refimpl.nn.joins import Add, Fork, Product
from refimpl.nn.layers import BatchNorm2d, Block, Conv2d, Layer, Linear, Normalisation
from refimpl.nn.network import Network
from refimpl.nn.norms import FrozenNorm2d, GroupNorm
from refimpl.nn.plan import NONE, Step, every_layer, plan
from refimpl.nn.pointwise import LeakyReLU, Pointwise, ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d, Window
from refimpl.nn.program import Program
from refimpl.nn.weightmask import WeightMask

MODES = {"hard": code.HARD, "gumbel": code.GUMBEL, "ste": code.STE, "soft": code.SOFT}
KINDS: dict[type, int] = {
    Conv2d: code.CONV,
    Linear: code.LINEAR,
    BatchNorm2d: code.BATCH_NORM,
    GroupNorm: code.GROUP_NORM,
    FrozenNorm2d: code.FROZEN_NORM,
    ReLU: code.RELU,
    LeakyReLU: code.LEAKY,
    Softplus: code.SOFTPLUS,
    Tanh: code.TANH,
    MaxPool2d: code.MAX_POOL,
    AvgPool2d: code.AVERAGE_POOL,
    GlobalAvgPool2d: code.GLOBAL_POOL,
    Flatten: code.NOTHING,
    Fork: code.FORK,
    Add: code.ADD,
    Decide: code.DECIDE,
    Product: code.PRODUCT,
}


def uncompiled(network: Network) -> str:
    """The kinds of layers in the network that programs have no operation for; empty where all have one."""
    layers = [layer for layer in every_layer(network.layers) if not isinstance(layer, Block)]
    return ", ".join(sorted({type(layer).__name__ for layer in layers if type(layer) not in KINDS}))


@cache  # the same line is not said again
def _say_slow(name: str, kinds: str) -> None:
    """Log, once, that a network runs layer by layer. Workers stay silent: their parent has logged it."""
    if parent_process() is None:
        logging.getLogger("refimpl").warning(
            "refimpl: the network %s runs layer by layer, several times slower than compiled, because "
            "compiled programs have no operation for its %s (refimpl/nn/lowering.py)", name, kinds,
        )  # fmt: skip


def lower(
    network: Network, gating: Gating, train: tuple[str, ...], weights: WeightMask | None = None
) -> Program | None:
    """The network's program for a gating, trained parts and kept weights; None where the layers must run.

    Programs are made of the fast kernels: with REFIMPL_KERNELS=plain there are none. No program depends on
    the temperature, nor on how strongly gates are shaped.
    """
    usual = replace(gating, tau=1.0, shaping=Shaping(float(gating.shaping.weight > 0)))
    return _lower(network, usual, train, weights)


@lru_cache(maxsize=64)
def _lower(
    network: Network, gating: Gating, train: tuple[str, ...], weights: WeightMask | None
) -> Program | None:
    if not USE_TILE:
        return None
    lacking = uncompiled(network)
    if lacking:
        _say_slow(network.name, lacking)
        return None
    return _Lowering(network, Context(gating, train, weights=weights)).program()


def pooling_first(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers with each ReLU behind the max-pooling that follows it: the same bits from less work.

    max(relu(x)) = relu(max(x)), and where that is positive both orders choose the same first maximum; where
    it is not, ReLU's derivative is 0 in both. Behind batch normalisation ReLU costs nothing where it is.
    """
    out = [
        replace(layer, body=pooling_first(layer.body)) if isinstance(layer, Gated) else layer
        for layer in layers
    ]
    for i in range(len(out) - 1):
        free = i > 0 and isinstance(out[i - 1], BatchNorm2d)
        if isinstance(out[i], ReLU) and isinstance(out[i + 1], MaxPool2d) and not free:
            out[i], out[i + 1] = out[i + 1], out[i]
    return tuple(out)


class _Lowering:
    """Gives every value and every gradient of the plan its place, then writes the rows."""

    def __init__(self, network: Network, context: Context) -> None:
        self.network, self.routing, self.weights = network, context.routing, context.weights
        self.shapes = context.shapes_gates
        self.kept = [np.empty(0, INTS)]
        self.steps = plan(pooling_first(network.layers), network.input_shape, self.routing)
        self.widths = [block.gate.out_channels for block in network.gates]
        self.size = self.where = self.wide = 0
        self.bent = dict(self.activations())
        self.values = {0: self.reserve(math.prod(network.input_shape))}
        self.last = self.last_readers()
        self.busy = [(0, self.size, self.last[0])]
        for step in self.steps:
            self.values[step.output] = self.value_place(step)
        self.slopes = {len(self.steps): self.values[len(self.steps)]}
        for step in reversed(self.steps):
            self.place_gradients(step)

    def reserve(self, size: int) -> int:
        """`size` entries per sample for a value, its gradient, or both."""
        self.size += size
        return self.size - size

    def value_place(self, step: Step) -> int:
        """Where the output lies: in the place of the input, if the step changes that in place.

        Where nothing is trained, a value may take the place of earlier ones that no later step reads.
        """
        if self.in_place(step):
            return self.values[step.inputs[0]]
        size, at = math.prod(step.result), 0
        if self.routing.train:
            return self.reserve(size)
        self.busy = sorted(value for value in self.busy if value[2] >= step.output)
        for start, stop, _ in self.busy:
            if at + size <= start:
                break
            at = max(at, stop)
        self.busy.append((at, at + size, self.last[step.output]))
        self.size = max(self.size, at + size)
        return at

    def in_place(self, step: Step) -> bool:
        """Whether the output takes the place of the input."""
        skipped = isinstance(step.layer, Product) and step.reads != NONE
        return skipped or self.fused(step) or isinstance(step.layer, (Flatten, Fork))

    def last_readers(self) -> dict[int, int]:
        """The output of the last step that reads each value, or what is made of it in its place."""
        last = {len(self.steps): len(self.steps) + 1}
        for step in reversed(self.steps):
            for number in step.inputs:
                last[number] = max(last.get(number, 0), step.output)
            if self.in_place(step):
                last[step.inputs[0]] = max(last[step.inputs[0]], last[step.output])
        return last

    def activations(self) -> Iterator[tuple[int, float]]:
        """The values whose operation also does the activation that follows, and its slope below zero.

        The operation is a batch normalisation, a sum, or, where nothing is trained, a convolution.
        """
        for step, after in pairwise(self.steps):
            kinds: tuple[type, ...] = (BatchNorm2d, Add, *(() if self.routing.train else (Conv2d,)))
            alone = step.writes == NONE and sum(step.output in other.inputs for other in self.steps) == 1
            if type(step.layer) in kinds and after.inputs == (step.output,) and alone:
                if isinstance(after.layer, ReLU):
                    yield step.output, 0.0
                elif isinstance(after.layer, LeakyReLU) and after.layer.slope >= 0:
                    yield step.output, after.layer.slope

    def fused(self, step: Step) -> bool:
        """Whether the step is an activation that the operation before it does."""
        return step.inputs[0] in self.bent and isinstance(step.layer, (ReLU, LeakyReLU))

    def place_gradients(self, step: Step) -> None:
        """Where the gradients of the inputs lie: with that of the output, if they are the same numbers."""
        product = isinstance(step.layer, Product)
        for position, number in enumerate(step.inputs):
            if not step.needs[position] or number in self.slopes:
                continue
            if (
                self.fused(step)
                or isinstance(step.layer, (Add, Flatten))
                or (product and position == 0 and not self.routing.smooth)
            ):
                self.slopes[number] = self.slopes[step.output]
            elif number and isinstance(self.steps[number - 1].layer, Fork):
                self.slopes[number] = self.reserve(math.prod(step.shape))
            else:
                self.slopes[number] = self.values[number]

    def program(self) -> Program:
        """The rows, and what they need."""
        rows = [self.row(step) for step in self.steps]
        unmasked = [r for r in rows if r["kind"] == code.LINEAR and r["reads"] == r["dy_mask"] == NOWHERE]
        if learning := [row for row in unmasked if row["need_dw"] and self.whole(row)]:
            max(learning, key=lambda row: row["input"][0] * row["output"][0])["steps"] = True
        operations = blank(len(rows))
        for operation, row in zip(operations, rows, strict=True):
            for name, value in row.items():
                operation[name] = value
        widest = max(self.widths, default=1)
        return Program(
            operations,
            self.size,
            sum(self.widths),
            self.where,
            len(self.widths),
            widest,
            self.wide,
            self.network.mixes_samples or self.shapes,
            *self.first_gate(),
            self.untouched(),
            np.concatenate(self.kept),
            np.empty(0, INDICES) if self.weights is None else np.flatnonzero(~self.weights.kept),
        )

    def untouched(self) -> tuple[slice, ...]:
        """The entries of w whose gradients no operation writes: untrained ones, or unused."""
        learning = {p for step in self.steps if step.need_dw for p in step.layer.parameters()}
        written = {p.name for p in learning if p.part in self.routing.train}
        return tuple(slice(s.start, s.stop) for s in self.network.layout.slots if s.name not in written)

    def first_gate(self) -> tuple[int, int]:
        """How many operations are in front of the first gate's own, and how many up to its product.

        The latter counts only where what reads the product skips closed channels, whose values may then be
        anything; elsewhere it is the former.
        """
        own = [at for at, step in enumerate(self.steps) if step.gate != NONE]
        if not own:
            return 0, 0
        product = next(at for at in own if isinstance(self.steps[at].layer, Product))
        mask = self.steps[product].writes
        skips = mask != NONE and all(
            step.reads == mask and isinstance(step.layer, (Conv2d, Linear, GlobalAvgPool2d))
            for step in self.readers(product + 1)
        )
        return own[0], product if skips else own[0]

    def readers(self, number: int) -> Iterator[Step]:
        """The steps that read a value, under whatever shape or name."""
        for step in self.steps:
            if number in step.inputs:
                if isinstance(step.layer, (Flatten, Fork)):
                    yield from self.readers(step.output)
                else:
                    yield step

    def mask(self, gate: int) -> int:
        """The place of a gate's mask."""
        return NOWHERE if gate == NONE else sum(self.widths[:gate])

    def row(self, step: Step) -> dict[str, Any]:
        """The operation of a step."""
        layer, (first, *second) = step.layer, step.inputs
        row: dict[str, Any] = {
            "kind": code.NOTHING if self.fused(step) else KINDS[type(layer)],
            "input": _three(step.shape), "output": _three(step.result),
            "x": self.values[first], "y": self.values[step.output], "dx": self.gradient(step, 0),
            "dy": self.slopes.get(step.output, self.values[step.output]), "reads": self.mask(step.reads),
            "writes": self.mask(step.writes), "dy_mask": self.mask(step.dy_mask),
            "dx_mask": self.mask(step.dx_mask), "need_dw": step.need_dw, "gate": step.gate,
            "groups": step.shape[0] if step.reads == NONE else self.widths[step.reads],
            "below": self.bent.get(step.output, 1.0), "learns": step.learns,
        }  # fmt: skip
        if second:
            row |= {"x2": self.values[second[0]], "dx2": self.gradient(step, 1)}
        for parameter in layer.parameters():  # `<layer>.weight`, `<layer>.bias`
            row[parameter.name.rsplit(".", 1)[1]] = self.network.layout.by_name[parameter.name].start
        if isinstance(layer, (Conv2d, Window)):
            row |= {"window": layer.window, "stride": layer.step, "pad": layer.pad}
        return row | self.particulars(step)

    def gradient(self, step: Step, position: int) -> int:
        """Where the gradient of an input goes."""
        return self.slopes[step.inputs[position]] if step.needs[position] else NOWHERE

    def particulars(self, step: Step) -> dict[str, Any]:
        """What only operations of this kind have."""
        layer, size = step.layer, math.prod(step.result)
        if isinstance(layer, Conv2d):  # what reads closed channels of a body's first layer skips them
            after = self.steps[step.output] if step.output < len(self.steps) else step
            skipped = (
                step.writes != NONE and after.writes == step.writes and not isinstance(after.layer, Product)
            )
            own = {"dilation": layer.spacing, "parts": layer.groups}
            return own | {"clears": not skipped or layer.channelwise} | self.pruning(step)
        if isinstance(layer, Normalisation):
            dx, frozen = self.gradient(step, 0), isinstance(layer, FrozenNorm2d)
            wide = 0 if frozen else layer.groups if isinstance(layer, GroupNorm) else 2 * layer.channels
            self.wide += wide
            row = {
                "number": layer.eps, "wide": self.wide - wide,
                "own": self.reserve(size) if isinstance(layer, GroupNorm) else self.values[step.output],
                "dx": self.reserve(size) if dx == NOWHERE and step.learns else dx,
            }  # fmt: skip
            grouped = {"groups": wide, "reads": NOWHERE, "dx_mask": NOWHERE}
            return row | (grouped if isinstance(layer, GroupNorm) else {})
        if isinstance(layer, Pointwise):  # a mask may stand for groups of features
            groups = step.result[0] if step.writes == NONE else self.widths[step.writes]
            view = dict.fromkeys(("input", "output"), (groups, size // groups, 1))
            return view | ({"number": layer.slope} if isinstance(layer, LeakyReLU) else {})
        if isinstance(layer, (Flatten, Fork)):  # whole vectors, whatever is open
            whole = dict.fromkeys(("input", "output"), (size, 1, 1))
            return whole | dict.fromkeys(("writes", "dy_mask"), NOWHERE)
        if isinstance(layer, MaxPool2d):
            self.where += size
            return {"own": self.where - size}
        if isinstance(layer, Decide):
            self.wide += self.shapes
            wide = self.wide - 1 if self.shapes else NOWHERE
            return {"own": self.reserve(size * (1 + self.shapes)), "mask": self.mask(step.gate), "wide": wide}
        return {}

    def whole(self, row: dict[str, Any]) -> bool:
        """Whether no weight of a linear layer is pruned."""
        size = row["input"][0] * row["output"][0]
        return self.weights is None or bool(self.weights.kept[row["weight"] : row["weight"] + size].all())

    def pruning(self, step: Step) -> dict[str, Any]:
        """The tables of a convolution that has lost weights; where channels are gated it is as if dense."""
        layer, weights = step.layer, self.weights
        kept = layer.kept(weights)
        if weights is None or kept is None or step.reads != NONE or step.dy_mask != NONE:
            return {}
        free = step.writes == step.dx_mask == NONE
        self.kept += tables_of(kept, Geometry((step.shape[1], step.shape[2]), layer.step, layer.pad))
        ends = np.cumsum([table.size for table in self.kept])[-3:].tolist()
        return {
            **dict(zip(("kept", "kept_back", "kept_end"), ends, strict=True)),
            "sparse": free and kept.mean() < weights.sparse_below,
        }


def _three(shape: Sequence[int]) -> tuple[int, int, int]:
    """A sample's shape as (channels, height, width)."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)
