"""Convolution, linear and batch-normalisation layers: frozen sizes, forward and backward side by side.

Every layer is a frozen dataclass without arrays. `forward(params, x, flow)` returns the output and a
cache with everything the backward pass needs; `backward(dy, cache, params, grads, back)` *writes* the
gradients of its parameters into `grads` and returns dx (None where it is not needed).

Masks are arguments: boolean (N, C) arrays of channels that take part, None for all (mathematics.md
§2.3b). A closed channel is skipped, in each direction, and comes out as exact zeros.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import conv, linear, norm, sparse
from refimpl.kernels.arrays import check_shape, tidy_float
from refimpl.nn.layout import Parameter, kaiming_std
from refimpl.nn.weightmask import WeightMask

Arrays = Mapping[str, np.ndarray]
Array = np.ndarray
Mask = np.ndarray | None
Gradient = np.ndarray | None  # None where it is not wanted
Pair = tuple[int, int]
Shape = tuple[int, ...]
T = TypeVar("T")


class Flow(NamedTuple):
    """What a layer is told in the forward pass besides its input."""

    context: Any = None  # a `Context` (context.py); only gated blocks look at it
    reads: Mask = None  # channels of x that are not zero
    writes: Mask = None  # channels of y that are wanted; the others are zero


class Back(NamedTuple):
    """What a layer is told in the backward pass besides dy."""

    context: Any = None
    dy_mask: Mask = None  # channels of dy that count; the others are not read
    dx_mask: Mask = None  # channels of dx that are wanted; the others are zero
    need_dx: bool = True  # False for the first layer, and below the first trained one
    need_dw: bool = True  # False where this layer's parameters are not trained


class Layer(Protocol):
    """The contract of every layer and block."""

    @property
    def keeps_zero(self) -> bool:
        """Whether a channel of zeros comes out as zeros."""

    @property
    def channelwise(self) -> bool:
        """Whether there is one output channel for each input channel, computed from that one alone."""

    def parameters(self) -> tuple[Parameter, ...]:
        """The arrays the layer declares."""

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one sample's output, given that of its input; raises if they do not fit."""

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Any]:
        """Output, its channel mask, cache."""

    def backward(self, dy: Array, cache: Any, params: Arrays, grads: Arrays, back: Back) -> Gradient:
        """Write parameter gradients, return dx."""


class Plain:
    """A layer without parameters that keeps the shape; what differs is said in the layer itself."""

    keeps_zero: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False

    def parameters(self) -> tuple[Parameter, ...]:
        """None."""
        return ()

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        return shape


class Block:
    """Layers inside a layer: a plan (`plan.py`) takes it apart."""

    keeps_zero: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False

    @property
    def inner(self) -> tuple[Layer, ...]:
        """The layers inside, in order of declaration."""
        raise NotImplementedError

    def expand(self, planner: Any, x: Any) -> Any:
        """Add the block's steps, which read the value x, to a `Planner`; return the value of the last."""
        raise NotImplementedError


def rule_of(layer: Any, rules: Mapping[type, T], lacking: str) -> T:
    """The rule for a kind of layer, or for the kind that it is derived from.

    Raises `InputError` with the message `lacking`, whose {} stands for the kind, if there is none.
    """
    for kind in type(layer).__mro__:
        if kind in rules:
            return rules[kind]
    raise InputError(lacking.format(type(layer).__name__))


def pair(value: int | Pair) -> Pair:
    """An integer as a (vertical, horizontal) pair; pairs pass through."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def expect_sizes(layer: str, *sizes: int) -> None:
    """Raise `InputError` unless all numbers of channels or features are at least 1."""
    if min(sizes) < 1:
        raise InputError(f"{layer}: channels and features must be at least 1, got {sizes}")


def expect(layer: str, what: str, wanted: object, got: object) -> None:
    """Raise `InputError` unless `wanted == got`."""
    if wanted != got:
        raise InputError(f"{layer}: expected {what} {wanted}, got {got}; check the layer before it")


class WeightedCache(NamedTuple):
    """What a weighted layer keeps: its input `x`, and `reads`: which channels of it are not zero."""

    x: np.ndarray
    reads: Mask


def _bias(layer: "Conv2d | Linear", arrays: Arrays, size: int, like: np.ndarray) -> np.ndarray:
    """The layer's bias in `arrays`, or its gradient; a layer without one gets zeros that nobody keeps."""
    return arrays[f"{layer.name}.bias"] if layer.bias else np.zeros(size, like.dtype)


