"""Hessian-vector products of networks, forward-over-reverse, by hand.

One plain forward pass; one pass forward along the direction; one pass backward that carries every
gradient together with its rate. The rules of single layers are in `tangent.py`; chains, residual blocks,
gates and the loss are here.

Source: Pearlmutter 1994; mathematics.md §10 (exact MAML), §2.3 (soft gates). Derived.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import activation
from refimpl.kernels.conv import ALL_ON
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.chain import Link, Residual, ResidualCache
from refimpl.nn.context import Context
from refimpl.nn.gate import ChannelGate, GateCache, Gated, GatedCache
from refimpl.nn.layers import Layer, Linear, WeightedCache
from refimpl.nn.network import Network
from refimpl.nn.pointwise import PointwiseCache, ReLU, as_maps
from refimpl.nn.tangent import RULES, Direction, Dual, Rate, sum_of


class Moving(NamedTuple):
    """What the forward rates of a layer leave for its backward ones: x_dot, and those of inner layers."""

    x_dot: Rate
    inner: Any = None


class ResidualMoving(NamedTuple):
    """The rates inside the two branches."""

    body: list[Moving]
    shortcut: list[Moving]


class GatedMoving(NamedTuple):
    """Rates of the mask (N,K), of the margin d behind it (N,K) and of the body's output; inner rates."""

    mask_dot: Rate
    margin_dot: Rate
    z_dot: Rate
    body: list[Moving]
    gate: list[Moving]


def hessian_vector(
    network: Network, w: np.ndarray, v: np.ndarray, x: np.ndarray, y: np.ndarray, context: Context
) -> np.ndarray:
    """H v (d,), H the Hessian of the mean cross-entropy on (x, y) in the trained parts of w.

    Entries of v outside the trained parts are not read; H v is zero there. Gates must be `soft`: raises
    `InputError` for others, and for vectors that are not alike. Where ReLU or max-pooling switch, H is
    that of the branch taken.
    """
    network.layout.check_pair("hessian_vector", w, v, "v")
    _check_gates(network, context)
    x = network.check_batch("hessian_vector", x, w.dtype)
    y = network.check_labels("hessian_vector", y, len(x))
    product, layout = np.zeros_like(w), network.layout
    trained = frozenset(slot.name for slot in layout.slots if slot.parameter.part in context.train)
    if not trained:
        return product
    along = Direction(layout.views(w), layout.views(v), layout.views(product), trained, context.gating)
    logits, trace = network.forward(w, x, context)
    logits_dot, moving = _forward(network.layers, trace.links, None, along)
    assert logits_dot is not None  # some layer is trained
    dlogits = np.empty_like(logits)
    softmax_cross_entropy.kernel(logits, y, dlogits)
    dual = Dual(dlogits, loss_rate(dlogits, logits_dot, y))
    _backward(network.layers, dual, trace.links, moving, along, need_dx=False)
    return product


def _check_gates(network: Network, context: Context) -> None:
    if network.gates and (context.gating.mode != "soft" or context.anchors):
        raise InputError(
            f"hessian_vector: gates decide by mode {context.gating.mode!r}, whose gradient is a surrogate "
            "without a Hessian; use Gating('soft') or a network without gates"
        )


