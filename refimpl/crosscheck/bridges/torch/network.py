"""Any network of this package as a `torch.nn.Module`, gates included.

The module is built from a network's plain description (`golden/describe.py`), as a stranger would build
it. It has PyTorch's names: its `state_dict` and the package's dict of arrays exchange by name.

Source: mathematics.md §2.1-§2.3b.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refimpl.crosscheck.bridges.torch import ops
from refimpl.crosscheck.bridges.torch.weights import to_state_dict
from refimpl.crosscheck.golden.describe import describe, gated_blocks
from refimpl.errors import InputError
from refimpl.nn.context import Gating
from refimpl.nn.network import Network

Entry = Mapping[str, Any]
Shape = tuple[int, ...]
Noise = Mapping[str, Tensor]
# A function that is called with the name and value of each result, in the order of execution.
Watch = Callable[[str, Tensor], None]


class GatedNetwork(nn.Module):
    """The layers of a description: x (N, ...) -> their output, for a network the logits (N, classes).

    layers: as `golden/describe.py` has them; shapes: of the parameters by name, in the order of the flat
    vector w; train: the parts that want a gradient, the others' parameters have `requires_grad` off. Where
    phi, the gates, is fixed, 0/1 masks are constants.
    """

    def __init__(
        self,
        layers: Sequence[Entry],
        shapes: Mapping[str, Shape],
        gating: Gating,
        train: Sequence[str] = ("theta", "phi"),
    ) -> None:
        super().__init__()
        self.layers, self.shapes, self.gating = layers, dict(shapes), gating
        self.gates_learn = "phi" in train or gating.mode == "soft"
        self.shapes_gates = "phi" in train and gating.shaping.weight > 0
        gates = tuple(f"{block['gate']['name']}." for block in gated_blocks(layers))
        wanted = {
            name: ("phi" if name.startswith(gates) else "theta") in train
            and not name.endswith(ops.STATISTICS)
            for name in shapes
        }
        for name, shape in shapes.items():
            _put(self, name, nn.Parameter(torch.zeros(shape), wanted[name]))
        # Which entries of w need a gradient.
        self.trained = torch.cat([torch.full((math.prod(shapes[name]),), wanted[name]) for name in shapes])

    def forward(self, x: Tensor, noise: Noise | None = None, watch: Watch | None = None) -> Tensor:
        """The output; noise: g_on - g_off by gate name, for mode `gumbel`.

        `watch(name, value)` is told every layer's output, and every gate's summary, hidden units, logits and
        mask.
        """
        return self._chain(self.layers, x, noise or {}, watch or (lambda name, value: None))

    def shaping(self, seen: Mapping[str, Tensor]) -> Tensor:
        """What batch-shaping adds to the loss, from what the forward pass told its `watch`."""
        names = [f"{block['gate']['name']}.logits" for block in gated_blocks(self.layers)]
        gates = [ops.margin(seen[name]) for name in names if self.shapes_gates]
        terms = [ops.shaping(d, self.gating.tau, *self.gating.shaping) for d in gates]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def _chain(self, layers: Sequence[Entry], x: Tensor, noise: Noise, watch: Watch) -> Tensor:
        for entry in layers:
            x = self._layer(entry, x, noise, watch)
        return x

    def _layer(self, entry: Entry, x: Tensor, noise: Noise, watch: Watch) -> Tensor:
        """The output of one layer."""
        if entry["type"] == "gated":
            y = self._gated(entry, x, noise, watch)
        elif entry["type"] == "residual":
            y = self._chain(entry["body"], x, noise, watch)
            y = y + self._chain(entry["shortcut"], x, noise, watch)
        else:
            y = self._plain(entry, x)
        watch(entry["name"], y)
        return y

    def _plain(self, entry: Entry, x: Tensor) -> Tensor:
        """A layer without layers inside."""
        if entry["type"] not in ops.LAYERS:
            raise InputError(f"the PyTorch bridge knows no layer of type {entry['type']!r}")
        own = f"{entry['name']}.weight" in self.shapes
        # The parameters, or the tensors that `functional_call` has put in their place.
        params = dict(self.get_submodule(entry["name"]).named_parameters(recurse=False)) if own else {}
        return ops.LAYERS[entry["type"]](entry, x, *ops.arguments(entry["type"], params))

    def _gated(self, entry: Entry, x: Tensor, noise: Noise, watch: Watch) -> Tensor:
        """M(x) * body(x): the body is a weighted layer and what acts on its channels one by one.

        With gate gradient `active`, closed channels are zero all through the body, so that their gates learn
        nothing from them (§2.3b).
        """
        mask = self._decide(entry["gate"], x, noise, watch)
        skips = self.gating.mode != "soft" and (self.gating.gate_grad == "active" or not self.gates_learn)
        for layer in entry["body"]:
            x = self._plain(layer, x)
            x = x * ops.over_pixels(mask.detach(), x) if skips else x
            watch(layer["name"], x)
        return x * ops.over_pixels(mask, x)

    def _decide(self, gate: Entry, x: Tensor, noise: Noise, watch: Watch) -> Tensor:
        """The mask (N,K) of a gate, with or without its derivative."""
        name = gate["name"]
        first, relu, second = (
            {"type": kind, "name": f"{name}.{part}"}
            for kind, part in (("linear", "fc1"), ("relu", "hidden"), ("linear", "fc2"))
        )
        s = ops.summary(x.detach() if self.gating.detach_gate_input else x)
        s = self._plain(gate["norm"], s) if "norm" in gate else s
        hidden = self._plain(relu, self._plain(first, s))
        logits = self._plain(second, hidden)
        d = ops.margin(logits)
        if self.gating.mode == "gumbel":
            d = d + noise[name]
        mask = ops.mask_of(d, self.gating.mode, self.gating.tau)
        for step, value in (("summary", s), ("hidden", hidden), ("logits", logits), ("mask", mask)):
            watch(f"{name}.{step}", value)
        return mask if self.gates_learn else mask.detach()


def _put(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under its dotted name, making modules on the way."""
    *path, last = name.split(".")
    for step in path:
        if step not in dict(root.named_children()):
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    root.register_parameter(last, parameter)


def build(
    network: Network,
    w: np.ndarray,
    gating: Gating | None = None,
    train: Sequence[str] = ("theta", "phi"),
) -> GatedNetwork:
    """The module of a network with the parameters w (d,), in the dtype of w."""
    shapes = {slot.name: slot.shape for slot in network.layout.slots}
    module = GatedNetwork(describe(network.layers), shapes, gating or Gating(), train)
    module.to(torch.float64 if w.dtype == np.float64 else torch.float32)
    module.load_state_dict(to_state_dict(network.layout, w))
    return module
