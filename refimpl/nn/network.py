"""A network: a chain of layers with its layout.

A network owns no arrays, so that one network can be evaluated at many points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels.arrays import INDICES, tidy
from refimpl.nn.chain import chain_parameters, chain_shape
from refimpl.nn.context import Context, FixedShare, Gating
from refimpl.nn.depth import depths, shortened
from refimpl.nn.gate import Decision, Gated
from refimpl.nn.layers import BatchNorm2d, Layer, Shape
from refimpl.nn.layout import STORED, Layout, is_float
from refimpl.nn.plan import every_layer, plan
from refimpl.nn.pooling import Flatten
from refimpl.nn.run import Trace, run_backward, run_forward


@dataclass(frozen=True)
class Network:
    """A classifier: `layers` map samples of `input_shape` to one logit per class; messages use its `name`.

    cut: the depth to which `at_depth` cut it, 0 for a whole network.
    """

    name: str
    layers: tuple[Layer, ...]
    input_shape: Shape
    cut: int = 0

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
    def depth(self) -> int:
        """The blocks of its longest stage (`depth.py`); 0 for a network without stages."""
        return self.cut or depths(self.layers, self.input_shape)

    def at_depth(self, depth: int) -> Network:
        """The network with the first `depth` blocks of every stage; its parameters are some of this one's.

        `layout.entries` says where they lie in w. Raises `InputError` unless 1 <= depth <= `self.depth`.
        Source: mathematics.md §15.1. Reconstructed.
        """
        if not 1 <= depth <= self.depth:
            has = f"depths 1 to {self.depth}" if self.depth else "no stages; choose a network with stages"
            raise InputError(f"{self.name}: expected one of its depths, got {depth}; it has {has}")
        if depth == self.depth:
            return self
        layers = shortened(self.layers, self.input_shape, depth)
        return replace(self, name=f"{self.name}-depth{depth}", layers=layers, cut=depth)

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
        return self.grouped_gates()

    def grouped_gates(self, with_bias: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """`gate_groups`; without bias a group holds the two rows of A2 alone."""
        offset, groups = self.layout.phi.start, []
        for block in self.gates:
            weight = self.layout.by_name[f"{block.gate.name}.fc2.weight"]
            bias = self.layout.by_name[f"{block.gate.name}.fc2.bias"]
            row = 2 * block.gate.hidden  # the two rows of a channel are adjacent
            for channel in range(block.gate.out_channels):
                rows = np.arange(weight.start + channel * row, weight.start + (channel + 1) * row)
                entries = np.arange(bias.start + 2 * channel, bias.start + 2 * channel + 2)
                groups.append(np.concatenate([rows, entries] if with_bias else [rows]) - offset)
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
        params = self.layout.views(context.pruned(w))
        x = self.check_batch(f"{self.name}.forward", x, w.dtype)
        return run_forward(plan(self.layers, self.input_shape, context.routing), params, x, context)

    def backward(self, w: np.ndarray, dlogits: np.ndarray, trace: Trace, grad: np.ndarray) -> None:
        """Write the whole gradient into `grad`; parts that are not trained or pruned get zeros."""
        self.layout.check_pair(f"{self.name}.backward", w, grad, "grad")
        context = trace.context
        params, grads = self.layout.views(context.pruned(w)), self.layout.views(grad)
        for part in STORED:
            if part not in context.train:
                grad[getattr(self.layout, part)] = 0
        run_backward(trace, dlogits, params, grads)
        if context.weights is not None:
            np.copyto(grad, 0, where=~context.weights.kept)

    def decisions(self, trace: Trace) -> dict[str, Decision]:
        """What each gate decided in a forward pass, by gate name."""
        found: dict[int, Decision] = {}
        for number, cache in enumerate(trace.caches):
            if isinstance(cache, Decision):
                first, _, second = trace.caches[number - 3 : number]
                found[trace.steps[number].gate] = cache._replace(summary=first.x, hidden=second.x)
        return {block.gate.name: found[number] for number, block in enumerate(self.gates)}

    def masks(self, trace: Trace) -> dict[str, np.ndarray]:
        """The masks of a forward pass by gate name: bool (N,K), or float for smooth modes."""
        return {name: decision.mask for name, decision in self.decisions(trace).items()}


def draw_gate_noise(
    network: Network,
    batch: int,
    rng: np.random.Generator,
    dtype: Any = np.float64,
    gating: Gating | None = None,
) -> dict[str, np.ndarray]:
    """Logistic(0,1) noise g_on - g_off for every gate, (batch, K) each; of a `FixedShare` its own noise.

    Source: mathematics.md §2.3. Derived: the difference of two Gumbel(0,1) variables.
    """
    sizes = {block.gate.name: (batch, block.gate.out_channels) for block in network.gates}
    if isinstance(gating, FixedShare):
        return {name: gating.noise(name, *size).astype(dtype) for name, size in sizes.items()}
    return {name: rng.logistic(size=size).astype(dtype) for name, size in sizes.items()}
