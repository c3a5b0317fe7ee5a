"""Copies of layers that record what passes through them, forward and backward.

A plan runs them like the layers themselves, so they record what training computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import Arrays
from refimpl.crosscheck.golden.describe import Description
from refimpl.nn.gate import ChannelGate, Decide, Decision, Gated
from refimpl.nn.joins import Fork
from refimpl.nn.layers import Arrays as Parameters
from refimpl.nn.layers import Back, Block, Flow, Layer, Linear, Mask, Shape, WeightedCache
from refimpl.nn.plan import Planner, Value


def watched(layers: Sequence[Layer], description: Description, notes: Arrays) -> tuple[Layer, ...]:
    """Copies of the layers that record under the names of the description (`names.py`)."""
    return tuple(_twin(layer, entry, notes) for layer, entry in zip(layers, description, strict=True))


def _twin(layer: Any, entry: dict[str, Any], notes: Arrays) -> Layer:
    if not isinstance(layer, Block):
        recording: Layer = _rebuilt(layer, _layer_class(type(layer), entry["name"], notes), {})
        return recording
    inner: dict[str, Any] = {
        branch: watched(getattr(layer, branch), entry[branch], notes)
        for branch in ("body", "shortcut")
        if branch in entry
    }
    if isinstance(layer, Gated):
        inner["gate"] = _rebuilt(layer.gate, _gate_class(notes), {})
    twin: Layer = _rebuilt(layer, _block_class(type(layer), entry["name"], notes), inner)
    return twin


def _rebuilt(spec: Any, kind: type, changed: dict[str, Any]) -> Any:
    """The frozen specification as an instance of `kind`, a subclass of its own class."""
    return kind(**{field.name: getattr(spec, field.name) for field in fields(spec)} | changed)


def _layer_class(kind: Any, name: str, notes: Arrays) -> type:
    """A subclass of `kind` whose layers record their output and its gradient."""

    class Watched(kind):
        def forward(self, params: Parameters, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Any]:
            y, mask, cache = super().forward(params, x, flow)
            notes[f"forward.{name}"] = y
            return y, mask, cache

        def backward(
            self, dy: np.ndarray, cache: Any, params: Parameters, grads: Parameters, back: Back
        ) -> np.ndarray | None:
            notes[f"backward.{name}"] = _seen(dy, back.dy_mask)
            dx: np.ndarray | None = super().backward(dy, cache, params, grads, back)
            return dx

    return Watched


def _block_class(kind: Any, name: str, notes: Arrays) -> type:
    """A subclass of `kind` whose blocks end with a step that records."""

    class WatchedEnd(Fork):
        def forward(self, params: Parameters, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, None]:
            notes[f"forward.{name}"] = x
            return super().forward(params, x, flow)

        def backward(
            self, dy: np.ndarray, cache: None, params: Parameters, grads: Parameters, back: Back
        ) -> np.ndarray:
            notes[f"backward.{name}"] = dy
            return super().backward(dy, cache, params, grads, back)

    class WatchedBlock(kind):
        def expand(self, planner: Planner, x: Value) -> Value:
            return planner.add(WatchedEnd(), super().expand(planner, x))

    return WatchedBlock


def _gate_class(notes: Arrays) -> type:
    """A subclass whose gates record every step of a decision, and the gradient of the mask."""

    class WatchedDecide(Decide):
        def forward(self, params: Parameters, x: np.ndarray, flow: Flow) -> tuple[Decision, Mask, Decision]:
            found = super().forward(params, x, flow)
            notes.update({f"forward.{self.name}.logits": x, f"forward.{self.name}.mask": found[0].mask})
            return found

        def backward(
            self, dy: np.ndarray, cache: Decision, params: Parameters, grads: Parameters, back: Back
        ) -> np.ndarray:
            notes[f"backward.{self.name}"] = dy
            return super().backward(dy, cache, params, grads, back)

    class WatchedLinear(Linear):
        def forward(
            self, params: Parameters, x: np.ndarray, flow: Flow
        ) -> tuple[np.ndarray, Mask, WeightedCache]:
            gate, number = self.name.rsplit(".", 1)
            notes[f"forward.{gate}.{'summary' if number == 'fc1' else 'hidden'}"] = x
            return super().forward(params, x, flow)

    class WatchedGate(ChannelGate):
        def layers(self, shape: Shape) -> tuple[Layer, ...]:
            kinds: dict[type, type] = {Linear: WatchedLinear, Decide: WatchedDecide}
            return tuple(
                _rebuilt(layer, kinds.get(type(layer), type(layer)), {}) for layer in super().layers(shape)
            )

    return WatchedGate


def _seen(dy: np.ndarray, mask: Mask) -> np.ndarray:
    """dy with zeros at the entries that a layer does not read."""
    if mask is None:
        return dy
    groups = dy.reshape(*mask.shape, -1)
    return np.where(mask[:, :, None], groups, dy.dtype.type(0)).reshape(dy.shape)
