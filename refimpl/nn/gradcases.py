"""What `refimpl gradcheck` checks: layers, the loss, and networks in every gate mode and gate gradient.

Source: mathematics.md §2.3, §2.3b. Derived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from refimpl.contracts import Objective
from refimpl.kernels.loss import add_losses
from refimpl.kernels.shaping import Shaping, shape_gates
from refimpl.nn.chain import Residual
from refimpl.nn.context import GATE_GRADS, MODES, Context, Gating
from refimpl.nn.distillation import check_soft_targets, soft_targets
from refimpl.nn.gradcheck import SlotError, check_network, probe, slot_errors
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear, Shape
from refimpl.nn.network import Network, draw_gate_noise
from refimpl.nn.norms import GroupNorm
from refimpl.nn.pointwise import LeakyReLU, ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from refimpl.nn.zoo import network, residual
from refimpl.rng import SeedTree

# Channel counts and images of the large models under --all: each evaluation is done hundreds of times.
NARROW: dict[str, dict[str, Any]] = {
    "cnn3": {"widths": [8, 16, 32], "input_shape": (3, 8, 8)},
    "cnn7": {"widths": [4, 4, 8, 8, 16, 16], "input_shape": (3, 8, 8)},
    "conv4": {"widths": [4, 4, 8, 8], "input_shape": (3, 16, 16)},
    "resnet12": {"widths": [2, 3, 4, 5], "input_shape": (3, 16, 16)},
    "resnet20": {"widths": [2, 3, 4], "input_shape": (3, 8, 8)},
}
# Several straight-through gates in a row make gradients of millions, of which differences say nothing.
ONE_GATE = {"resnet12": ("stage2.conv2",), "resnet20": ("stage2.block1.conv1",)}
GATE_NOISE = 1.0  # added to the initial gate parameters, so that some channels are off
BIAS_NOISE = 0.1  # added to all biases: with zero biases, ReLUs of skipped inputs sit exactly on their kink
Function = tuple[Objective, np.ndarray]  # with the point at which it is checked


class Setting(NamedTuple):
    """A column of a network's table: gate mode and gate gradient, or no gates at all."""

    mode: str
    gate_grad: str

    @property
    def label(self) -> str:
        """Short name: `gumbel/active`, or `ungated`."""
        return f"{self.mode}/{self.gate_grad}" if self.mode else "ungated"


UNGATED = Setting("", "")
SETTINGS = (UNGATED, *(Setting(mode, grad) for mode, grad in product(MODES, GATE_GRADS)))


class Checked(NamedTuple):
    """Errors of one case; `off` is the share of gated channels that were off in it (None: no gates)."""

    case: str
    setting: str
    off: float | None
    errors: list[SlotError]


@dataclass(frozen=True)
class Case:
    """Something to check: check(0), check(1), ... do it at random points, each with a seed of its own."""

    name: str
    setting: str
    check: Callable[[int], Checked]


def layer_cases(seed: int, batch: int, directions: int) -> list[Case]:
    """Every layer, with and without channel masks where it takes them, and the loss."""
    maps: Shape = (3, 6, 6)
    conv = Conv2d("conv", 3, 4, 3, padding=1)
    layers: list[tuple[str, Layer, Shape, bool]] = [
        ("conv", conv, maps, False),
        ("conv masked", conv, maps, True),
        ("conv stride 2", Conv2d("conv", 3, 4, (3, 2), stride=2, padding=(1, 0), bias=False), maps, False),
        ("conv dilated", Conv2d("conv", 3, 4, 3, padding=2, dilation=(2, 1)), maps, True),
        ("conv grouped", Conv2d("conv", 4, 6, 3, padding=1, groups=2), (4, 6, 6), True),
        ("conv depthwise", Conv2d("conv", 3, 3, 3, stride=2, padding=1, groups=3), maps, True),
        ("linear", Linear("linear", 7, 5), (7,), False),
        ("linear masked", Linear("linear", 7, 5), (7,), True),
        ("batch norm", BatchNorm2d("norm", 3), maps, False),
        ("group norm", GroupNorm("norm", 4, groups=2), (4, 6, 6), False),
        ("relu", ReLU(), maps, False),
        ("leaky relu", LeakyReLU(0.1), maps, False),
        ("softplus", Softplus(), maps, False),
        ("tanh", Tanh(), maps, False),
        ("max pool", MaxPool2d(2), maps, False),
        ("max pool overlapping", MaxPool2d(3, 2), maps, False),
        ("max pool padded", MaxPool2d(3, 2, padding=1), maps, True),
        ("average pool", AvgPool2d(2), maps, False),
        ("average pool padded", AvgPool2d(3, 2, padding=(1, 0)), maps, True),
        ("global average pool", GlobalAvgPool2d(), maps, False),
        ("flatten", Flatten(), maps, False),
        ("residual", Residual((conv,), (Conv2d("shortcut", 3, 4, 1),)), maps, False),
    ]
    functions: list[tuple[str, str, Callable[[np.random.Generator], Function]]] = [
        ("loss", "logits", partial(_loss, "loss", 0, batch)),
        ("loss with teachers", "logits", partial(_loss, "loss with teachers", 2, batch)),
        ("batch-shaping", "decisions", partial(_shaping, batch)),
    ]
    errors: dict[str, Callable[[np.random.Generator], list[SlotError]]] = {}
    for name, layer, shape, masked in layers:
        errors[name] = partial(_layer_errors, layer, shape, masked, batch, directions)
    for name, slot, make in functions:
        errors[name] = partial(_function_errors, slot, make, directions)

    def check(name: str, point: int) -> Checked:
        rng = SeedTree(seed).generator(f"gradcheck {name}", point)
        return Checked(name, "layer", None, errors[name](rng))

    return [Case(name, "layer", partial(check, name)) for name in errors]


