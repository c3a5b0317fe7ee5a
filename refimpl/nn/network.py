"""A network: a chain of layers with its layout, and the objective it makes of data.

A network owns no arrays; the same network is evaluated at many points. `NetworkObjective` is the
contract every solver sees: `objective(w, grad_out) -> float` (architecture.md §1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels.loss import softmax_cross_entropy
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
from refimpl.nn.layers import Back, Flow, Layer, Shape
from refimpl.nn.layout import Layout
from refimpl.nn.pooling import Flatten
from refimpl.nn.work import Work, executed_work


class Trace(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    context: Context
    links: list[Link]


def gated_blocks(layers: Sequence[Layer]) -> Iterator[Gated]:
    """All gated blocks, in order of execution, those inside residual blocks included."""
    for layer in layers:
        if isinstance(layer, Gated):
            yield layer
            yield from gated_blocks(layer.body)
        elif isinstance(layer, Residual):
            yield from gated_blocks(layer.body)
            yield from gated_blocks(layer.shortcut)


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
        return tuple(gated_blocks(self.layers))

    @cached_property
    def gate_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Proximal groups as CSR (indptr, indices into phi): one per (gate, output channel).

        A group holds the channel's two rows of A2 and two entries of b2: zero group, zero d, channel off.
        Source: mathematics.md §5.
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

    def check_batch(self, who: str, x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """x as a contiguous array (N, *input_shape); raises if shape or dtype are others."""
        if x.shape[1:] != self.input_shape and isinstance(self.layers[0], Flatten):
            x = x.reshape(x.shape[0], *self.input_shape) if x[0].size == np.prod(self.input_shape) else x
        if x.shape[1:] != self.input_shape or x.shape[0] < 1:
            raise InputError(f"{who}: expected samples of shape {self.input_shape}, got an array {x.shape}")
        if x.dtype != dtype:
            raise InputError(f"{who}: samples are {x.dtype} but parameters {dtype}; convert with x.astype")
        return np.ascontiguousarray(x)

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
    """Logistic(0,1) noise g_on - g_off for every gate, (batch, K) each. Source: mathematics.md §2.3."""
    return {
        block.gate.name: rng.logistic(size=(batch, block.gate.out_channels)).astype(dtype)
        for block in network.gates
    }


class NetworkObjective:
    """Mean cross-entropy of a network on a fixed batch, as `objective(w, grad_out) -> float`.

    x (N, *input_shape), y (N,) integer labels. After a call, `masks` holds the masks it used.
    """

    def __init__(
        self, network: Network, x: np.ndarray, y: np.ndarray, context: Context | None = None
    ) -> None:
        self.network = network
        self.context = context or Context(train=("theta", "phi"))
        self.x = network.check_batch("NetworkObjective", x, x.dtype)
        self.y = np.ascontiguousarray(y, dtype=np.int64)
        self.masks: Mapping[str, np.ndarray] = {}
        if self.y.shape != (x.shape[0],):
            raise InputError(f"NetworkObjective: expected {x.shape[0]} labels, got shape {self.y.shape}")
        if self.y.min() < 0 or self.y.max() >= network.classes:
            raise InputError(
                f"NetworkObjective: labels must lie in 0..{network.classes - 1}, "
                f"got {self.y.min()}..{self.y.max()}"
            )

    def __call__(self, w: np.ndarray, grad_out: np.ndarray) -> float:
        """Loss at w; writes the whole gradient."""
        logits, trace = self.network.forward(w, self.x, self.context)
        self.masks = self.network.masks(trace)
        dlogits = np.empty_like(logits)
        loss = softmax_cross_entropy(logits, self.y, dlogits)
        self.network.backward(w, dlogits, trace, grad_out)
        return float(loss)

    @property
    def work(self) -> Work:
        """What the last evaluation of value and gradient cost."""
        return executed_work(self.network, self.masks, len(self.y), self.context)

    def measure(self) -> tuple[float, float]:
        """Executed FLOPs of the last evaluation, and the share of gated channels off in it."""
        closed = sum(int((mask == 0).sum()) for mask in self.masks.values())
        gated = sum(mask.size for mask in self.masks.values())
        return self.work.total, closed / max(gated, 1)

    def value(self, w: np.ndarray) -> float:
        """Loss at w alone."""
        logits, _ = self.network.forward(w, self.x, self.context)
        return float(softmax_cross_entropy(logits, self.y, np.empty_like(logits)))
