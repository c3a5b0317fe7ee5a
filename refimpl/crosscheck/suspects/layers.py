"""Wrong rules of layers and gates. Source: mathematics.md §2; Ioffe & Szegedy 2015, Algorithm 1. Derived."""

import copy
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import NOISE, PARAM, Arrays, Case
from refimpl.crosscheck.golden.describe import Description, build, gated_blocks
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.suspects.contract import (
    TINY,
    Rearrange,
    Seen,
    Suspect,
    altered,
    rearranged,
    scaled,
    suspect,
)
from refimpl.nn.chain import chain_shape


def transposed_weight(case: Case) -> Iterator[Suspect]:
    """Weights are transposed, which shapes do not reveal if both channel axes are equally long."""
    square = {name: weight.ndim for name, weight in _weights(case) if weight.shape[0] == weight.shape[1]}
    for name, axes in square.items():
        layout = "(out, in)" if axes == 2 else "(out, in, height, width)"
        hint = f"{name.removeprefix(PARAM)} was used transposed; its layout is {layout}"
        yield suspect("transposed weight", hint, *_transposed(case, [name]))
    if len(square) > 1:
        hint = "every weight was used transposed; a layout begins with (out, in)"
        yield suspect("transposed weight", hint, *_transposed(case, list(square)))


def _transposed(case: Case, names: Sequence[str]) -> tuple[Case, Seen]:
    return rearranged(case, {name: lambda weight: weight.swapaxes(0, 1) for name in names})


def flipped_kernel(case: Case) -> Iterator[Suspect]:
    """Kernels are turned by 180 degrees."""
    for name, weight in _weights(case):
        if math.prod(weight.shape[2:]) > 1:
            shown = name.removeprefix(PARAM)
            hint = f"the kernel {shown} was flipped; a layer correlates, it does not convolve"
            yield suspect("flipped kernel", hint, *rearranged(case, {name: lambda k: k[:, :, ::-1, ::-1]}))


