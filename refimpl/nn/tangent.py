"""Directional derivatives of single layers: forward along a direction, and of the backward pass.

The R-operator: with every parameter moving along a direction, `x_dot` is the rate at which a value x
moves. A rule has two parts. `forward` gives y_dot from x_dot; `backward` gives dx and dx_dot from dy and
dy_dot and writes the rates of the parameters' gradients. A product moves with each of its factors, so a
convolution's or linear layer's rates are its own forward and backward passes called once per moving
factor; piecewise linear layers (ReLU, pooling) keep the decisions of the forward pass.

There are no channel masks here: second derivatives are taken of ungated and `soft` networks
(`hessian.py`), in which nothing is closed.

Source: Pearlmutter 1994, Fast exact multiplication by the Hessian; mathematics.md §10. Derived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refimpl.kernels import activation
from refimpl.nn.context import Gating
from refimpl.nn.gate import Decide, Decision, to_logits
from refimpl.nn.joins import Add, Fork, Product, products
from refimpl.nn.layers import (
    Arrays,
    Back,
    Conv2d,
    Flow,
    Layer,
    Linear,
    Normalisation,
    NormCache,
    WeightedCache,
)
from refimpl.nn.norms import FrozenNorm2d, GroupNorm, batch_means
from refimpl.nn.pointwise import LeakyReLU, PointwiseCache, ReLU, Softplus, Tanh, as_maps
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d, PoolCache

Rate = np.ndarray | None  # how fast a value moves; None where it does not


class Dual(NamedTuple):
    """A gradient and the rate at which it moves."""

    value: np.ndarray
    dot: np.ndarray

    def __add__(self, other: Any) -> Dual:
        return Dual(self.value + other.value, self.dot + other.dot)


class Direction(NamedTuple):
    """Where second derivatives are taken, and along what.

    params, moves: parameters and their rates by name; out: where rates of gradients are written;
    trained: names of the parameters that move. All arrays are views into three vectors of one layout.
    found: what the forward rules of normalisations found and the backward rules need, by layer.
    """

    params: Arrays
    moves: Arrays
    out: Arrays
    trained: frozenset[str]
    gating: Gating
    found: dict[str, Any]

    def trains(self, layer: Layer) -> bool:
        """Whether any parameter of the layer moves."""
        return any(parameter.name in self.trained for parameter in layer.parameters())


class Rule(NamedTuple):
    """How a kind of layer differentiates.

    forward(layer, cache, x_dot, along) -> y_dot, for a step that moves: its input does, or a parameter;
    backward(layer, dy, cache, x_dot, along, need_dx) -> dx, None unless needed. A layer without parameters
    is asked only where dx is needed. With two inputs, x_dot and dx are tuples.
    """

    forward: Callable[[Any, Any, Any, Direction], Rate]
    backward: Callable[[Any, Dual, Any, Any, Direction, bool], Any]


def sum_of(a: Rate, b: Rate) -> Rate:
    """a + b, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def both(layer: Layer, dy: Dual, cache: Any, along: Direction) -> Dual:
    """The layer's input gradient, a linear function of dy, of dy and of its rate."""
    back = Back(need_dw=False)
    value, dot = (layer.backward(part, cache, along.params, {}, back) for part in dy)
    assert value is not None
    assert dot is not None
    return Dual(value, dot)


# Convolution and linear layers: products of the input with a weight


def _weighted_forward(layer: Conv2d | Linear, cache: WeightedCache, x_dot: Rate, along: Direction) -> Rate:
    """R{x W + b} = x W_dot + b_dot + x_dot W."""
    y_dot = layer.forward(along.moves, cache.x, Flow())[0] if along.trains(layer) else None
    if x_dot is None:
        return y_dot
    return sum_of(y_dot, layer.forward(_without_bias(layer, along.params), x_dot, Flow())[0])


def _without_bias(layer: Conv2d | Linear, params: Arrays) -> Arrays:
    """The layer's parameters with a bias of zero."""
    named = {parameter.name: params[parameter.name] for parameter in layer.parameters()}
    return {name: a if name.endswith(".weight") else np.zeros_like(a) for name, a in named.items()}