def loss_rate(dlogits: np.ndarray, logits_dot: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rate of dlogits = (p - onehot)/N: p (logits_dot - <p, logits_dot>)/N for each sample.

    Source: mathematics.md §2.4. Derived.
    """
    samples = len(labels)
    p = dlogits * dlogits.dtype.type(samples)
    p[np.arange(samples), labels] += 1
    mean = np.empty((samples, 1), dtype=p.dtype)
    activation.channel_products(p[:, None], logits_dot[:, None], mean)
    return p * (logits_dot - mean) / p.dtype.type(samples)


def _forward(
    layers: Sequence[Layer], links: Sequence[Link], x_dot: Rate, along: Direction
) -> tuple[Rate, list[Moving]]:
    """The rate of a chain's output, and what the way back needs."""
    moving = []
    for layer, link in zip(layers, links, strict=True):
        inner: Any = None
        if isinstance(layer, Gated):
            y_dot, inner = _gated_forward(layer, link.cache, x_dot, along)
        elif isinstance(layer, Residual):
            y_dot, inner = _residual_forward(layer, link.cache, x_dot, along)
        elif type(layer) in RULES:
            y_dot = RULES[type(layer)].forward(layer, link.cache, x_dot, along)
        else:
            kind = type(layer).__name__
            raise InputError(
                f"hessian_vector: no second derivatives of a {kind}; add its rule to nn/tangent.py"
            )
        moving.append(Moving(x_dot, inner))
        x_dot = y_dot
    return x_dot, moving


def _backward(
    layers: Sequence[Layer],
    dy: Dual,
    links: Sequence[Link],
    moving: Sequence[Moving],
    along: Direction,
    need_dx: bool,
) -> Dual | None:
    """Gradient and rate through a chain; stops below the lowest layer that moves unless `need_dx`."""
    wanted = [along.trains(layer) for layer in layers]
    dual: Dual | None = dy
    for index in reversed(range(len(layers))):
        need = need_dx or any(wanted[:index])
        if dual is None or not (need or wanted[index]):
            return None
        layer, cache, moved = layers[index], links[index].cache, moving[index]
        if isinstance(layer, Gated):
            dual = _gated_backward(layer, dual, cache, moved.inner, along, need)
        elif isinstance(layer, Residual):
            dual = _residual_backward(layer, dual, cache, moved.inner, along, need)
        else:
            dual = RULES[type(layer)].backward(layer, dual, cache, moved.x_dot, along, need)
    return dual


def _residual_forward(
    block: Residual, cache: ResidualCache, x_dot: Rate, along: Direction
) -> tuple[Rate, ResidualMoving]:
    """The branches' rates add up."""
    y_dot, body = _forward(block.body, cache.body, x_dot, along)
    z_dot, shortcut = _forward(block.shortcut, cache.shortcut, x_dot, along)
    return sum_of(y_dot, z_dot), ResidualMoving(body, shortcut)


def _residual_backward(
    block: Residual, dy: Dual, cache: ResidualCache, moving: ResidualMoving, along: Direction, need_dx: bool
) -> Dual | None:
    """The branches' gradients add up, and so do their rates."""
    dx = _backward(block.body, dy, cache.body, moving.body, along, need_dx)
    dz = _backward(block.shortcut, dy, cache.shortcut, moving.shortcut, along, need_dx)
    return Dual(dx.value + dz.value, dx.dot + dz.dot) if need_dx and dx and dz else None


# Soft gates


def _gate_mlp(gate: ChannelGate, cache: GateCache) -> tuple[tuple[Layer, ...], tuple[Link, ...]]:
    """The gate's linear-ReLU-linear as a chain of layers, with their caches."""
    layers = (
        Linear(f"{gate.name}.fc1", gate.in_channels, gate.hidden),
        ReLU(),
        Linear(f"{gate.name}.fc2", gate.hidden, 2 * gate.out_channels),
    )
    caches = (
        WeightedCache(cache.summary, None),
        PointwiseCache(cache.hidden, None),
        WeightedCache(cache.hidden, None),
    )
    return layers, tuple(Link(None, own) for own in caches)


def _over(mask: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """mask[n,c] * maps[n,c,...]."""
    return mask.reshape(*mask.shape, *(1,) * (maps.ndim - 2)) * maps


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum over pixels of a * b, (N,C)."""
    out = np.empty(a.shape[:2], dtype=a.dtype)
    activation.channel_products(as_maps(a), as_maps(b), out)
    return out


def _channel_means(x: np.ndarray) -> np.ndarray:
    """Mean over the pixels of each channel; vectors are their own means."""
    if x.ndim == 2:
        return x
    out = np.empty(x.shape[:2], dtype=x.dtype)
    activation.channel_means(as_maps(x), ALL_ON, out)
    return out


def _gated_forward(
    block: Gated, cache: GatedCache, x_dot: Rate, along: Direction
) -> tuple[Rate, GatedMoving]:
    """y = M z moves with both: y_dot = M_dot z + M z_dot, M_dot = slope d_dot."""
    z_dot, body = _forward(block.body, cache.body, x_dot, along)
    summary_dot = None if x_dot is None else _channel_means(x_dot)
    layers, links = _gate_mlp(block.gate, cache.gate)
    logits_dot, mlp = _forward(layers, links, summary_dot, along)
    mask_dot = margin_dot = y_dot = None
    if logits_dot is not None:
        margin_dot = logits_dot[:, 1::2] - logits_dot[:, 0::2]
        mask_dot = cache.gate.slope * margin_dot
        y_dot = _over(mask_dot, cache.z)
    if z_dot is not None:
        y_dot = sum_of(y_dot, _over(cache.gate.mask, z_dot))
    return y_dot, GatedMoving(mask_dot, margin_dot, z_dot, body, mlp)


def _gated_backward(
    block: Gated, dy: Dual, cache: GatedCache, moving: GatedMoving, along: Direction, need_dx: bool
) -> Dual | None:
    """dz = M dy and dM = sum of dy z, with their rates, through body and gate."""
    dz = Dual(_over(cache.gate.mask, dy.value), _over(cache.gate.mask, dy.dot))
    if moving.mask_dot is not None:
        dz = Dual(dz.value, dz.dot + _over(moving.mask_dot, dy.value))
    dx = _backward(block.body, dz, cache.body, moving.body, along, need_dx)
    through_input = need_dx and not along.gating.detach_gate_input
    layers, links = _gate_mlp(block.gate, cache.gate)
    if not (through_input or any(along.trains(layer) for layer in layers)):
        return dx
    dlogits = _decision_gradient(cache, dy, moving, along)
    dsummary = _backward(layers, dlogits, links, moving.gate, along, through_input)
    if dx is None or dsummary is None:
        return dx
    return Dual(*(part + _spread(share, part) for part, share in zip(dx, dsummary, strict=True)))


def _decision_gradient(cache: GatedCache, dy: Dual, moving: GatedMoving, along: Direction) -> Dual:
    """Gradient of the gate's logits (N,2K) and its rate: dd = slope dM; slope' = slope (1 - 2 M)/tau."""
    gate = cache.gate
    dmask, dmask_dot = _products(dy.value, cache.z), _products(dy.dot, cache.z)
    if moving.z_dot is not None:
        dmask_dot = dmask_dot + _products(dy.value, moving.z_dot)
    dot = gate.slope * dmask_dot
    if moving.margin_dot is not None:
        bend = gate.slope * (1 - 2 * gate.mask) / gate.mask.dtype.type(along.gating.tau)
        dot = dot + dmask * bend * moving.margin_dot
    return Dual(_to_logits(gate.slope * dmask), _to_logits(dot))


def _to_logits(dmargin: np.ndarray) -> np.ndarray:
    """Gradient of (z_off, z_on) pairs from that of d = z_on - z_off."""
    dlogits = np.empty((dmargin.shape[0], 2 * dmargin.shape[1]), dtype=dmargin.dtype)
    dlogits[:, 0::2] = -dmargin
    dlogits[:, 1::2] = dmargin
    return dlogits


def _spread(share: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A gradient of channel means as one of the maps they were taken of (broadcasts over pixels)."""
    if like.ndim == 2:
        return share
    return (share / share.dtype.type(like[0, 0].size))[:, :, None, None]
