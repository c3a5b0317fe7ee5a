"""The steps of a plan with layers that record what passes through them, forward and backward.

They run like the steps themselves, so what they record is what training computes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import Arrays
from refimpl.crosscheck.golden.describe import Description, gated_blocks
from refimpl.nn.gate import Decide
from refimpl.nn.joins import Add, Fork, Product
from refimpl.nn.layers import Arrays as Parameters
from refimpl.nn.layers import Back, Flow, Linear, Mask
from refimpl.nn.plan import NONE, Step

GATE_INPUTS = {"fc1": "summary", "fc2": "hidden"}  # what the linear layers of a gate read
Seen = Callable[[Any, Any], Arrays]  # from a layer's input and output to what is recorded of them


class Watched:
    """A layer that records what `seen` makes of its input and output, and the gradient of its output."""

    def __init__(self, layer: Any, notes: Arrays, seen: Seen, backward: str = "") -> None:
        self.layer, self.notes, self.seen, self.name = layer, notes, seen, backward
        self.decides = getattr(layer, "decides", False)

    def forward(self, params: Parameters, x: Any, flow: Flow) -> tuple[Any, Mask, Any]:
        """Run the layer, and record what is seen."""
        found: tuple[Any, Mask, Any] = self.layer.forward(params, x, flow)
        self.notes.update(self.seen(x, found[0]))
        return found

    def backward(self, dy: np.ndarray, cache: Any, params: Parameters, grads: Parameters, back: Back) -> Any:
        """Record the gradient of the output, with zeros where the layer does not read it."""
        if self.name:
            joins = isinstance(self.layer, (Add, Product))
            self.notes[self.name] = dy if joins else _read(dy, back.dy_mask)
        return self.layer.backward(dy, cache, params, grads, back)


def watched(steps: Sequence[Step], description: Description, notes: Arrays) -> list[Step]:
    """The steps of a chain of layers, recording under the names of its description (`names.py`)."""
    names = _in_order(description)
    blocks = {block["gate"]["name"]: block["name"] for block in gated_blocks(description)}
    return [step._replace(layer=_watched(step, names, blocks, notes)) for step in steps]


def _watched(step: Step, names: Iterator[str], blocks: dict[str, str], notes: Arrays) -> Any:
    """The layer of a step as one that records; names: of the layers outside gates that are still to come."""
    layer = step.layer
    if isinstance(layer, Decide):
        logits, mask = (f"forward.{layer.name}.{what}" for what in ("logits", "mask"))
        return Watched(layer, notes, lambda x, y: {logits: x, mask: y.mask}, f"backward.{layer.name}")
    if isinstance(layer, Linear) and step.gate != NONE:
        gate, _, number = layer.name.rpartition(".")
        return Watched(layer, notes, lambda x, y: {f"forward.{gate}.{GATE_INPUTS[number]}": x})
    if isinstance(layer, Fork) or (step.gate != NONE and not isinstance(layer, Product)):
        return layer
    name = blocks[layer.name] if isinstance(layer, Product) else next(names)
    return Watched(layer, notes, lambda x, y: {f"forward.{name}": y}, f"backward.{name}")


def _in_order(description: Description) -> Iterator[str]:
    """The names of the layers outside gates, in the order of their steps."""
    for entry in description:
        for branch in ("shortcut", "body"):
            yield from _in_order(entry.get(branch, []))
        if entry["type"] != "gated":
            yield entry["name"]


def _read(dy: np.ndarray, mask: Mask) -> np.ndarray:
    """dy with zeros at the entries that a layer does not read."""
    if mask is None:
        return dy
    groups = dy.reshape(*mask.shape, -1)
    return np.where(mask[:, :, None], groups, dy.dtype.type(0)).reshape(dy.shape)