def _weighted_backward(
    layer: Conv2d | Linear, dy: Dual, cache: WeightedCache, x_dot: Rate, along: Direction, need_dx: bool
) -> Dual | None:
    """R{dy W} = dy_dot W + dy W_dot; R{x dy} = x dy_dot + x_dot dy; R{sum dy} = sum dy_dot."""
    trained = along.trains(layer)
    dx_dot = layer.backward(dy.dot, cache, along.params, along.out, Back(need_dx=need_dx, need_dw=trained))
    if trained:
        dx_dot = sum_of(dx_dot, _moving_factors(layer, dy.value, cache, x_dot, along, need_dx))
    value = layer.backward(dy.value, cache, along.params, {}, Back(need_dx=need_dx, need_dw=False))
    return None if value is None or dx_dot is None else Dual(value, dx_dot)


def _moving_factors(
    layer: Conv2d | Linear, dy: np.ndarray, cache: WeightedCache, x_dot: Rate, along: Direction, need_dx: bool
) -> Rate:
    """Add x_dot dy to the rate of the weight's gradient; return dy W_dot."""
    moving = cache if x_dot is None else WeightedCache(x_dot, None)
    share = {p.name: np.empty_like(along.out[p.name]) for p in layer.parameters()}
    dx_dot = layer.backward(dy, moving, along.moves, share, Back(need_dx=need_dx, need_dw=x_dot is not None))
    if x_dot is not None:
        along.out[f"{layer.name}.weight"][...] += share[f"{layer.name}.weight"]
    return dx_dot


# Activations: diagonal Jacobians


def _pointwise_forward(layer: Layer, cache: PointwiseCache, x_dot: np.ndarray, along: Direction) -> Rate:
    """y_dot = f'(x) x_dot, which is what the backward pass does to dy."""
    return layer.backward(x_dot, cache, {}, {}, Back())


def _pointwise_backward(
    layer: Layer, dy: Dual, cache: PointwiseCache, x_dot: Rate, along: Direction, need_dx: bool
) -> Dual:
    """dx_dot = f'(x) dy_dot + f''(x) x_dot dy."""
    dx = both(layer, dy, cache, along)
    if x_dot is None:
        return dx
    return Dual(dx.value, dx.dot + _bend(layer, cache) * x_dot * dy.value)


def _bend(layer: Layer, cache: PointwiseCache) -> np.ndarray:
    """f''(x): sigmoid' for softplus, -2 y (1 - y^2) for tanh."""
    if isinstance(layer, Tanh):
        y = cache.kept
        return -2 * y * (1 - y * y)
    x = cache.kept.reshape(1, -1)
    value, slope = np.empty_like(x), np.empty_like(x)
    activation.sigmoid_scaled(x, 1.0, value, slope)
    return slope.reshape(cache.kept.shape)


# Pooling and flattening: linear once the maxima are known


def _linear_forward(layer: Layer, cache: Any, x_dot: np.ndarray, along: Direction) -> Rate:
    """The output of a linear layer moves as the layer maps the rate of its input."""
    return layer.forward({}, x_dot, Flow())[0]


def _max_forward(layer: MaxPool2d, cache: PoolCache, x_dot: np.ndarray, along: Direction) -> Rate:
    """The rate of each window's winner, at the position recorded by the forward pass."""
    (where,) = cache.where
    rows, cols = where.shape[2:]
    height = np.arange(rows)[:, None] * layer.step[0] - layer.pad[0] + where // layer.window[1]
    width = np.arange(cols) * layer.step[1] - layer.pad[1] + where % layer.window[1]
    flat = as_maps(height * x_dot.shape[3] + width)
    return np.take_along_axis(as_maps(x_dot), flat, axis=2).reshape(where.shape)


def _linear_backward(
    layer: Layer, dy: Dual, cache: Any, x_dot: Rate, along: Direction, need_dx: bool
) -> Dual:
    """The backward pass of a linear layer is linear too."""
    return both(layer, dy, cache, along)


