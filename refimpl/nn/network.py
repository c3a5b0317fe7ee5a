"""A network: a chain of layers with its layout.

A network owns no arrays, so that one network can be evaluated at many points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels.arrays import INDICES, tidy
from refimpl.nn.chain import (
    Link,
    Residual,
    ResidualCache,
    chain_backward,
    chain_forward,
    chain_parameters,
    chain_shape,
)
from refimpl.nn.context import Context
from refimpl.nn.gate import GateCache, Gated, GatedCache
from refimpl.nn.layers import Back, BatchNorm2d, Flow, Layer, Shape
from refimpl.nn.layout import Layout, is_float
from refimpl.nn.pooling import Flatten


class Trace(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    context: Context
    links: list[Link]


def every_layer(layers: Sequence[Layer]) -> Iterator[Layer]:
    """All layers, in order of execution, those inside residual and gated blocks included."""
    for layer in layers:
        yield layer
        if isinstance(layer, Gated):
            yield from every_layer(layer.body)
        elif isinstance(layer, Residual):
            yield from every_layer(layer.body)
            yield from every_layer(layer.shortcut)


def _collect(layers: Sequence[Layer], links: Sequence[Link], out: dict[str, GateCache]) -> None:
    for layer, link in zip(layers, links, strict=True):
        if isinstance(layer, Gated):
            cache: GatedCache = link.cache
            out[layer.gate.name] = cache.gate
            _collect(layer.body, cache.body, out)
        elif isinstance(layer, Residual):
            branches: ResidualCache = link.cache
            _collect(layer.body, branches.body, out)
            _collect(layer.shortcut, branches.shortcut, out)


@dataclass(frozen=True)
class Network:
    """A classifier: `layers` map samples of `input_shape` to one logit per class."""

    name: str
    layers: tuple[Layer, ...]
    input_shape: Shape

    def __post_init__(self) -> None:
        if len(self.output_shape) != 1:
            raise InputError(
                f"{self.name}: the last layer must give one vector, got shape {self.output_shape}"
            )

    @cached_property
    def output_shape(self) -> Shape:
        """(classes,)."""
        return chain_shape(self.layers, self.input_shape)

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.output_shape[0]

    @cached_property
    def layout(self) -> Layout:
        """Where each parameter lies in w."""
        return Layout(chain_parameters(self.layers))

    @cached_property
    def gates(self) -> tuple[Gated, ...]:
        """The gated blocks in order of execution."""
        return tuple(layer for layer in every_layer(self.layers) if isinstance(layer, Gated))

    @cached_property
    def mixes_samples(self) -> bool:
        """Whether a sample's logits depend on the others of its batch, which must then stay together."""
        return any(isinstance(layer, BatchNorm2d) for layer in every_layer(self.layers))

    @cached_property
    def gate_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Proximal groups as CSR (indptr, indices into phi): one per (gate, output channel).

        A group holds the channel's two rows of A2 and two entries of b2: zero group, zero d, channel off.
        Source: mathematics.md §5. Derived.
        """
        offset, groups = self.layout.phi.start, []
        for block in self.gates:
            weight = self.layout.by_name[f"{block.gate.name}.fc2.weight"]
            bias = self.layout.by_name[f"{block.gate.name}.fc2.bias"]
            row = 2 * block.gate.hidden  # the two rows of a channel are adjacent
            for channel in range(block.gate.out_channels):
                rows = np.arange(weight.start + channel * row, weight.start + (channel + 1) * row)
                entries = np.arange(bias.start + 2 * channel, bias.start + 2 * channel + 2)
                groups.append(np.concatenate([rows, entries]) - offset)
        indptr = np.concatenate([[0], np.cumsum([len(group) for group in groups], dtype=np.int64)])
        indices = np.concatenate(groups) if groups else np.empty(0, dtype=np.int64)
        return indptr.astype(np.int64), indices.astype(np.int64)

    def check_batch(self, who: str, x: np.ndarray, dtype: np.dtype[Any] | None = None) -> np.ndarray:
        """x as compiled code takes it (`tidy`), (N, *input_shape); raises if shape or dtype are others.

        Where the network flattens first, images of as many pixels are taken as well.
        """
        x = tidy(x)
        flattens = isinstance(next(iter(self.layers), None), Flatten) and x.ndim > 1
        if flattens and math.prod(x.shape[1:]) == math.prod(self.input_shape):
            x = x.reshape(x.shape[0], *self.input_shape)
        if x.ndim < 1 or x.shape[1:] != self.input_shape or x.shape[0] < 1:
            raise InputError(
                f"{who}: expected at least one sample of shape {self.input_shape}, got an array {x.shape}; "
                "the first axis counts samples"
            )
        wanted = x.dtype if dtype is None else dtype
        if x.dtype != wanted or not is_float(x.dtype):
            raise InputError(
                f"{who}: samples are {x.dtype} but parameters {wanted}; convert with x.astype('float32') "
                "or 'float64'"
            )
        return x

    def check_labels(self, who: str, y: np.ndarray, samples: int) -> np.ndarray:
        """y as compiled code takes it, int64 (samples,); raises unless every label is one of the classes."""
        y = tidy(y)
        if y.dtype.kind not in "iu":
            raise InputError(f"{who}: labels must be whole numbers, got {y.dtype}; use y.astype(int)")
        if y.shape != (samples,):
            raise InputError(f"{who}: expected {samples} labels, got shape {y.shape}")
        if y.min() < 0 or y.max() >= self.classes:
            raise InputError(f"{who}: labels must lie in 0..{self.classes - 1}, got {y.min()}..{y.max()}")
        return y.astype(INDICES, copy=False)

    def forward(
        self, w: np.ndarray, x: np.ndarray, context: Context | None = None
    ) -> tuple[np.ndarray, Trace]:
        """Logits (N, classes) and the trace for `backward`. x (N, *input_shape) in the dtype of w."""
        context = context or Context()
        params = self.layout.views(w)
        x = self.check_batch(f"{self.name}.forward", x, w.dtype)
        logits, _, links = chain_forward(self.layers, params, x, Flow(context))
        return logits, Trace(context, links)

    def backward(self, w: np.ndarray, dlogits: np.ndarray, trace: Trace, grad: np.ndarray) -> None:
        """Write the whole gradient into `grad`; parts that are not trained get zeros."""
        self.layout.check_pair(f"{self.name}.backward", w, grad, "grad")
        params, grads = self.layout.views(w), self.layout.views(grad)
        for part in ("theta", "phi"):
            if part not in trace.context.train:
                grad[getattr(self.layout, part)] = 0
        chain_backward(self.layers, dlogits, trace.links, params, grads, Back(trace.context, need_dx=False))

    def decisions(self, trace: Trace) -> dict[str, GateCache]:
        """What each gate decided in a forward pass, by gate name."""
        out: dict[str, GateCache] = {}
        _collect(self.layers, trace.links, out)
        return out

    def masks(self, trace: Trace) -> dict[str, np.ndarray]:
        """The masks of a forward pass by gate name: bool (N,K), or float for smooth modes."""
        return {name: decision.mask for name, decision in self.decisions(trace).items()}


def draw_gate_noise(
    network: Network, batch: int, rng: np.random.Generator, dtype: Any = np.float64
) -> dict[str, np.ndarray]:
    """Logistic(0,1) noise g_on - g_off for every gate, (batch, K) each.

    Source: mathematics.md §2.3. Derived: the difference of two Gumbel(0,1) variables.
    """
    return {
        block.gate.name: rng.logistic(size=(batch, block.gate.out_channels)).astype(dtype)
        for block in network.gates
    }
