"""What a chain of layers gives, in the order of execution.

Forward, for every layer with name L of the description (`describe.py`):

    forward.L                 its output. Inside a gated body: with `gate_grad` `dense`, of all channels (the
                              mask is applied at the end of the body: forward.L.gated); with `active`, zero
                              in closed channels (the mask comes right after the convolution, before ReLU)
    forward.<gate>.summary    channel means of the gate's input (N, C); .hidden: after its ReLU (N, hidden)
    forward.<gate>.logits     (N, 2K), channel k's off logit at 2k and its on logit at 2k + 1
    forward.<gate>.mask       (N, K): bool, in mode `soft` floating point
    loss                      mean cross-entropy over the batch, shape ()

Backward, from the last layer to the first:

    backward.L                gradient of the loss in forward.L (not in `active` mode, where a closed
                              channel's is not defined; there only that of the last layer)
    grad.<parameter>          gradient in a parameter, right after backward.L of its layer
    backward.<gate>           gradient in the mask (N, K), before it goes through the mode's derivative
    grad.x                    gradient in the samples

Source: mathematics.md §2. Derived.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from refimpl.golden.describe import Description

GATE_STEPS = ("summary", "hidden", "logits", "mask")
_WEIGHTED = ("conv2d", "linear", "batch_norm2d")


def forward_names(layers: Description) -> Iterator[str]:
    """Names of the outputs of a forward pass."""
    for entry in layers:
        if entry["type"] == "gated":
            yield from (f"forward.{entry['gate']['name']}.{step}" for step in GATE_STEPS)
        for branch in ("body", "shortcut"):
            yield from forward_names(entry.get(branch, []))
        yield f"forward.{entry['name']}"


def backward_names(layers: Description, activations: bool = True) -> Iterator[str]:
    """Names of the outputs of a backward pass, with or without the gradients in activations."""
    for entry in reversed(layers):
        if activations:
            yield f"backward.{entry['name']}"
        if entry["type"] in _WEIGHTED:
            yield f"grad.{entry['name']}.weight"
            if entry.get("bias", True):
                yield f"grad.{entry['name']}.bias"
        for branch in ("body", "shortcut"):
            yield from backward_names(entry.get(branch, []), activations)
        if entry["type"] == "gated":
            gate = entry["gate"]["name"]
            if activations:
                yield f"backward.{gate}"
            yield from (f"grad.{gate}.{p}" for p in ("fc2.weight", "fc2.bias", "fc1.weight", "fc1.bias"))


def shown(name: str) -> str:
    """A name from anyone's file as it may stand on a terminal, in Markdown and in HTML."""
    return re.sub(r"[^\w./ +-]", lambda match: f"\\x{ord(match[0]):02x}", name)


def is_gradient(output: str) -> bool:
    """Whether an output of any level is a gradient; the others are values: activations, iterates, losses."""
    words = output.split(".")
    return words[0] in ("backward", "grad") or words[-1] in ("gradient", "g")


def network_outputs(layers: Description, gate_grad: str) -> tuple[str, ...]:
    """All outputs of a network with its loss, forward, then backward down to grad.x."""
    last = () if gate_grad == "dense" else (f"backward.{layers[-1]['name']}",)
    back = backward_names(layers, gate_grad == "dense")
    return (*forward_names(layers), "loss", *last, *back, "grad.x")


def block_outputs(layers: Description, gate_grad: str) -> tuple[str, ...]:
    """All outputs of a chain of layers without loss, forward, then backward from dy down to grad.x."""
    return (*forward_names(layers), *backward_names(layers, gate_grad == "dense"), "grad.x")