def _weights(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in case.inputs.items():
        if name.rpartition(".")[2] == "weight" and array.ndim in (2, 4):
            yield name, array


def relu_at_zero(case: Case) -> Iterator[Suspect]:
    """Units that are exactly 0 before ReLU are moved to just above 0, where the derivative is 1."""
    for moved, where in _above_kinks(case):
        raised, done = altered(case, moved), f"the derivative of ReLU{where} at 0 was taken as"
        hint = f"{done} 1; it is 0 (pass on where y > 0, not y >= 0)"
        yield suspect("ReLU'(0)", hint, raised)
        if case.kind != "algorithm":  # the outputs of these come after several steps
            hint = f"{done} 1/2; it is 0 (pass on where y > 0, nothing where y = 0)"
            yield Suspect("ReLU'(0)", hint, partial(_mean_of, case, raised))


def _above_kinks(case: Case) -> Iterator[tuple[Arrays, str]]:
    """Inputs with which no unit is exactly 0, in layers and gates, and also in only one of the two."""
    if case.kind == "relu":
        yield {"x": _raised(case.inputs["x"])}, ""
    biases = [name for name in case.inputs if name.endswith(".bias") and ".gate.fc2." not in name]
    zeros = {name: _raised(case.inputs[name]) for name in biases if (case.inputs[name] == 0).any()}
    gates = {name: array for name, array in zeros.items() if ".gate." in name}
    layers = {name: array for name, array in zeros.items() if name not in gates}
    if zeros:
        yield zeros, ""
    if gates and layers:
        yield layers, " of the layers"
        yield gates, " of the gates' hidden units"


def _mean_of(one: Case, other: Case) -> Arrays:
    """The mean of two computations, which is exact if no path goes through two kinks, as in one gradient."""
    outputs, others = run(one), run(other)
    return {
        name: array if array.dtype == np.bool_ else (array + others[name]) / array.dtype.type(2)
        for name, array in outputs.items()
    }


def _raised(array: np.ndarray) -> np.ndarray:
    return np.where(array == 0, array.dtype.type(TINY), array)


HINT_TIE = "a channel with d = 0 was left on; a tie is off (on iff d > 0)"


def tie_of_gate(case: Case) -> Iterator[Suspect]:
    """Gates whose d is exactly 0 are moved to just above 0, by a bias or by noise in every step."""
    moved = {}
    for name, bias in _second_layers(case).items():
        if name.endswith(".bias"):
            tied = (bias[0::2] == 0) & (bias[1::2] == 0)
            moved[name] = bias.copy()
            moved[name][1::2][tied] = TINY
    if not moved:
        return
    yield suspect("tie rule", HINT_TIE, altered(case, moved))
    if case.settings["gating"]["mode"] == "hard" and case.kind in ("gated", "network", "local", "algorithm"):
        indices = case.inputs.get("batches", case.inputs.get("labels"))
        samples = case.inputs["x"].shape[:1] if indices is None else indices.shape  # and steps, in front
        noise = {
            f"{NOISE}{_gate_of(name)}": np.full((*samples, len(bias) // 2), TINY, dtype=case.dtype)
            for name, bias in moved.items()
        }
        noisy = {**case.settings["gating"], "mode": "gumbel"}  # like `hard`, with d + noise in place of d
        yield suspect("tie rule", HINT_TIE, altered(case, noise, gating=noisy))


def gate_input(case: Case) -> Iterator[Suspect]:
    """The gates' inputs are detached where a gradient should pass, or the other way round."""
    if _second_layers(case):
        gating = case.settings["gating"]
        detached = gating["detach_gate_input"]
        done = "a gradient passed from a gate to its input" if detached else "the gates' inputs were detached"
        hint = f"{done}; the setting detach_gate_input is {str(detached).lower()}"
        changed = altered(case, gating={**gating, "detach_gate_input": not detached})
        yield suspect("detached gate input", hint, changed)


def blind_summary(case: Case) -> Iterator[Suspect]:
    """A gate's summary is the mean over all channels instead of each channel's own."""
    if case.kind in ("gated", "network") and _second_layers(case):
        layers = copy.deepcopy(case.settings["layers"])
        for block in gated_blocks(layers):
            block["gate"]["summary"] = "all"
        hint = (
            "a gate's summary was the mean over all channels; it holds a mean over the pixels of each channel"
        )
        yield suspect("summary over all channels", hint, altered(case, layers=layers))


def tie_of_pool(case: Case) -> Iterator[Suspect]:
    """The last of equal maxima wins, in a pool alone or in all pools of a network."""
    hint = "of equal maxima in a window the last got the gradient; the first gets it"
    if case.kind == "max_pool2d":
        yield suspect("tie rule", hint, altered(case, tie="last"))
    layers = case.settings.get("layers", [])
    changed = _last_wins(layers)
    if changed != layers:
        yield suspect("tie rule", hint, altered(case, layers=changed))


def _last_wins(layers: Description) -> Description:
    """The layers, with the other rule in their pools."""
    changed = copy.deepcopy(layers)
    for entry in changed:
        if entry["type"] == "max_pool2d":
            entry["tie"] = "last"
        for branch in {"body", "shortcut"} & set(entry):
            entry[branch] = _last_wins(entry[branch])
    return changed


RULE_MASK = "mask before/after ReLU"


def mask_and_relu(case: Case) -> Iterator[Suspect]:
    """The mask is applied on the other side of ReLU, which gives the other gate gradient."""
    gating = case.settings.get("gating", {"mode": "none"})
    if gating["mode"] == "soft" and case.kind in ("gated", "network"):
        hint = "the mask was applied before ReLU; the outputs of a block's layers are those without it"
        yield Suspect(RULE_MASK, hint, partial(_masked_inside, case))
    if gating["mode"] in ("soft", "none"):
        return
    other = "active" if gating["gate_grad"] == "dense" else "dense"
    sides = {
        "active": "the mask was applied before ReLU; gate_grad `dense` applies it after the block",
        "dense": "the mask was applied after ReLU; gate_grad `active` applies it right after the convolution",
    }
    yield suspect(RULE_MASK, sides[other], altered(case, gating={**gating, "gate_grad": other}))


def mask_before_pool(case: Case) -> Iterator[Suspect]:
    """The mask is applied before the pool of a gated block, so that closed channels have ties in it.

    Cases with activations are left out, because theirs have another shape between mask and pool.
    """
    layers = [] if case.kind in ("gated", "network") else case.settings.get("layers", [])
    changed = _pools_outside(layers)
    if changed != layers:
        hint = "the mask was applied before the pool of its block; it multiplies what the whole block gives"
        yield suspect("mask before/after the pool", hint, altered(case, layers=changed))


def _pools_outside(layers: Description) -> Description:
    """The layers, with what follows from the first pool of a gated block put behind the block."""
    found: Description = []
    for entry in layers:
        body = entry.get("body", []) if entry["type"] == "gated" else []
        first = next((i for i, layer in enumerate(body) if layer["type"] == "max_pool2d"), len(body))
        found += [{**entry, "body": body[:first]} if body else entry, *body[first:]]
    return found


def _masked_inside(case: Case) -> Arrays:
    """Soft masks are applied after the first layer of each body; ReLU passes their positive factors on."""
    outputs = run(case)
    for block in gated_blocks(case.settings["layers"]):
        mask = outputs[f"forward.{block['gate']['name']}.mask"]
        for entry in block["body"]:
            forward, backward = (f"{way}.{entry['name']}" for way in ("forward", "backward"))
            outputs[forward] = outputs[forward] * _over_pixels(mask, outputs[forward])
            if backward in outputs:
                outputs[backward] = outputs[backward] / _over_pixels(mask, outputs[backward])
    return outputs


def _over_pixels(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(*mask.shape, *(1 for _ in like.shape[2:]))


def logit_order(case: Case) -> Iterator[Suspect]:
    """The gates' logits are exchanged in pairs, or read as two halves, but stored in the same places."""

    def exchanged(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)

    def interleaved(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(2, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    found = _second_layers(case)
    for rearrange, done in (
        (exchanged, "a channel's logits were read as (on, off)"),
        (interleaved, "the logits were read as all off, then all on"),
    ):
        if found:
            hint = f"{done}; row 2c of fc2 is channel c's off logit, row 2c + 1 its on logit"
            yield suspect("two-logit order", hint, *_with_logits(case, list(found), rearrange))


def _with_logits(case: Case, names: Sequence[str], rearrange: Rearrange) -> tuple[Case, Seen]:
    """The gates' second layers are rearranged, and their outputs and logits are arranged back."""
    changed, seen = rearranged(case, dict.fromkeys(names, rearrange))
    logits = {f"forward.{_gate_of(name)}.logits" for name in names}

    def seen_with_logits(output: str, array: np.ndarray) -> np.ndarray:
        if output not in logits:
            return seen(output, array)
        return array[:, np.argsort(rearrange(np.arange(array.shape[1])))]

    return changed, seen_with_logits


def _second_layers(case: Case) -> Arrays:
    """The weights and biases that compute the gates' logits."""
    return {name: array for name, array in case.inputs.items() if ".gate.fc2." in name}


def _gate_of(parameter: str) -> str:
    """The gate's name in a parameter's: `conv3.gate` in `param.conv3.gate.fc2.bias`."""
    return parameter.removeprefix(PARAM).rpartition(".fc2.")[0]


HINT_VARIANCE = "the variance of {0} was divided by n - 1; batch normalisation divides by n = {1}"


def unbiased_variance(case: Case) -> Iterator[Suspect]:
    """Batch normalisation uses the unbiased variance; another eps and scale express this exactly."""
    if case.kind == "batch_norm2d":
        count = case.inputs["x"].size // case.inputs["x"].shape[1]
        yield _unbiased(case, "weight", count, "the batch", eps=_eps(case.settings["eps"], count))
    layers = case.settings.get("layers", [])
    for index, entry in enumerate(layers):
        if entry["type"] == "batch_norm2d" and case.kind == "network":
            shape = chain_shape(build(layers[:index]), tuple(case.settings["input_shape"]))
            count = len(case.inputs["x"]) * math.prod(shape[1:])
            other = copy.deepcopy(layers)
            other[index]["eps"] = _eps(entry["eps"], count)
            yield _unbiased(case, f"{PARAM}{entry['name']}.weight", count, entry["name"], layers=other)


def _unbiased(case: Case, weight: str, count: int, whose: str, **settings: Any) -> Suspect:
    """The outputs with the scale reduced; the gradient of the scale is reduced by the same factor."""
    by, gradient = math.sqrt((count - 1) / count), f"grad.{weight.removeprefix(PARAM)}"
    scale = case.inputs[weight]
    changed = altered(case, {weight: (scale * by).astype(scale.dtype)}, **settings)
    seen = scaled(lambda output: by if output == gradient else 1.0)
    return suspect("biased BatchNorm variance", HINT_VARIANCE.format(whose, count), changed, seen)


def _eps(eps: float, count: int) -> float:
    """The eps for which n/(n-1) (var + eps) is var n/(n-1) + the given eps."""
    return eps * (count - 1) / count
