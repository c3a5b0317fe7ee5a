"""Wrong rules of layers and gates. Source: mathematics.md §2; Ioffe & Szegedy 2015, Algorithm 1. Derived."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np

from refimpl.golden.case import PARAM, Arrays, Case
from refimpl.golden.describe import build
from refimpl.golden.suspects.contract import TINY, Suspect, altered
from refimpl.nn.chain import chain_shape


def transposed_weight(case: Case) -> Iterator[Suspect]:
    """Weights whose two channel axes are equally long: an exchange goes unnoticed by shapes."""
    for name, weight in _weights(case):
        if weight.shape[0] == weight.shape[1]:
            layout = "(out, in)" if weight.ndim == 2 else "(out, in, height, width)"
            hint = f"{name.removeprefix(PARAM)} was used transposed; its layout is {layout}"
            swapped = np.ascontiguousarray(weight.swapaxes(0, 1))
            yield Suspect("transposed weight", hint, altered(case, {name: swapped}))


def flipped_kernel(case: Case) -> Iterator[Suspect]:
    """Kernels turned by 180 degrees."""
    for name, weight in _weights(case):
        if math.prod(weight.shape[2:]) > 1:
            shown = name.removeprefix(PARAM)
            hint = f"the kernel {shown} was flipped; a layer correlates, it does not convolve"
            turned = np.ascontiguousarray(weight[:, :, ::-1, ::-1])
            yield Suspect("flipped kernel", hint, altered(case, {name: turned}))


def _weights(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in case.inputs.items():
        if name.rpartition(".")[2] == "weight" and array.ndim in (2, 4):
            yield name, array


def relu_at_zero(case: Case) -> Iterator[Suspect]:
    """Rectified units at exactly 0 moved to just above, where the derivative is 1."""
    hint = "the derivative of ReLU at 0 was taken as 1; it is 0 (pass on where y > 0, not y >= 0)"
    if case.kind == "relu":
        yield Suspect("ReLU'(0)", hint, altered(case, {"x": _raised(case.inputs["x"])}))
    biases = [name for name in case.inputs if name.endswith(".bias") and ".gate.fc2." not in name]
    gates = [name for name in biases if ".gate." in name]
    layers = [name for name in biases if ".gate." not in name]
    for names, where in (
        (biases, ""),
        (layers, ", of the layers'"),
        (gates, ", of the gates' hidden units'"),
    ):
        if any((case.inputs[name] == 0).any() for name in names):
            moved = {name: _raised(case.inputs[name]) for name in names}
            yield Suspect("ReLU'(0)", hint.replace(" of ReLU", f" of ReLU{where}"), altered(case, moved))


def _raised(array: np.ndarray) -> np.ndarray:
    return np.where(array == 0, array.dtype.type(TINY), array)


def tie_of_gate(case: Case) -> Iterator[Suspect]:
    """Gates whose d is exactly 0 moved to just above."""
    moved = {}
    for name, bias in _second_layers(case).items():
        if name.endswith(".bias"):
            tied = (bias[0::2] == 0) & (bias[1::2] == 0)
            moved[name] = bias.copy()
            moved[name][1::2][tied] = TINY
    if moved:
        hint = "a channel with d = 0 was left on; a tie is off (on iff d > 0)"
        yield Suspect("tie rule", hint, altered(case, moved))


def tie_of_pool(case: Case) -> Iterator[Suspect]:
    """Windows with equal maxima, the last of which is raised."""
    if case.kind == "max_pool2d":
        x = case.inputs["x"]
        ramp = np.arange(x[0, 0].size, dtype=x.dtype).reshape(x.shape[2:])
        hint = "of equal maxima in a window the last got the gradient; the first gets it"
        yield Suspect("tie rule", hint, altered(case, {"x": x + x.dtype.type(1e-4) * ramp}))


def mask_and_relu(case: Case) -> Iterator[Suspect]:
    """The mask on the other side of ReLU: the other gate gradient."""
    gating = case.settings.get("gating", {"mode": "soft"})
    if gating["mode"] == "soft":
        return
    other = "active" if gating["gate_grad"] == "dense" else "dense"
    sides = {
        "active": "the mask was applied before ReLU; gate_grad `dense` applies it after the block",
        "dense": "the mask was applied after ReLU; gate_grad `active` applies it right after the convolution",
    }
    changed = altered(case, gating={**gating, "gate_grad": other})
    yield Suspect("mask before/after ReLU", sides[other], changed)


def logit_order(case: Case) -> Iterator[Suspect]:
    """The gates' logits exchanged in pairs, or read as two halves."""
    found = _second_layers(case)
    if not found:
        return

    def rearranged(rearrange: Callable[[np.ndarray], np.ndarray]) -> Arrays:
        return {name: np.ascontiguousarray(rearrange(array)) for name, array in found.items()}

    def exchanged(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)

    def interleaved(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(2, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    for rearrange, done in (
        (exchanged, "a channel's logits were read as (on, off)"),
        (interleaved, "the logits were read as all off, then all on"),
    ):
        hint = f"{done}; row 2c of fc2 is channel c's off logit, row 2c + 1 its on logit"
        yield Suspect("two-logit order", hint, altered(case, rearranged(rearrange)))


def _second_layers(case: Case) -> Arrays:
    """Weights and biases that give the gates' logits."""
    return {name: array for name, array in case.inputs.items() if ".gate.fc2." in name}


HINT_VARIANCE = "the variance of {0} was divided by n - 1; batch normalisation divides by n = {1}"


def unbiased_variance(case: Case) -> Iterator[Suspect]:
    """Batch normalisation by the unbiased variance, which another eps and scale express exactly."""
    if case.kind == "batch_norm2d":
        count = case.inputs["x"].size // case.inputs["x"].shape[1]
        changed = {"weight": _narrower(case.inputs["weight"], count)}
        eps = _eps(case.settings["eps"], count)
        hint = HINT_VARIANCE.format("the batch", count)
        yield Suspect("biased BatchNorm variance", hint, altered(case, changed, eps=eps))
    layers = case.settings.get("layers", [])
    for index, entry in enumerate(layers):
        if entry["type"] == "batch_norm2d" and case.kind == "network":
            shape = chain_shape(build(layers[:index]), tuple(case.settings["input_shape"]))
            count = len(case.inputs["x"]) * math.prod(shape[1:])
            weight = f"{PARAM}{entry['name']}.weight"
            changed, other = {weight: _narrower(case.inputs[weight], count)}, copy.deepcopy(layers)
            other[index]["eps"] = _eps(entry["eps"], count)
            hint = HINT_VARIANCE.format(entry["name"], count)
            yield Suspect("biased BatchNorm variance", hint, altered(case, changed, layers=other))


def _narrower(weight: np.ndarray, count: int) -> np.ndarray:
    return (weight * math.sqrt((count - 1) / count)).astype(weight.dtype)


def _eps(eps: float, count: int) -> float:
    """var n/(n-1) + eps = n/(n-1) (var + this)."""
    return eps * (count - 1) / count
