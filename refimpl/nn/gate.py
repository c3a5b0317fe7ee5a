"""Channel gates: small MLPs that look at a layer's input and switch its output channels per sample.

Source: mathematics.md §2.2 (the gate), §2.3 (modes), §2.3b (back-propagation and skipping), §2.3c (shaping);
[MG] section 3.1 and appendix F. The order of the two logits (off, on) is reconstructed.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import activation
from refimpl.kernels.arrays import check_like, tidy
from refimpl.kernels.shaping import shape_gates
from refimpl.nn.chain import chain_parameters, chain_shape
from refimpl.nn.context import Context, FixedShare
from refimpl.nn.layers import (
    Arrays,
    Back,
    BatchNorm2d,
    Conv2d,
    Flow,
    Layer,
    Linear,
    Mask,
    Normalisation,
    Plain,
    Shape,
    expect_sizes,
)
from refimpl.nn.layout import Parameter
from refimpl.nn.plan import Planner, Value
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import GlobalAvgPool2d
from refimpl.nn.run import PlannedBlock

HIDDEN_UNITS = 16  # [MG] section 3.1
OPEN_MARGIN = 0.5  # initial b2 = (-0.5, +0.5): d starts near 1, every channel on
LOGIT_STD = 0.01  # initial A2: hidden norms reach some 10, and every d must stay well above 0


class Decision(NamedTuple):
    """What a gate decided.

    mask: bool (N,K) for 0/1 modes, float (N,K) for smooth ones; slope: dM/dd (N,K); relaxed: the smooth
    function of d (plus noise) whose derivative `slope` is;
    summary (N,C), hidden (N,16): what the MLP made of the input; shaping: N times what batch-shaping adds to
    the loss (§2.3c), pull (N,K): its gradient in d, empty if it adds nothing.
    """

    mask: np.ndarray
    slope: np.ndarray
    relaxed: np.ndarray
    summary: np.ndarray = np.empty(0)
    hidden: np.ndarray = np.empty(0)
    shaping: float = 0.0
    pull: np.ndarray = np.empty(0)


@dataclass(frozen=True)
class Decide(Plain):
    """Logits (N,2K) of a gate -> its decision for K channels: on iff d = z_on - z_off > 0."""

    name: str
    decides: ClassVar[bool] = True

    def output_shape(self, shape: Shape) -> Shape:
        """Two logits for each channel."""
        return (shape[0] // 2,)

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[Decision, Mask, Decision]:
        """The decision, and its mask where that is 0/1."""
        context, margin = flow.context, x[:, 1::2] - x[:, 0::2]
        shaping, pull = 0.0, np.empty(0)
        if context.shapes_gates:
            pull = np.empty_like(margin)
            shaping = shape_gates.kernel(margin, context.gating.tau, context.gating.shaping, pull)
        if context.gating.mode == "gumbel":
            margin = margin + self._noise(margin, context)
        decision = self._decide(margin, context)._replace(shaping=shaping, pull=pull)
        return decision, decision.mask if decision.mask.dtype == np.bool_ else None, decision

    def _noise(self, margin: np.ndarray, context: Context) -> np.ndarray:
        given = context.noise.get(self.name)
        if given is None and isinstance(context.gating, FixedShare):
            given = context.gating.noise(self.name, *margin.shape)
        noise = tidy(given)
        if noise.dtype.kind not in "iuf" or noise.shape != margin.shape:
            got = "none" if given is None else f"shape {noise.shape} and {noise.dtype}"
            raise InputError(
                f"{self.name}: mode 'gumbel' needs noise of shape {margin.shape}, got {got}; "
                "draw it with draw_gate_noise(network, batch, rng, dtype)"
            )
        return noise.astype(margin.dtype, copy=False)

    def _decide(self, margin: np.ndarray, context: Context) -> Decision:
        """Value and derivative of M as the table of §2.3 has them, and the relaxation behind them."""
        gating = context.gating
        relaxed, slope = np.empty_like(margin), np.empty_like(margin)
        activation.sigmoid_scaled.kernel(margin, gating.tau, relaxed, slope)
        if gating.mode == "ste":
            relaxed, slope = margin, np.ones_like(margin)
        anchor = context.anchors.get(self.name)
        if anchor is not None:
            return Decision(anchor.offset + anchor.gain * relaxed, anchor.gain * slope, relaxed)
        if gating.mode == "soft":
            return Decision(relaxed, slope, relaxed)
        return Decision(~(margin <= 0), slope, relaxed)

    def backward(
        self, dy: np.ndarray, cache: Decision, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray:
        """Gradient of the logits (N,2K) from dL/dM (N,K)."""
        dmask = tidy(dy)
        check_like(self.name, "dmask", dmask, cache.slope)
        dmargin = dmask * cache.slope
        return to_logits(dmargin + cache.pull if cache.pull.size else dmargin)


def to_logits(dmargin: np.ndarray) -> np.ndarray:
    """Gradient of (z_off, z_on) pairs from that of d = z_on - z_off."""
    dlogits = np.empty((dmargin.shape[0], 2 * dmargin.shape[1]), dtype=dmargin.dtype)
    dlogits[:, 0::2] = -dmargin
    dlogits[:, 1::2] = dmargin
    return dlogits


@dataclass(frozen=True)
class ChannelGate:
    """s = channel means of x; hidden = relu(A1 s + b1); (z_off, z_on) = A2 hidden + b2; on iff d > 0.

    name: its parameters are <name>.fc1.weight and so on; in_channels, out_channels: those of the layer that
    it gates; hidden: units of its hidden layer; norm: what s goes through before A1, if anything, with
    parameters that belong to the gate (§2.2c). Row 2c of A2 is channel c's off logit, row 2c+1 its on logit;
    d = z_on - z_off. Where d is NaN the gate cannot decide: the channel counts as on, and all its values are
    NaN, in every mode (`Gated`).
    """

    name: str
    in_channels: int
    out_channels: int
    hidden: int = HIDDEN_UNITS
    norm: Normalisation | None = None

    def __post_init__(self) -> None:
        expect_sizes(self.name, self.in_channels, self.out_channels, self.hidden)

    def layers(self, shape: Shape) -> tuple[Layer, ...]:
        """The gate as layers on samples of `shape`; a vector is its own summary."""
        pool = (GlobalAvgPool2d(),) if len(shape) == 3 else ()
        return (*pool, *self._norms(), *self._mlp(), Decide(self.name))

    def _norms(self) -> tuple[Normalisation, ...]:
        return () if self.norm is None else (self.norm,)

    def _mlp(self) -> tuple[Linear, ReLU, Linear]:
        first = Linear(f"{self.name}.fc1", self.in_channels, self.hidden, part="phi")
        return first, ReLU(), Linear(f"{self.name}.fc2", self.hidden, 2 * self.out_channels, part="phi")

    def parameters(self) -> tuple[Parameter, ...]:
        """`fc1` (A1, b1) and `fc2` (A2, b2) of part phi, and the norm's; b2 starts every channel open."""
        first, _, second = self._mlp()
        weight, bias = second.parameters()
        margin = (-OPEN_MARGIN, OPEN_MARGIN)
        norms = (parameter for norm in self._norms() for parameter in norm.parameters())
        return (*norms, *first.parameters(), replace(weight, std=LOGIT_STD), replace(bias, fill=margin))