def _layer_errors(
    layer: Layer, shape: Shape, masked: bool, batch: int, directions: int, rng: np.random.Generator
) -> list[SlotError]:
    """The errors of the gradients of a single layer, with channel masks or without."""
    reads = writes = None
    if masked:
        reads = rng.random((batch, shape[0])) < 0.6
        pooling = not layer.parameters()  # what it reads and writes are the same channels
        writes = reads if pooling else rng.random((batch, layer.output_shape(shape)[0])) < 0.6
    return probe(layer, shape, batch, rng, reads, writes).errors(rng, directions)


def _function_errors(
    slot: str, make: Callable[[np.random.Generator], Function], directions: int, rng: np.random.Generator
) -> list[SlotError]:
    """The errors of the gradient of a function, which make(rng) gives with the point to check it at."""
    objective, u = make(rng)

    def value(at: np.ndarray) -> float:
        return objective(at, np.empty_like(at))

    return slot_errors(objective, value, u, [(slot, slice(0, u.size))], rng, directions)


def _loss(name: str, teachers: int, batch: int, rng: np.random.Generator) -> Function:
    """Softmax cross-entropy, and the divergence from teachers, as a function of the logits."""
    classes, everyone = 5, np.arange(batch)
    labels = rng.integers(classes, size=batch)
    soft = check_soft_targets(name, None, batch, classes, np.float64)
    if teachers:
        soft = soft_targets(3 * rng.standard_normal((teachers, batch, classes)), [0.7] * teachers, 2.5)

    def objective(u: np.ndarray, grad_out: np.ndarray) -> float:
        logits, dlogits = u.reshape(batch, classes), grad_out.reshape(batch, classes)
        return add_losses(0.0, logits, labels, soft, everyone, batch, dlogits) / batch

    return objective, 3 * rng.standard_normal(batch * classes)


def _shaping(batch: int, rng: np.random.Generator) -> Function:
    """What shapes gates, as a function of the decisions of three channels."""

    def objective(u: np.ndarray, grad_out: np.ndarray) -> float:
        decisions, slope = u.reshape(batch, 3), grad_out.reshape(batch, 3)
        return float(shape_gates(decisions, 0.7, Shaping(1.0), slope)) / batch

    return objective, 2 * rng.standard_normal(batch * 3)


def network_cases(
    models: Sequence[str], settings: Sequence[Setting], seed: int, batch: int, directions: int, narrow: bool
) -> list[Case]:
    """Whole networks with their loss: each model in each setting."""
    cases = []
    for model, setting in product(models, settings):
        network = build(model, setting != UNGATED, narrow)
        check = partial(_checked_network, model, network, setting, seed, batch, directions)
        cases.append(Case(model, setting.label, check))
    return cases


def build(model: str, gated: bool, narrow: bool) -> Network:
    """A model of the zoo, or `residual`, at full width or as narrow as `NARROW` says."""
    if model == "residual":
        return residual(gates=("conv2",) if gated else ())
    keys = NARROW.get(model, {}) if narrow else {}
    return network(model, ONE_GATE.get(model) if gated else (), **keys)


def _checked_network(
    model: str, network: Network, setting: Setting, seed: int, batch: int, directions: int, point: int
) -> Checked:
    rng = SeedTree(seed).generator(f"gradcheck {model} {setting.label}", point)
    w = _point(network, rng)
    x = rng.standard_normal((batch, *network.input_shape))
    y = rng.integers(network.classes, size=batch)
    gating = Gating(setting.mode, gate_grad=setting.gate_grad) if setting != UNGATED else Gating()
    noise = draw_gate_noise(network, batch, rng) if setting.mode == "gumbel" else {}
    context = Context(gating, ("theta", "phi"), noise)
    errors = check_network(network, w, x, y, context, rng, directions)
    return Checked(model, setting.label, _off_share(network, w, x, context), errors)


def _point(network: Network, rng: np.random.Generator) -> np.ndarray:
    """Parameters at which gates are mixed and nothing is exactly zero."""
    layout = network.layout
    w = layout.initialise(SeedTree(int(rng.integers(2**32))), "float64")
    for slot in layout.slots:
        size = GATE_NOISE if slot.parameter.part == "phi" else BIAS_NOISE
        if slot.parameter.part == "phi" or len(slot.shape) == 1:
            w[slot.start : slot.stop] += size * rng.standard_normal(slot.stop - slot.start)
    return w


def _off_share(network: Network, w: np.ndarray, x: np.ndarray, context: Context) -> float | None:
    """Share of gated channels that are off (soft masks: below one half)."""
    if not network.gates:
        return None
    masks = network.masks(network.forward(w, x, context)[1])
    return float(np.mean(np.concatenate([mask.ravel() < 0.5 for mask in masks.values()])))
