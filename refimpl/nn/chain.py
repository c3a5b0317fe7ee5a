"""A chain of layers run forward and backward, and the residual block built from two chains.

The routing of masks is decided here and nowhere else (mathematics.md §2.3b):

* forward, a layer reads only the open channels of its input;
* backward, `dx` is computed for all channels where an off channel's gate wants its would-be gradient
  (`Context.closed_channels_matter`), else only for the open ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.nn.context import Context
from refimpl.nn.layers import Arrays, Back, Flow, Layer, Mask, Shape
from refimpl.nn.layout import Parameter


class Link(NamedTuple):
    """One layer's entry in a chain's cache: the mask it read, and its own cache."""

    reads: Mask
    cache: Any


def chain_parameters(layers: Sequence[Layer]) -> tuple[Parameter, ...]:
    """All parameters of the layers, in order."""
    return tuple(parameter for layer in layers for parameter in layer.parameters())


def chain_shape(layers: Sequence[Layer], shape: Shape) -> Shape:
    """Shape of one sample's output; raises where two layers do not fit."""
    for layer in layers:
        shape = layer.output_shape(shape)
    return shape


def is_trained(layer: Layer, context: Context) -> bool:
    """Whether any parameter of the layer (or of layers inside it) wants a gradient."""
    return any(parameter.part in context.train for parameter in layer.parameters())


def chain_forward(
    layers: Sequence[Layer], params: Arrays, x: np.ndarray, flow: Flow
) -> tuple[np.ndarray, Mask, list[Link]]:
    """Run the layers; `flow.writes`, if given, closes the same channels in every one of them."""
    reads, links = flow.reads, []
    for layer in layers:
        y, mask, cache = layer.forward(params, x, Flow(flow.context, reads, flow.writes))
        links.append(Link(reads, cache))
        x, reads = y, mask
    return x, reads, links


def chain_backward(
    layers: Sequence[Layer], dy: np.ndarray, links: Sequence[Link], params: Arrays, grads: Arrays, back: Back
) -> np.ndarray | None:
    """Run the layers backwards; stops below the lowest layer that is trained if `need_dx` is false.

    `back.dy_mask` (a gated body's mask) holds for every layer of the chain.
    """
    wanted = [is_trained(layer, back.context) for layer in layers]
    gradient: np.ndarray | None = dy
    for index in reversed(range(len(layers))):
        need_dx = back.need_dx or any(wanted[:index])
        if not (need_dx or wanted[index]) or gradient is None:
            return None
        inside = index > 0 and back.dy_mask is not None
        dx_mask = back.dy_mask if inside else _wanted_channels(links[index].reads, back)
        own = Back(
            back.context, _live_channels(layers[index], links[index], back), dx_mask, need_dx, wanted[index]
        )
        gradient = layers[index].backward(gradient, links[index].cache, params, grads, own)
    return gradient


def _wanted_channels(reads: Mask, back: Back) -> Mask:
    """Which channels of dx to compute for an input whose open channels are `reads`."""
    return None if back.context.closed_channels_matter else reads


def _live_channels(layer: Layer, link: Link, back: Back) -> Mask:
    """Which channels of dy count: those of the gated body, or those a zero-keeping layer passed on."""
    if back.dy_mask is not None:
        return back.dy_mask
    return _wanted_channels(link.reads, back) if layer.keeps_zero else None


class ResidualCache(NamedTuple):
    """Caches of the two branches."""

    body: list[Link]
    shortcut: list[Link]


@dataclass(frozen=True)
class Residual:
    """y = body(x) + shortcut(x); an empty shortcut is the identity.

    Put a ReLU after the block for the usual form. Source: He et al. 2016, eq. 1. Derived.
    """

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()
    keeps_zero: ClassVar[bool] = False
    channelwise: ClassVar[bool] = False

    def parameters(self) -> tuple[Parameter, ...]:
        """Those of both branches."""
        return chain_parameters(self.body) + chain_parameters(self.shortcut)

    def output_shape(self, shape: Shape) -> Shape:
        """The branches' common output shape."""
        body, shortcut = chain_shape(self.body, shape), chain_shape(self.shortcut, shape)
        if body != shortcut:
            raise InputError(f"Residual: branches must agree, got {body} and {shortcut}; adapt the shortcut")
        return body

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, ResidualCache]:
        """Sum of the branches; its channels are all open, whatever the input's mask."""
        inner = Flow(flow.context, flow.reads)
        y, _, body = chain_forward(self.body, params, x, inner)
        z, _, shortcut = chain_forward(self.shortcut, params, x, inner)
        return y + z, None, ResidualCache(body, shortcut)

    def backward(
        self, dy: np.ndarray, cache: ResidualCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Sum of the branches' gradients."""
        inner = Back(back.context, need_dx=back.need_dx, need_dw=back.need_dw)
        dx = chain_backward(self.body, dy, cache.body, params, grads, inner)
        dz = chain_backward(self.shortcut, dy, cache.shortcut, params, grads, inner)
        return dx + dz if back.need_dx and dx is not None and dz is not None else None