@dataclass(frozen=True)
class Gated(PlannedBlock):
    """A layer with its gate: y = M(x) * body(x), body = (conv or linear, activation[, pooling]).

    All layers of the body act channel by channel after the first; so a closed channel can be skipped
    from the convolution on, and the block's output mask is the next layer's input mask. What a gate cannot
    decide (a sample or a parameter holds NaN) comes out as NaN, as an arithmetic M(x) would have it.
    """

    gate: ChannelGate
    body: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if any(isinstance(layer, BatchNorm2d) for layer in self.body):
            raise InputError(
                f"{self.gate.name}: batch normalisation cannot be inside a gated body (its statistics "
                "need the samples that are skipped); put it before the gated layer, or use FrozenNorm2d"
            )
        if not isinstance(self.body[0] if self.body else None, (Conv2d, Linear)) or not all(
            layer.channelwise for layer in self.body[1:]
        ):
            kinds = ", ".join(type(layer).__name__ for layer in self.body) or "nothing"
            raise InputError(
                f"{self.gate.name}: a gated body is one convolution or linear layer followed by layers that "
                "treat channels one by one (activation, pooling, depthwise convolution), got "
                f"{kinds}; gate each layer by itself, and flatten behind the gated block"
            )

    @property
    def inner(self) -> tuple[Layer, ...]:
        """The layers of the body."""
        return self.body

    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of the body and of the gate."""
        return chain_parameters(self.body) + self.gate.parameters()

    def output_shape(self, shape: Shape) -> Shape:
        """The body's output shape; its channels must be the gate's."""
        out = chain_shape(self.body, shape)
        if (shape[0], out[0]) != (self.gate.in_channels, self.gate.out_channels):
            wanted = (self.gate.in_channels, self.gate.out_channels)
            raise InputError(
                f"{self.gate.name}: sized for channels {wanted}, but the body has {shape[0], out[0]}"
            )
        return out

    def expand(self, planner: Planner, x: Value) -> Value:
        """Gate, body and product."""
        self.output_shape(x.shape)  # raises unless the gate fits
        return planner.gated(self.gate, self.body, x)
