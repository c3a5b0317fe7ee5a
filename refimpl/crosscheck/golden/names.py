"""The names of what a chain of layers outputs, in the order of execution.

Forward, for every layer with name L of the description (`describe.py`):

    forward.L                 its output. Inside a gated body: with `gate_grad` `dense`, of all channels (the
                              mask is applied at the end of the body: forward.L.gated); with `active`, zero
                              in closed channels (the mask comes right after the convolution, before ReLU)
    forward.<gate>.summary    channel means of the gate's input (N, C); .hidden: after its ReLU (N, hidden)
    forward.<gate>.logits     (N, 2K), channel k's off logit at 2k and its on logit at 2k + 1
    forward.<gate>.mask       (N, K): bool, in mode `soft` floating point
    loss                      mean cross-entropy over the batch, shape ()

Backward, from the last layer to the first:

    backward.L                gradient of the loss in forward.L; with `gate_grad` `active`, where that of a
                              closed channel is not defined, for the last layer only
    grad.<parameter>          gradient in a parameter, right after backward.L of its layer
    backward.<gate>           gradient in the mask (N, K), before it goes through the mode's derivative
    grad.x                    gradient in the samples

What a gate computes for an input X: s = channel means of X (of a flat X, X itself), hidden = relu(fc1(s)),
logits = fc2(hidden), and for channel k d[k] = logits[2k+1] - logits[2k], on minus off. The mask M, by the
setting `mode`, with sigma(t) = 1/(1 + exp(-t)), sigma' = sigma (1 - sigma) and tau, the setting `tau`:

| mode | M forward | dM/dd backward |
| --- | --- | --- |
| hard | 1 where d > 0, else 0 | sigma'(d/tau)/tau |
| gumbel | 1 where d + n > 0, else 0 | sigma'((d + n)/tau)/tau |
| ste | 1 where d > 0, else 0 | 1 |
| soft | sigma(d/tau) | sigma'(d/tau)/tau |

n is the input `noise.<gate>`, two Gumbel draws' difference g_on - g_off; the other modes have none. A tie,
d = 0, is off. tau matters forward in `soft` only. The output of a gated body is M * body(X), M being the same
at all pixels of a channel. Backward, with Z the body's output:

    gate_grad dense      dL/dM = sum over pixels of dL/d(M Z) * Z, with the Z that a closed channel would
                         have had: the mask is multiplied after the body, closed channels are computed too
    gate_grad active     closed channels are zero from the convolution on, so dL/dM = 0 there (ReLU'(0) = 0);
                         in `soft`, where nothing is closed, the same as `dense`
    detach_gate_input    true: nothing passes from a gate on to its input X; false: it does, through s

dL/dd = dL/dM * dM/dd; logits get -dL/dd (off) and +dL/dd (on). The body gets M * dL/d(M Z) either way.

Source: mathematics.md §2. Derived.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from refimpl.crosscheck.golden.describe import WEIGHTED, Description
from refimpl.errors import nearest

GATE_STEPS = ("summary", "hidden", "logits", "mask")


def forward_names(layers: Description) -> Iterator[str]:
    """Names of the outputs of a forward pass."""
    for entry in layers:
        if entry["type"] == "gated":
            yield from (f"forward.{entry['gate']['name']}.{step}" for step in GATE_STEPS)
        for branch in ("body", "shortcut"):
            yield from forward_names(entry.get(branch, []))
        yield f"forward.{entry['name']}"


def backward_names(layers: Description, activations: bool = True) -> Iterator[str]:
    """Names of the outputs of a backward pass, with or without gradients of activations."""
    for entry in reversed(layers):
        if activations:
            yield f"backward.{entry['name']}"
        if entry["type"] in WEIGHTED:
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
    """A name from anyone's file, made safe for a terminal, Markdown and HTML."""
    return re.sub(r"[^\w./ +-]", lambda match: f"\\x{ord(match[0]):02x}", name)


def with_nearest(name: str, known: Iterable[str]) -> str:
    """The name of an array that is not expected, with the nearest of the names that are."""
    near = nearest(name, known).rstrip()
    return f"{shown(name)} ({near})" if near else shown(name)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def is_gradient(output: str) -> bool:
    """Whether an output is a gradient; all others are values, such as activations, iterates and losses."""
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