# Normalisation


@dataclass(frozen=True)
class _Normalised:
    """The normalised input n (N,C,P), and 1/std, one number for each set of entries with common statistics.

    A set is a channel, or with `groups` a sample's group of channels; frozen statistics do not move.
    """

    n: np.ndarray
    inverse_std: np.ndarray
    groups: int = 0
    still: bool = False

    def means(self, a: np.ndarray, b: np.ndarray) -> np.ndarray | float:
        """Mean of a * b over the set that an entry is in; zero for frozen statistics, which do not move."""
        if self.still:
            return 0.0
        if not self.groups:
            return batch_means(a, b)[:, None]
        samples, channels, pixels = a.shape
        sets = (1, samples * self.groups, channels // self.groups * pixels)
        means = batch_means(a.reshape(sets), b.reshape(sets)).reshape(samples, self.groups)
        return np.repeat(means, channels // self.groups, axis=1)[:, :, None]

    def moved(self, x_dot: np.ndarray) -> np.ndarray:
        """The rate of n: (x_dot - mean x_dot - n mean(x_dot n))/std."""
        mean = self.means(x_dot, np.ones_like(x_dot))
        return self.inverse_std * (x_dot - mean - self.n * self.means(x_dot, self.n))


def _wide(x: np.ndarray) -> np.ndarray:
    """Maps (N,C,P) in float64."""
    return as_maps(x).astype(np.float64, copy=False)


def _normalised(layer: Normalisation, cache: NormCache, params: Arrays) -> _Normalised:
    n = _wide(cache.x)
    if isinstance(layer, FrozenNorm2d):
        mean, variance, eps = layer.statistics(params)
        inverse_std = 1 / np.sqrt(variance.astype(np.float64) + eps)[:, None]
        return _Normalised((n - mean[:, None]) * inverse_std, inverse_std, still=True)
    if isinstance(layer, GroupNorm):
        inverse_std = np.repeat(cache.inverse_std, layer.channels // layer.groups, axis=1)[:, :, None]
        return _Normalised(n, inverse_std, layer.groups)
    inverse_std = cache.inverse_std[:, None]
    return _Normalised((n - cache.mean[:, None]) * inverse_std, inverse_std)


def _norm_forward(layer: Normalisation, cache: NormCache, x_dot: Rate, along: Direction) -> Rate:
    """y_dot = gamma n_dot + gamma_dot n + beta_dot, n the normalised input."""
    own, y_dot = _normalised(layer, cache, along.params), None
    if along.trains(layer):
        scale, shift = layer.affine(along.moves)
        y_dot = scale[:, None] * own.n + shift[:, None]
    if x_dot is not None:
        n_dot = own.moved(_wide(x_dot))
        along.found[layer.name] = own, n_dot
        y_dot = sum_of(y_dot, layer.affine(along.params)[0][:, None] * n_dot)
    assert y_dot is not None  # the step moves
    return y_dot.reshape(cache.shape).astype(cache.x.dtype)


def _norm_backward(
    layer: Normalisation, dy: Dual, cache: NormCache, x_dot: Rate, along: Direction, need_dx: bool
) -> Dual | None:
    """Rates of dgamma = sum dy n, dbeta = sum dy and dx = (g - mean g - n mean(g n))/std, g = gamma dy."""
    weight, trained = f"{layer.name}.weight", along.trains(layer)
    value = layer.backward(dy.value, cache, along.params, {}, Back(need_dw=False))
    dot = layer.backward(dy.dot, cache, along.params, along.out, Back(need_dw=trained))
    assert value is not None
    assert dot is not None
    if x_dot is not None:
        (own, n_dot), maps, moving = along.found[layer.name], _wide(dy.value), _wide(x_dot)
        g = along.params[weight][:, None] * maps
        if trained:
            count = maps.shape[0] * maps.shape[2]
            along.out[weight][...] += (count * batch_means(maps, n_dot)).astype(dot.dtype)
        bend = own.inverse_std * (n_dot * own.means(g, own.n) + own.n * own.means(g, n_dot))
        stretch = -own.inverse_std * own.means(moving, own.n)  # rate of log(1/std)
        dot = dot + (stretch * as_maps(value) - bend).reshape(dot.shape).astype(dot.dtype)
    if trained:  # dx is proportional to gamma
        turned = {**along.params, weight: along.moves[weight]}
        share = layer.backward(dy.value, cache, turned, {}, Back(need_dw=False))
        assert share is not None
        dot = dot + share
    return Dual(value, dot) if need_dx else None


# Where values meet or part


def _over(mask: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """mask[n,c] * maps[n,c,...]."""
    return mask.reshape(*mask.shape, *(1,) * (maps.ndim - 2)) * maps


def _product_forward(
    layer: Product, cache: tuple[np.ndarray, np.ndarray], x_dot: tuple[Rate, Rate], along: Direction
) -> Rate:
    """y = M z moves with both: y_dot = M_dot z + M z_dot."""
    (z, mask), (z_dot, mask_dot) = cache, x_dot
    y_dot = None if mask_dot is None else _over(mask_dot, z)
    return y_dot if z_dot is None else sum_of(y_dot, _over(mask, z_dot))


def _product_backward(
    layer: Product,
    dy: Dual,
    cache: tuple[np.ndarray, np.ndarray],
    x_dot: tuple[Rate, Rate],
    along: Direction,
    need_dx: bool,
) -> tuple[Dual, Dual]:
    """dz = M dy and dM = sum of dy z, with their rates."""
    (z, mask), (z_dot, mask_dot) = cache, x_dot
    dz_dot, dmask_dot = _over(mask, dy.dot), products(dy.dot, z)
    if mask_dot is not None:
        dz_dot = dz_dot + _over(mask_dot, dy.value)
    if z_dot is not None:
        dmask_dot = dmask_dot + products(dy.value, z_dot)
    return Dual(_over(mask, dy.value), dz_dot), Dual(products(dy.value, z), dmask_dot)


def _decide_forward(layer: Decide, cache: Decision, x_dot: np.ndarray, along: Direction) -> Rate:
    """M_dot = slope d_dot."""
    return cache.slope * _margin(x_dot)


def _margin(logits: np.ndarray) -> np.ndarray:
    """d = z_on - z_off."""
    return logits[:, 1::2] - logits[:, 0::2]


def _decide_backward(
    layer: Decide, dy: Dual, cache: Decision, x_dot: Rate, along: Direction, need_dx: bool
) -> Dual:
    """dd = slope dM; slope' = slope (1 - 2 M)/tau."""
    dot = cache.slope * dy.dot
    if x_dot is not None:
        bend = cache.slope * (1 - 2 * cache.mask) / cache.mask.dtype.type(along.gating.tau)
        dot = dot + dy.value * bend * _margin(x_dot)
    return Dual(to_logits(cache.slope * dy.value), to_logits(dot))


_WEIGHTED = Rule(_weighted_forward, _weighted_backward)
_POINTWISE = Rule(_pointwise_forward, _pointwise_backward)
_LINEAR = Rule(_linear_forward, _linear_backward)

RULES: dict[type, Rule] = {
    Conv2d: _WEIGHTED,
    Linear: _WEIGHTED,
    **dict.fromkeys((ReLU, LeakyReLU), Rule(_pointwise_forward, _linear_backward)),
    Softplus: _POINTWISE,
    Tanh: _POINTWISE,
    MaxPool2d: Rule(_max_forward, _linear_backward),
    AvgPool2d: _LINEAR,
    GlobalAvgPool2d: _LINEAR,
    Flatten: _LINEAR,
    Normalisation: Rule(_norm_forward, _norm_backward),
    Decide: Rule(_decide_forward, _decide_backward),
    Product: Rule(_product_forward, _product_backward),
    Fork: Rule(lambda layer, cache, x_dot, along: x_dot, lambda layer, dy, *_: dy),
    Add: Rule(lambda layer, cache, x_dot, along: sum_of(*x_dot), lambda layer, dy, *_: (dy, dy)),
}
