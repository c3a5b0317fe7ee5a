"""Copies of layers that record what passes through them, forward and backward.

The chain runs them like the layers themselves, so they record what training computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import Arrays
from refimpl.crosscheck.golden.describe import Description
from refimpl.kernels import linear
from refimpl.nn.context import Context
from refimpl.nn.gate import ChannelGate, GateCache
from refimpl.nn.layers import Arrays as Parameters
from refimpl.nn.layers import Back, Flow, Layer, Mask


def watched(layers: Sequence[Layer], description: Description, notes: Arrays) -> tuple[Layer, ...]:
    """Copies of the layers that record under the names of the description (`names.py`)."""
    return tuple(_twin(layer, entry, notes) for layer, entry in zip(layers, description, strict=True))


def _twin(layer: Any, entry: dict[str, Any], notes: Arrays) -> Layer:
    inner: dict[str, Any] = {
        branch: watched(getattr(layer, branch), entry[branch], notes)
        for branch in ("body", "shortcut")
        if branch in entry
    }
    if "gate" in entry:
        inner["gate"] = _rebuilt(layer.gate, _gate_class(notes), {})
    twin: Layer = _rebuilt(layer, _layer_class(type(layer), entry["name"], notes), inner)
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


def _gate_class(notes: Arrays) -> type:
    """A subclass whose gates record every step of a decision, and the gradient of the mask."""

    class WatchedGate(ChannelGate):
        def decide(self, params: Parameters, x: np.ndarray, reads: Mask, context: Context) -> GateCache:
            cache = super().decide(params, x, reads, context)
            second = params[f"{self.name}.fc2.weight"], params[f"{self.name}.fc2.bias"]
            steps = {
                "summary": cache.summary,
                "hidden": cache.hidden,
                "logits": linear.forward(cache.hidden, *second),  # a decision keeps only their difference
                "mask": cache.mask,
            }
            notes.update({f"forward.{self.name}.{step}": array for step, array in steps.items()})
            return cache

        def backward(
            self, dmask: np.ndarray, cache: GateCache, params: Parameters, grads: Parameters, back: Back
        ) -> np.ndarray | None:
            notes[f"backward.{self.name}"] = dmask
            return super().backward(dmask, cache, params, grads, back)

    return WatchedGate


def _seen(dy: np.ndarray, mask: Mask) -> np.ndarray:
    """dy with zeros at the entries that a layer does not read."""
    if mask is None:
        return dy
    groups = dy.reshape(*mask.shape, -1)
    return np.where(mask[:, :, None], groups, dy.dtype.type(0)).reshape(dy.shape)
