"""Gradients against central differences: of any objective, of every layer, of whole gated networks.

Smooth models are checked as they are. For `hard`, `gumbel` and `ste` gates the documented surrogate
derivative is checked: each 0/1 mask M0 is replaced by M0 + gain * (r(d) - r(d0)), whose value at the
point is M0 and whose exact derivative is what the backward pass must return (gain is 1 for dense gate
gradients, M0 for active ones, 0 where phi is not trained).

Source: mathematics.md §2.3, §2.3b. Derived.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from refimpl.contracts import Objective
from refimpl.errors import InputError
from refimpl.kernels.arrays import tidy_group_mask
from refimpl.nn.context import Anchor, Context
from refimpl.nn.layers import Back, Flow, Layer, Mask, Shape
from refimpl.nn.layout import Layout
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective

Value = Callable[[np.ndarray], float]

BOTH = Context(train=("theta", "phi"))
STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
USUAL, AGREED = STEPS[2:4], 1e-8  # the steps that are tried first, and how closely they must agree


class SlotError(NamedTuple):
    """The worst directional `error` of the parameter of that `name`."""

    name: str
    error: float


def _check_doubles(**vectors: np.ndarray) -> None:
    """Raise `InputError` unless all are vectors of float64, of one length and not empty."""
    sizes = {np.size(x) for x in vectors.values()}
    for name, x in vectors.items():
        if not isinstance(x, np.ndarray) or x.dtype != np.float64:
            got = getattr(x, "dtype", type(x).__name__)
            raise InputError(f"gradcheck: finite differences need float64, got {got} as {name}; convert it")
        if x.ndim != 1 or not x.size or len(sizes) > 1:
            raise InputError(
                f"gradcheck: expected {' and '.join(vectors)} as vectors of one length, got shape {x.shape}"
            )


def directional_difference(value: Value, w: np.ndarray, direction: np.ndarray) -> float:
    """Derivative of `value` at w along `direction`, fourth-order central differences.

    The step is chosen without looking at any analytic gradient. Where two usual steps give nearly the same
    estimate, that is the answer. Otherwise it comes from a ladder of steps: the one whose estimate agrees
    best with its successor's, while some neighbour agrees at least roughly. Large steps suffer from curvature
    and from kinks (ReLU, pooling) inside the step, small ones from rounding; the best agreement lies between.
    The neighbour rules out two wrong estimates that agree by chance.
    """
    _check_doubles(w=w, direction=direction)
    estimates = {step: _central(value, w, direction, step) for step in USUAL}
    first, second = estimates.values()
    if abs(first - second) <= AGREED * abs(second):  # NaN does not agree
        return second
    estimates |= {step: _central(value, w, direction, step) for step in STEPS if step not in USUAL}
    return _best([estimates[step] for step in STEPS])


def _best(estimates: Sequence[float]) -> float:
    """The estimate that agrees best with the one before it, while a neighbour agrees roughly."""
    gaps = np.abs(np.diff(estimates))
    beside = np.minimum(np.append(gaps[1:], np.inf), np.append(np.inf, gaps[:-1]))
    return estimates[int(np.argmin(gaps + 0.1 * beside)) + 1]


def _central(value: Value, w: np.ndarray, direction: np.ndarray, step: float) -> float:
    near = value(w + step * direction) - value(w - step * direction)
    far = value(w + 2 * step * direction) - value(w - 2 * step * direction)
    return (8 * near - far) / (12 * step)


def slot_errors(
    objective: Objective,
    value: Value,
    w: np.ndarray,
    slots: Sequence[tuple[str, slice]],
    rng: np.random.Generator,
    directions: int = 2,
) -> list[SlotError]:
    """Worst relative directional error of the gradient within each named range of w (float64).

    The error of a direction is |analytic - numeric| relative to the larger of the two, but at least to
    1e-3 of the size the whole gradient would give along a random direction, and to 1e-6 of the value
    itself (differences of a value f resolve derivatives to some 1e-12 |f|), so that a parameter without
    influence does not divide rounding by rounding.
    """
    _check_doubles(w=w)
    gradient = np.full_like(w, np.nan)  # the objective must write every entry
    size = abs(objective(w, gradient))
    floor = 1e-3 * float(np.linalg.norm(gradient)) / np.sqrt(w.size) + 1e-6 * size + 1e-12
    errors = []
    for name, where in slots:
        worst = 0.0
        for _ in range(directions):
            direction = np.zeros_like(w)
            direction[where] = _direction(gradient[where], rng)
            numeric = directional_difference(value, w, direction)
            analytic = float(direction @ gradient)
            scale = max(abs(numeric), abs(analytic), floor)
            error = abs(analytic - numeric) / scale
            worst = worst if error <= worst else error  # NaN counts as worst
        errors.append(SlotError(name, float(worst)))
    return errors


def _direction(gradient: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A unit vector, half random and half along the gradient to be checked.

    The random half sees errors in any entry; the other half keeps the derivative well above rounding,
    which along a purely random direction in d dimensions is sqrt(d) times smaller.
    """
    direction = rng.standard_normal(gradient.size)
    direction /= np.linalg.norm(direction)
    size = np.linalg.norm(gradient)
    if np.isfinite(size) and size > 0:
        ascent = gradient / size
        direction += ascent if direction @ ascent >= 0 else -ascent  # never cancel, not even in 1-D
    return direction / np.linalg.norm(direction)


