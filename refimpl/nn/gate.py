"""Channel gates: small MLPs that look at a layer's input and switch its output channels per sample.

Source: mathematics.md §2.2 (the gate), §2.3 (modes), §2.3b (back-propagation and skipping);
[MG] section 3.1 and appendix F. The order of the two logits (off, on) is reconstructed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import activation, linear
from refimpl.kernels.arrays import check_like, tidy, tidy_float
from refimpl.kernels.conv import ALL_ON, or_all_on
from refimpl.nn.chain import Link, chain_backward, chain_forward, chain_parameters, chain_shape
from refimpl.nn.context import Context
from refimpl.nn.layers import (
    Arrays,
    Back,
    BatchNorm2d,
    Conv2d,
    Flow,
    Layer,
    Linear,
    Mask,
    Shape,
    expect_sizes,
)
from refimpl.nn.layout import Parameter, kaiming_std
from refimpl.nn.pointwise import as_maps

HIDDEN_UNITS = 16  # [MG] section 3.1
OPEN_MARGIN = 0.5  # initial b2 = (-0.5, +0.5): d starts near 1, every channel on
LOGIT_STD = 0.01  # initial A2: hidden norms reach some 10, and every d must stay well above 0


class GateCache(NamedTuple):
    """What a decision leaves behind.

    mask: bool (N,K) for 0/1 modes, float (N,K) for smooth ones; slope: dM/dd (N,K); relaxed: the smooth
    function of d (plus noise) whose derivative `slope` is;
    summary (N,C), hidden (N,16): the gate MLP's activations; reads: open channels of the input.
    """

    mask: np.ndarray
    slope: np.ndarray
    relaxed: np.ndarray
    summary: np.ndarray
    hidden: np.ndarray
    reads: Mask


@dataclass(frozen=True)
class ChannelGate:
    """s = channel means of x; hidden = relu(A1 s + b1); (z_off, z_on) = A2 hidden + b2; on iff d > 0.

    Row 2c of A2 is channel c's off logit, row 2c+1 its on logit; d = z_on - z_off. Where d is NaN the gate
    cannot decide: the channel counts as on, and all its values are NaN, in every mode (`Gated`).
    """

    name: str
    in_channels: int
    out_channels: int
    hidden: int = HIDDEN_UNITS

    def __post_init__(self) -> None:
        expect_sizes(self.name, self.in_channels, self.out_channels, self.hidden)

    def parameters(self) -> tuple[Parameter, ...]:
        """`fc1` (A1, b1) and `fc2` (A2, b2), all of part phi; b2 starts every channel open."""
        name = self.name
        first, second = (self.hidden, self.in_channels), (2 * self.out_channels, self.hidden)
        margin = (-OPEN_MARGIN, OPEN_MARGIN)
        return (
            Parameter(f"{name}.fc1.weight", first, "phi", std=kaiming_std(self.in_channels)),
            Parameter(f"{name}.fc1.bias", (self.hidden,), "phi"),
            Parameter(f"{name}.fc2.weight", second, "phi", std=LOGIT_STD),
            Parameter(f"{name}.fc2.bias", (2 * self.out_channels,), "phi", fill=margin),
        )

    def decide(self, params: Arrays, x: np.ndarray, reads: Mask, context: Context) -> GateCache:
        """The mask for input x (N,C,H,W) or (N,C), with what its backward pass needs."""
        summary = x = tidy_float(self.name, "x", x)
        if x.ndim == 4:
            summary = np.empty(x.shape[:2], dtype=x.dtype)
            activation.channel_means(as_maps(x), or_all_on(reads), summary)
        pre = linear.forward(
            summary, params[f"{self.name}.fc1.weight"], params[f"{self.name}.fc1.bias"], reads
        )
        hidden = np.empty_like(pre)
        activation.relu_forward.kernel(as_maps(pre), ALL_ON, as_maps(hidden))
        logits = linear.forward(hidden, params[f"{self.name}.fc2.weight"], params[f"{self.name}.fc2.bias"])
        margin = logits[:, 1::2] - logits[:, 0::2]
        if context.gating.mode == "gumbel":
            margin = margin + self._noise(margin, context)
        mask, slope, relaxed = self._mask(margin, context)
        return GateCache(mask, slope, relaxed, summary, hidden, reads)

    def _noise(self, margin: np.ndarray, context: Context) -> np.ndarray:
        given = context.noise.get(self.name)
        noise = tidy(given)
        if noise.dtype.kind not in "iuf" or noise.shape != margin.shape:
            got = "none" if given is None else f"shape {noise.shape} and {noise.dtype}"
            raise InputError(
                f"{self.name}: mode 'gumbel' needs noise of shape {margin.shape}, got {got}; "
                "draw it with draw_gate_noise(network, batch, rng, dtype)"
            )
        return noise.astype(margin.dtype, copy=False)

    def _mask(self, margin: np.ndarray, context: Context) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value and derivative of M as the table of §2.3 has them, and the relaxation behind them."""
        gating = context.gating
        relaxed, slope = np.empty_like(margin), np.empty_like(margin)
        activation.sigmoid_scaled.kernel(margin, gating.tau, relaxed, slope)
        if gating.mode == "ste":
            relaxed, slope = margin, np.ones_like(margin)
        anchor = context.anchors.get(self.name)
        if anchor is not None:
            return anchor.offset + anchor.gain * relaxed, anchor.gain * slope, relaxed
        if gating.mode == "soft":
            return relaxed, slope, relaxed
        return ~(margin <= 0), slope, relaxed

    def backward(
        self, dmask: np.ndarray, cache: GateCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Write the gate's gradients from dL/dM (N,K); return dL/ds (N,C) if `back.need_dx`."""
        dmask = tidy(dmask)
        check_like(self.name, "dmask", dmask, cache.slope)
        dmargin = dmask * cache.slope
        dlogits = np.empty((dmargin.shape[0], 2 * self.out_channels), dtype=dmargin.dtype)
        dlogits[:, 0::2] = -dmargin
        dlogits[:, 1::2] = dmargin
        dhidden = linear.input_grad(dlogits, params[f"{self.name}.fc2.weight"])
        dpre = np.empty_like(dhidden)
        activation.relu_backward.kernel(as_maps(dhidden), as_maps(cache.hidden), ALL_ON, as_maps(dpre))
        if back.need_dw:
            second = grads[f"{self.name}.fc2.weight"], grads[f"{self.name}.fc2.bias"]
            linear.weight_grad(cache.hidden, dlogits, *second)
            first = grads[f"{self.name}.fc1.weight"], grads[f"{self.name}.fc1.bias"]
            linear.weight_grad(cache.summary, dpre, *first, cache.reads)
        if not back.need_dx:
            return None
        return linear.input_grad(dpre, params[f"{self.name}.fc1.weight"], None, back.dx_mask)


class GatedCache(NamedTuple):
    """A gated block's cache: the decision, the body's caches, the body's output before masking."""

    gate: GateCache
    body: list[Link]
    z: np.ndarray


@dataclass(frozen=True)
class Gated:
    """A layer with its gate: y = M(x) * body(x), body = (conv or linear, activation[, pooling]).

    All layers of the body act channel by channel after the first; so a closed channel can be skipped
    from the convolution on, and the block's output mask is the next layer's input mask. What a gate cannot
    decide (a sample or a parameter holds NaN) comes out as NaN, as an arithmetic M(x) would have it.
    """

    gate: ChannelGate
    body: tuple[Layer, ...]
    keeps_zero: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if any(isinstance(layer, BatchNorm2d) for layer in self.body):
            raise InputError(
                f"{self.gate.name}: batch normalisation cannot be inside a gated body (its statistics "
                "need the samples that are skipped); put it before the gated layer"
            )
        if not isinstance(self.body[0] if self.body else None, (Conv2d, Linear)) or not all(
            layer.channelwise for layer in self.body[1:]
        ):
            kinds = ", ".join(type(layer).__name__ for layer in self.body) or "nothing"
            raise InputError(
                f"{self.gate.name}: a gated body is one convolution or linear layer followed by layers that "
                f"treat channels one by one (activation, pooling), got {kinds}; gate each layer by itself, "
                "and flatten behind the gated block"
            )

    def parameters(self) -> tuple[Parameter, ...]:
        """Those of the body and of the gate."""
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

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, GatedCache]:
        """Decide, then run the body on open channels only (or on all, where off channels matter)."""
        gate = self.gate.decide(params, x, flow.reads, flow.context)
        binary = gate.mask.dtype == np.bool_
        skip = binary and not flow.context.closed_channels_matter
        inner = Flow(flow.context, flow.reads, gate.mask if skip else None)
        z, _, body = chain_forward(self.body, params, x, inner)
        y = z if skip else _scaled(z, gate.mask)
        activation.spread_nan(gate.relaxed, as_maps(y))
        return y, gate.mask if binary else None, GatedCache(gate, body, z)

    def backward(
        self, dy: np.ndarray, cache: GatedCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Through the body with the mask applied, and through the gate where gates learn (§2.3b)."""
        dy = tidy(dy)
        check_like(self.gate.name, "dy", dy, cache.z)
        mask = cache.gate.mask
        if mask.dtype == np.bool_:
            inner = Back(back.context, mask, None, back.need_dx)
            dx = chain_backward(self.body, dy, cache.body, params, grads, inner)
        else:
            inner = Back(back.context, None, None, back.need_dx)
            dx = chain_backward(self.body, _scaled(dy, mask), cache.body, params, grads, inner)
        if back.context.gates_learn:
            self._gate_backward(dy, cache, params, grads, back, dx)
        return dx

    def _gate_backward(
        self,
        dy: np.ndarray,
        cache: GatedCache,
        params: Arrays,
        grads: Arrays,
        back: Back,
        dx: np.ndarray | None,
    ) -> None:
        """Write the gate's gradients and add its share to dx."""
        through_input = dx is not None and not back.context.gating.detach_gate_input
        own = Back(back.context, None, back.dx_mask, through_input, "phi" in back.context.train)
        if not (own.need_dx or own.need_dw):
            return
        dmask = np.empty(cache.gate.mask.shape, dtype=dy.dtype)
        activation.channel_products(as_maps(dy), as_maps(cache.z), dmask)
        dsummary = self.gate.backward(dmask, cache.gate, params, grads, own)
        if dsummary is None or dx is None:
            return
        if dx.ndim == 2:
            dx += dsummary  # the input is its own summary; `dx_mask` may hold groups of features
        else:
            share = dsummary / dsummary.dtype.type(math.prod(dx.shape[2:]))
            activation.add_to_channels(share, or_all_on(back.dx_mask), as_maps(dx))


def _scaled(maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """mask[n,c] * maps[n,c,...] in the dtype of the maps."""
    out = np.empty_like(maps)
    activation.scale_channels(as_maps(maps), mask.astype(maps.dtype), as_maps(out))
    return out
