"""From layer specs to a compiled program (`kernels/program.py`): where everything lies, what is skipped.

The routing of masks is that of `chain.py` and `gate.py` (mathematics.md §2.3b), written down once per
network and setting instead of once per call. Networks with layers a program has no operation for
(residual blocks, batch normalisation, bias-free convolutions) have no program: the layers run instead.

Source: mathematics.md §2.3b. Derived.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refimpl.kernels import operation as code
from refimpl.kernels import tiled_linear
from refimpl.kernels.arrays import INTS
from refimpl.kernels.jit import USE_TILE
from refimpl.kernels.operation import NOWHERE, Activations, Workspace
from refimpl.kernels.tiled_conv import convolve_scratch
from refimpl.kernels.tiled_weight_grad import weight_grad_scratch
from refimpl.kernels.workspace import scratch, scratch_array
from refimpl.nn.context import Context, Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import Conv2d, Layer, Linear, Shape
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

MODES = {"hard": code.HARD, "gumbel": code.GUMBEL, "ste": code.STE, "soft": code.SOFT}
ELEMENTWISE = {ReLU: code.RELU, Softplus: code.SOFTPLUS, Tanh: code.TANH, GlobalAvgPool2d: code.GLOBAL_POOL}
POOLS = {MaxPool2d: code.MAX_POOL, AvgPool2d: code.AVERAGE_POOL}


# Activations at work at a time, measured on 32x32 images. Gradients: 3 to 10 MB are equally good (weight
# gradients cost something for each part). Without them: what the second-level cache holds; 7 MB take up to
# 1.1 times as long.
TRAINING_BYTES = 7 << 20
PREDICTION_BYTES = 3 << 19


class Tensor(NamedTuple):
    """Places of an activation per sample: value, gradient (NOWHERE: not wanted), mask; and mask columns."""

    value: int
    gradient: int
    mask: int
    groups: int


@dataclass(frozen=True)
class Program:
    """A network's operations and the workspace they need, in entries per sample."""

    operations: np.ndarray  # records `OPERATION`
    values: int
    masks: int
    where: int
    gates: int
    widest_gate: int
    before_gate: int = 0  # operations in front of the first gate's decision
    through_gate: int = 0  # operations up to the first gate's product, where closed channels may be anything
    needs: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # known sizes of scratch

    def part(self, batch: int, dtype: Any, gradients: bool) -> int:
        """How many of `batch` samples to treat at a time: equal parts whose activations the cache holds."""
        size = self.values * np.dtype(dtype).itemsize * (2 if gradients else 1)
        held = TRAINING_BYTES if gradients else PREDICTION_BYTES
        parts = math.ceil(batch / max(1, held // size))
        return math.ceil(batch / parts)

    def workspace(self, batch: int, dtype: Any, own: Activations | None = None) -> Workspace:
        """This thread's workspace for `batch` samples at a time, around the `own` activations if given.

        Raises InputError where the batch is too large for the kernels' tables.
        """
        dtype = np.dtype(dtype)
        key = (batch, dtype.itemsize)
        if key not in self.needs:
            self.needs[key] = _scratch(self.operations.view(np.recarray), *key)
        values, masks, where = own or (
            scratch_array("values", dtype, self.values * batch),
            scratch_array("masks", np.dtype(np.bool_), max(1, self.masks * batch)),
            scratch_array("where", INTS, max(1, self.where * batch)),
        )
        slopes = scratch_array("slopes", dtype, self.values * batch)
        return Workspace(values, slopes, masks, where, *scratch(dtype, *self.needs[key]))

    def stack_noise(self, steps: Sequence[Mapping[str, np.ndarray]], batch: int, dtype: Any) -> np.ndarray:
        """Noise by gate name for every step, as one array (steps, batch, gates, widest gate)."""
        noise = np.zeros((len(steps), batch, max(1, self.gates), self.widest_gate), dtype=dtype)
        for step, by_name in enumerate(steps):
            for gate, values in enumerate(by_name.values()):  # in the order of the network's gates
                noise[step, :, gate, : values.shape[1]] = values
        return noise


def _scratch(operations: np.recarray, batch: int, itemsize: int) -> tuple[int, int]:
    """Entries (floats, ints) that the kernels of the operations need for `batch` samples."""
    needs = [(1, 1)]
    for op in operations:
        channels, filters = int(op.input[0]), int(op.output[0])
        if op.kind == code.CONV:
            size, result = tuple(op.input[1:].tolist()), tuple(op.output[1:].tolist())
            window, stride, pad = (tuple(field.tolist()) for field in (op.window, op.stride, op.pad))
            needs += [
                convolve_scratch(channels, filters, window, stride, result, itemsize),
                convolve_scratch(filters, channels, window, stride, size, itemsize),
                weight_grad_scratch(channels, filters, window, stride, pad, size, result, itemsize),
            ]
        elif op.kind == code.LINEAR:
            needs.append(tiled_linear.scratch(batch, channels, filters, itemsize))
        elif op.kind == code.DECIDE:
            hidden = int(op.hidden)
            needs.append(tiled_linear.scratch(batch, channels, hidden, itemsize))
            needs.append(tiled_linear.scratch(batch, hidden, 2 * filters, itemsize))
    return max(need[0] for need in needs), max(need[1] for need in needs)


class Unsupported(Exception):
    """The network has a layer that programs have no operation for."""


@lru_cache(maxsize=64)
def lower(network: Network, gating: Gating, train: tuple[str, ...]) -> Program | None:
    """The network's program for a gating and trained parts; None where the layers must run instead.

    Programs are made of the fast kernels: with REFIMPL_KERNELS=plain there are none.
    """
    if not USE_TILE:
        return None
    try:
        return _Lowering(network, Context(gating, train)).program()
    except Unsupported:
        return None


def pooling_first(layers: Sequence[Layer]) -> list[Layer]:
    """The layers with each ReLU behind the max-pooling that follows it: the same bits from less work.

    max(relu(x)) = relu(max(x)), and where that is positive both orders choose the same first maximum; where
    it is not, ReLU's derivative is 0 in both.
    """
    out = list(layers)
    for i in range(len(out) - 1):
        if isinstance(out[i], ReLU) and isinstance(out[i + 1], MaxPool2d):
            out[i], out[i + 1] = out[i + 1], out[i]
    return out


class _Lowering:
    """Walks the layers once, placing values, masks and gradients as it goes."""

    def __init__(self, network: Network, context: Context) -> None:
        self.network = network
        self.context = context
        self.rows: list[dict[str, Any]] = []
        self.values = 0
        self.masks = 0
        self.where = 0
        self.smooth = context.gating.mode == "soft"
        self.gate_ends: list[tuple[int, int]] = []  # of every gate, its decision's and its product's number
        self.gate_numbers = {block.gate.name: i for i, block in enumerate(network.gates)}

    def program(self) -> Program:
        """Lower the whole network."""
        shape = self.network.input_shape
        x = Tensor(self.place(math.prod(shape)), NOWHERE, NOWHERE, shape[0])
        trained = False
        for layer in pooling_first(self.network.layers):
            x, trained = self.layer(layer, shape, x, trained, NOWHERE, NOWHERE)
            shape = layer.output_shape(shape)
        widest = max((block.gate.out_channels for block in self.network.gates), default=1)
        operations = np.zeros(len(self.rows), dtype=code.OPERATION)
        for operation, row in zip(operations, self.rows, strict=True):
            for name, value in row.items():
                operation[name] = value
        return Program(
            operations,
            self.values,
            self.masks,
            self.where,
            len(self.network.gates),
            widest,
            *self.first_gate(),
        )

    def first_gate(self) -> tuple[int, int]:
        """How many operations are in front of the first gate's decision, and how many up to its product.

        The latter counts only where what reads the product skips closed channels, whose values may then be
        anything; elsewhere it is the former.
        """
        if not self.gate_ends:
            return 0, 0
        decision, product = self.gate_ends[0]
        skips = any(
            row["kind"] in (code.CONV, code.LINEAR, code.DECIDE)
            and row["reads"] == self.rows[decision]["mask"]
            for row in self.rows[product + 1 : product + 2]
        )
        return decision, product if skips else decision

    def place(self, size: int) -> int:
        """Reserve `size` entries per sample for a value and its gradient."""
        at = self.values
        self.values += size
        return at

    def trains(self, layer: Layer | ChannelGate) -> bool:
        """Whether the layer has trained parameters."""
        return any(parameter.part in self.context.train for parameter in layer.parameters())

    def wanted(self, x: Tensor) -> int:
        """Mask of the channels of an input's gradient that are computed."""
        return NOWHERE if self.context.closed_channels_matter else x.mask

    def layer(
        self, layer: Layer, shape: Shape, x: Tensor, trained: bool, writes: int, body_mask: int
    ) -> tuple[Tensor, bool]:
        """Lower one layer reading x; `writes`: channels computed, `body_mask`: a gated body's dy mask."""
        if isinstance(layer, Gated):
            return self.gated(layer, shape, x, trained)
        if isinstance(layer, Flatten):
            return x, trained
        inside = body_mask != NOWHERE
        row = self.row(layer, shape, x, trained, writes)
        keeps = writes if writes != NOWHERE else x.mask if layer.keeps_zero else NOWHERE
        if not isinstance(layer, (Conv2d, Linear)):
            row["writes"] = keeps
        row["dy_mask"] = body_mask if inside else self.wanted(x) if layer.keeps_zero else NOWHERE
        row["dx_mask"] = self.wanted(x)
        self.rows.append(row)
        size = int(np.prod(row["output"]))
        groups = row["output"][0]
        return Tensor(row["y"], row["dy"] if size else NOWHERE, keeps, groups), trained or self.trains(layer)

    def row(self, layer: Layer, shape: Shape, x: Tensor, trained: bool, writes: int) -> dict[str, Any]:
        """The fields every operation has, with the geometry of this layer."""
        out = layer.output_shape(shape)
        y = self.place(math.prod(out))
        row: dict[str, Any] = {
            "input": _three(shape), "output": _three(out), "x": x.value, "y": y, "dy": y, "sign": y,
            "dx": x.gradient if trained else NOWHERE, "reads": x.mask, "writes": writes, "groups": x.groups,
            "need_dw": self.trains(layer), "window": (1, 1), "stride": (1, 1),
        }  # fmt: skip
        slots = self.network.layout.by_name
        if isinstance(layer, Conv2d) and layer.bias:
            row |= {"kind": code.CONV, "window": layer.window, "stride": layer.step, "pad": layer.pad}
            row["clears"] = True
        elif isinstance(layer, Linear):
            row["kind"] = code.LINEAR
        elif x.groups != shape[0]:
            raise Unsupported("an element-wise layer behind a flattened mask")
        elif type(layer) in ELEMENTWISE:
            row["kind"] = ELEMENTWISE[type(layer)]
        elif isinstance(layer, (MaxPool2d, AvgPool2d)):
            geometry = {"window": layer.window, "stride": layer.step, "spare": self.where}
            row |= {"kind": POOLS[type(layer)], **geometry}
            self.where += math.prod(out) if isinstance(layer, MaxPool2d) else 0
        else:
            raise Unsupported(type(layer).__name__)
        if isinstance(layer, (Conv2d, Linear)):
            row |= {"weight": slots[f"{layer.name}.weight"].start, "bias": slots[f"{layer.name}.bias"].start}
        return row

    def gated(self, block: Gated, shape: Shape, x: Tensor, trained: bool) -> tuple[Tensor, bool]:
        """Decision, body, product; the decision comes first, so its gradient is added to dx last."""
        context, out = self.context, block.output_shape(shape)
        mask = self.masks
        self.masks += block.gate.out_channels
        skip = not self.smooth and not context.closed_channels_matter
        binary = NOWHERE if self.smooth else mask
        decide, decided = self.decide(block.gate, shape, x, trained, mask), len(self.rows)
        self.rows.append(decide)
        inside, inner, inner_shape = x, trained, shape
        for layer in pooling_first(block.body):
            inside, inner = self.layer(layer, inner_shape, inside, inner, binary if skip else NOWHERE, binary)
            inner_shape = layer.output_shape(inner_shape)
        if self.rows[-1]["kind"] == code.RELU and not isinstance(block.body[-1], ReLU):
            self.rows[-1]["sign"] = self.rows[-1]["x"]  # the product may write NaN over y
        self.gate_ends.append((decided, len(self.rows)))
        if skip and len(self.rows) > decided + 2:  # a layer with the same mask is all that reads the first
            self.rows[decided + 1]["clears"] = False
        y = inside.value if skip else self.place(math.prod(out))
        dy = y if not skip else inside.gradient
        self.rows.append(
            {
                "kind": code.PRODUCT, "input": _three(out), "output": _three(out), "x": inside.value, "y": y,
                "dy": dy, "dx": inside.gradient if self.smooth else dy, "mask": mask, "scales": not skip,
                "spare": decide["spare"] + _gate_scratch(block.gate)[1], "learns": context.gates_learn,
                "reads": NOWHERE, "writes": NOWHERE, "dy_mask": NOWHERE, "dx_mask": NOWHERE,
            }
        )  # fmt: skip
        if not self.smooth:  # the body's gradient is the product's: 0/1 masks are applied by dy_mask
            self.rows[-2]["dy"] = dy
        return Tensor(y, dy, binary, out[0]), trained or self.trains(block)

    def decide(self, gate: ChannelGate, shape: Shape, x: Tensor, trained: bool, mask: int) -> dict[str, Any]:
        """The gate's own row."""
        slots, name = self.network.layout.by_name, gate.name
        learns_input = trained and not self.context.gating.detach_gate_input
        return {
            "kind": code.DECIDE, "input": _three(shape), "output": (gate.out_channels, 1, 1),
            "hidden": gate.hidden, "x": x.value, "dx": x.gradient if learns_input else NOWHERE,
            "weight": slots[f"{name}.fc1.weight"].start, "bias": slots[f"{name}.fc1.bias"].start,
            "weight2": slots[f"{name}.fc2.weight"].start, "bias2": slots[f"{name}.fc2.bias"].start,
            "reads": x.mask, "groups": x.groups, "dx_mask": self.wanted(x), "dy_mask": NOWHERE,
            "writes": NOWHERE, "mask": mask, "gate": self.gate_numbers[name],
            "spare": self.place(_gate_scratch(gate)[0]), "need_dw": "phi" in self.context.train,
            "learns": self.context.gates_learn, "window": (1, 1), "stride": (1, 1),
        }  # fmt: skip


def _three(shape: Sequence[int]) -> tuple[int, int, int]:
    """A sample's shape as (channels, height, width)."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)


def _gate_scratch(gate: ChannelGate) -> tuple[int, int]:
    """Entries per sample a gate keeps, and where among them its mask as floats begins."""
    before = gate.in_channels + 2 * gate.hidden + 3 * gate.out_channels
    return before + 2 * gate.out_channels, before