class Windowed:
    """What convolutions and windowed pools have in common: windows that move over an image."""

    kernel_size: int | Pair
    stride: int | Pair | None
    padding: int | Pair

    @property
    def window(self) -> Pair:
        """Height and width of a window."""
        return pair(self.kernel_size)

    @property
    def step(self) -> Pair:
        """Vertical and horizontal stride; without one, windows touch."""
        return self.window if self.stride is None else pair(self.stride)

    @property
    def pad(self) -> Pair:
        """Vertical and horizontal padding, on each side."""
        return pair(self.padding)


@dataclass(frozen=True)
class Conv2d(Windowed):
    """2-D convolution (cross-correlation): x (N,C,H,W) -> y (N,K,P,Q), weight (K,C/G,kh,kw), bias (K,).

    name: its parameters are <name>.weight and <name>.bias; in_channels, out_channels: C and K; kernel_size:
    (kh, kw), or one number for both; stride: step from window to window; padding: zeros on each side of an
    image; bias: whether it has one; dilation: how far neighbouring taps are apart; groups: G groups of output
    channels, each of which reads C/G input channels of its own. It is depthwise if there are as many groups
    as channels on both sides. Source: mathematics.md §2.1 ([MG] eq. 1). Derived.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel_size: int | Pair = 3
    stride: int | Pair = 1
    padding: int | Pair = 0
    bias: bool = True
    dilation: int | Pair = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for attribute in ("kernel_size", "stride", "padding", "dilation"):
            object.__setattr__(self, attribute, pair(getattr(self, attribute)))
        expect_sizes(self.name, self.in_channels, self.out_channels)
        if min(*self.window, *self.step, *self.spacing) < 1 or min(self.pad) < 0:
            raise InputError(
                f"{self.name}: kernel size, stride and dilation must be at least 1 and padding at least 0, "
                f"got {self.kernel_size}, {self.stride}, {self.dilation}, {self.padding}"
            )
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise InputError(
                f"{self.name}: groups must divide the channels {self.in_channels} and {self.out_channels}, "
                f"got {self.groups}"
            )

    @property
    def channelwise(self) -> bool:
        """Whether it is depthwise."""
        return self.groups == self.in_channels == self.out_channels > 1

    @property
    def keeps_zero(self) -> bool:
        """Whether a channel of zeros comes out as zeros."""
        return self.channelwise and not self.bias

    @property
    def spacing(self) -> Pair:
        """Vertical and horizontal distance between neighbouring taps."""
        return pair(self.dilation)

    def parameters(self) -> tuple[Parameter, ...]:
        """Weight (Kaiming) and bias (zero)."""
        shape = (self.out_channels, self.in_channels // self.groups, *self.window)
        fan_in = math.prod(shape[1:])
        weight = Parameter(f"{self.name}.weight", shape, std=kaiming_std(fan_in))
        return (weight, Parameter(f"{self.name}.bias", (self.out_channels,))) if self.bias else (weight,)

    def kept(self, weights: WeightMask | None) -> Mask:
        """Which weights a mask keeps; None if all, and for groups and dilations, computed as if dense."""
        if weights is None or self.groups > 1 or self.spacing != (1, 1):
            return None
        return weights.of_weight(f"{self.name}.weight")

    def output_shape(self, shape: Shape) -> Shape:
        """(C,H,W) -> (K,P,Q)."""
        expect(self.name, "input channels", (self.in_channels, 3), (*shape[:1], len(shape)))
        rows, cols = conv.output_size((shape[1], shape[2]), self.window, self.step, self.pad, self.spacing)
        if rows < 1 or cols < 1:
            raise InputError(f"{self.name}: input {shape[1:]} is smaller than the kernel {self.window}")
        return (self.out_channels, rows, cols)

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, WeightedCache]:
        """Y = conv(X) + bias on the channels of `flow.writes`."""
        x = tidy_float(self.name, "x", x)
        weight = params[f"{self.name}.weight"]
        bias = _bias(self, params, self.out_channels, x)
        masks, more = (flow.reads, flow.writes), (self.spacing, self.groups)
        y = conv.forward(x, weight, bias, self.step, self.pad, *masks, None, *more)
        return y, flow.writes, WeightedCache(x, flow.reads)

    def backward(
        self, dy: Array, cache: WeightedCache, params: Arrays, grads: Arrays, back: Back
    ) -> Gradient:
        """Weight gradient over open input and output channels; dx on the channels of `back.dx_mask`."""
        x, reads = cache
        dy = tidy_float(self.name, "dy", dy)
        if back.need_dw:
            dweight, dbias = grads[f"{self.name}.weight"], _bias(self, grads, self.out_channels, dy)
            kept = self.kept(back.context.weights) if back.context is not None else None
            if kept is not None and reads is None and back.dy_mask is None:
                sparse.kept_weight_grad(x, dy, self.step, self.pad, kept, dweight, dbias)
            else:
                sums, more = (dweight, dbias, reads, back.dy_mask), (self.spacing, self.groups)
                conv.weight_grad(x, dy, self.step, self.pad, *sums, *more)
        if not back.need_dx:
            return None
        size, masks, more = x.shape[2:], (back.dy_mask, back.dx_mask), (self.spacing, self.groups)
        weight = params[f"{self.name}.weight"]
        return conv.input_grad(dy, weight, self.step, self.pad, size, *masks, None, *more)


@dataclass(frozen=True)
class Linear:
    """Fully connected layer: x (N,I) -> y (N,O), weight (O,I), bias (O,).

    name: its parameters are <name>.weight and <name>.bias; in_features, out_features: I and O; gain: scales
    the initial weights, sqrt(2) before a ReLU, 1 for an output layer; part: the part of the vector in which
    its parameters lie; bias: whether it has one. Source: mathematics.md §2.2. Derived.
    """

    name: str
    in_features: int
    out_features: int
    gain: float = math.sqrt(2.0)
    part: str = "theta"
    bias: bool = True
    keeps_zero: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        expect_sizes(self.name, self.in_features, self.out_features)

    def parameters(self) -> tuple[Parameter, ...]:
        """Weight (Kaiming) and bias (zero)."""
        std = kaiming_std(self.in_features, self.gain)
        shape = (self.out_features, self.in_features)
        weight = Parameter(f"{self.name}.weight", shape, self.part, std)
        bias = Parameter(f"{self.name}.bias", (self.out_features,), self.part)
        return (weight, bias) if self.bias else (weight,)

    def output_shape(self, shape: Shape) -> Shape:
        """(I,) -> (O,)."""
        expect(self.name, "input shape", (self.in_features,), shape)
        return (self.out_features,)

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, WeightedCache]:
        """Y = X W^T + bias on the outputs of `flow.writes`."""
        x = tidy_float(self.name, "x", x)
        weight, bias = params[f"{self.name}.weight"], _bias(self, params, self.out_features, x)
        y = linear.forward(x, weight, bias, flow.reads, flow.writes)
        return y, flow.writes, WeightedCache(x, flow.reads)

    def backward(
        self, dy: Array, cache: WeightedCache, params: Arrays, grads: Arrays, back: Back
    ) -> Gradient:
        """Weight gradient over open inputs and outputs; dx on the features of `back.dx_mask`."""
        if back.need_dw:
            dweight, dbias = grads[f"{self.name}.weight"], _bias(self, grads, self.out_features, dy)
            linear.weight_grad(cache.x, dy, dweight, dbias, cache.reads, back.dy_mask)
        if not back.need_dx:
            return None
        return linear.input_grad(dy, params[f"{self.name}.weight"], back.dy_mask, back.dx_mask)


class NormCache(NamedTuple):
    """What a normalisation keeps for its backward pass.

    x: its input, as (N, C, P), but by groups the normalised one; inverse_std, mean: statistics; shape: of the
    input.
    """

    x: np.ndarray
    inverse_std: np.ndarray
    mean: np.ndarray
    shape: Shape


@dataclass(frozen=True)
class Normalisation:
    """What all normalisations have: x (N,C,H,W) or (N,C) -> same shape; weight starts at 1, bias at 0.

    name: its parameters are <name>.weight and <name>.bias; channels: C; eps: is added to variances; part: the
    part of the vector in which its parameters lie.
    """

    name: str
    channels: int
    eps: float = 1e-5
    part: str = field(default="theta", kw_only=True)
    keeps_zero: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False

    def parameters(self) -> tuple[Parameter, ...]:
        """Scale (one) and shift (zero)."""
        return (
            Parameter(f"{self.name}.weight", (self.channels,), self.part, fill=(1.0,)),
            Parameter(f"{self.name}.bias", (self.channels,), self.part),
        )

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        dimensions = 1 if len(shape) == 1 else 3
        expect(self.name, "channels and dimensions", (self.channels, dimensions), (*shape[:1], len(shape)))
        return shape

    def _enter(self, x: np.ndarray) -> np.ndarray:
        """The samples (N,C,H,W) or (N,C) as maps (N,C,P)."""
        x = tidy_float(self.name, "x", x)
        self.output_shape(x.shape[1:])  # raises unless it fits
        return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))

    def affine(self, params: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift."""
        return params[f"{self.name}.weight"], params[f"{self.name}.bias"]

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, NormCache]:
        """Y = weight * (X - mean)/std + bias."""
        raise NotImplementedError

    def backward(self, dy: Array, cache: NormCache, params: Arrays, grads: Arrays, back: Back) -> Gradient:
        """Gradients of scale and shift, and dx through the statistics, unless these are frozen."""
        dy = tidy_float(self.name, "dy", dy)
        check_shape(self.name, "dy", dy, cache.shape)
        dx, unused = np.empty_like(cache.x), np.empty((2, self.channels), dy.dtype)
        targets = self.affine(grads) if back.need_dw else (unused[0], unused[1])
        self._backward(dy.reshape(dx.shape), cache, params, back.dy_mask, (*targets, dx))
        return dx.reshape(cache.shape) if back.need_dx else None

    def _backward(
        self, dy: Array, cache: NormCache, params: Arrays, mask: Mask, targets: tuple[Array, Array, Array]
    ) -> None:
        """Write the gradients of scale, shift and input; `mask` says which channels of dy count."""
        raise NotImplementedError


@dataclass(frozen=True)
class BatchNorm2d(Normalisation):
    """Batch normalisation with the statistics of the batch, in training and evaluation alike.

    Channel masks of its input are not used: a channel's statistics need all samples. Inside a gated body it
    is refused (`Gated`).
    Source: Ioffe & Szegedy 2015, Algorithm 1. Derived (backward).
    """

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, NormCache]:
        """Y = weight * (X - mean)/std + bias per channel."""
        maps = self._enter(x)
        y, (mean, inverse_std) = np.empty_like(maps), np.empty((2, self.channels))
        norm.batch_norm_forward(maps, *self.affine(params), self.eps, 1.0, mean, inverse_std, y)
        return y.reshape(np.shape(x)), None, NormCache(maps, inverse_std, mean, np.shape(x))

    def _backward(
        self, dy: Array, cache: NormCache, params: Arrays, mask: Mask, targets: tuple[Array, Array, Array]
    ) -> None:
        x, inverse_std, mean, _ = cache
        norm.batch_norm_backward(dy, x, mean, inverse_std, *self.affine(params), 1.0, *targets)