def surrogate_context(network: Network, w: np.ndarray, x: np.ndarray, context: Context) -> Context:
    """The context in which the forward pass is the surrogate that `context`'s backward pass derives."""
    if context.gating.mode == "soft":
        return context
    _, trace = network.forward(w, x, context)
    anchors = {}
    for name, decision in network.decisions(trace).items():
        mask = decision.mask.astype(w.dtype)
        gain = np.zeros_like(mask)
        if context.routing.gates_learn:
            gain = np.ones_like(mask) if context.gating.gate_grad == "dense" else mask
        anchors[name] = Anchor(mask - gain * decision.relaxed, gain)
    return replace(context, anchors=anchors)


def check_network(
    network: Network,
    w: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    context: Context,
    rng: np.random.Generator,
    directions: int = 2,
) -> list[SlotError]:
    """Worst relative error per trained parameter of a network's loss on (x, y), in float64."""
    objective = NetworkObjective(network, x, y, context)
    surrogate = NetworkObjective(network, x, y, surrogate_context(network, w, x, context))
    slots = [
        (slot.name, slice(slot.start, slot.stop))
        for slot in network.layout.slots
        if slot.parameter.part in context.train
    ]
    return slot_errors(objective, surrogate.value, w, slots, rng, directions)


def _check_mask(name: str, mask: Mask, wanted: tuple[int, ...]) -> None:
    """Raise `InputError` unless it is None or a boolean mask whose columns divide the wanted ones evenly."""
    if mask is not None:
        tidy_group_mask("LayerProbe", name, mask, wanted[0], wanted[1])


@dataclass(frozen=True)
class LayerProbe:
    """A layer as a scalar objective: <cotangent, layer(x; params)> over the vector (params, x).

    Masks may be given for what the layer reads, what it writes, and the channels of dx wanted; closed
    channels of x are zero in both directions.
    """

    layer: Layer
    shape: Shape
    batch: int
    cotangent: np.ndarray
    reads: Mask = None
    writes: Mask = None
    context: Context = BOTH

    def __post_init__(self) -> None:
        wanted = (self.batch, *self.layer.output_shape(self.shape))
        if np.shape(self.cotangent) != wanted or np.asarray(self.cotangent).dtype.kind != "f":
            raise InputError(f"LayerProbe: expected a cotangent of floats of shape {wanted}")
        _check_mask("reads", self.reads, (self.batch, self.shape[0]))
        _check_mask("writes", self.writes, wanted[:2])

    @property
    def layout(self) -> Layout:
        """Layout of the layer's parameters."""
        return Layout(self.layer.parameters())

    def _unpack(self, u: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        size = self.layout.size
        _check_doubles(u=u)
        if u.size != size + self.batch * math.prod(self.shape):
            raise InputError(f"LayerProbe: expected parameters and input in u, got {u.size} entries")
        x = u[size:].reshape(self.batch, *self.shape)
        if self.reads is not None:
            maps = x.reshape(*self.reads.shape, -1) * self.reads[..., None]
            x = maps.reshape(x.shape)
        return self.layout.views(np.ascontiguousarray(u[:size])), x

    def _forward(self, u: np.ndarray) -> tuple[dict[str, np.ndarray], Any, float]:
        """The parameters at u, what the layer keeps for its backward pass, and the scalar."""
        params, x = self._unpack(u)
        y, _, cache = self.layer.forward(params, x, Flow(self.context, self.reads, self.writes))
        return params, cache, float((y * self.cotangent).sum())

    def value(self, u: np.ndarray) -> float:
        """The scalar at u."""
        return self._forward(u)[2]

    def __call__(self, u: np.ndarray, grad_out: np.ndarray) -> float:
        """The scalar and its gradient w.r.t. parameters and input."""
        _check_doubles(u=u, grad_out=grad_out)
        params, cache, value = self._forward(u)
        size = self.layout.size
        grads = self.layout.views(grad_out[:size])
        back = Back(self.context, self.writes, self.reads)
        dx = self.layer.backward(self.cotangent, cache, params, grads, back)
        assert dx is not None  # need_dx is on
        grad_out[size:] = dx.ravel()
        return value

    def errors(self, rng: np.random.Generator, directions: int = 2) -> list[SlotError]:
        """Worst relative error per parameter, and of the input's gradient as `x`."""
        size = self.layout.size
        u = rng.standard_normal(size + self.batch * int(np.prod(self.shape)))
        slots = [(slot.name, slice(slot.start, slot.stop)) for slot in self.layout.slots]
        return slot_errors(self, self.value, u, [*slots, ("x", slice(size, u.size))], rng, directions)


def probe(
    layer: Layer,
    shape: Shape,
    batch: int,
    rng: np.random.Generator,
    reads: Mask = None,
    writes: Mask = None,
    context: Context | None = None,
) -> LayerProbe:
    """A probe of `layer` on inputs of `shape` with a random cotangent."""
    cotangent = rng.standard_normal((batch, *layer.output_shape(shape)))
    _check_mask("writes", writes, cotangent.shape[:2])
    if writes is not None:
        cotangent = (cotangent.reshape(*writes.shape, -1) * writes[..., None]).reshape(cotangent.shape)
    return LayerProbe(layer, shape, batch, cotangent, reads, writes, context or BOTH)
