"""Compute single operations: one layer, forward and backward. Source: mathematics.md §2.1-§2.4. Derived."""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.describe import PLAIN, POOLS
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.layers import Back, BatchNorm2d, Conv2d, Flow, Layer, Linear

NAME = "op"  # the layer's name, before `.weight` and `.bias`
LAYERS = (*PLAIN, *POOLS, "conv2d", "linear", "batch_norm2d")


def layer_of(case: Case) -> Layer:
    """The layer of a case whose kind is one of `LAYERS`."""
    settings: Any = case.settings
    if case.kind in PLAIN:
        plain: Layer = PLAIN[case.kind]()
        return plain
    if case.kind in POOLS:
        pool: Layer = POOLS[case.kind](tuple(settings["kernel"]), tuple(settings["stride"]))
        return pool
    weight = case.inputs["weight"]
    if case.kind == "conv2d":
        outs, ins, *kernel = weight.shape
        windows = (tuple(kernel), tuple(settings["stride"]), tuple(settings["padding"]))
        return Conv2d(NAME, ins, outs, *windows, bias="bias" in case.inputs)
    if case.kind == "linear":
        return Linear(NAME, weight.shape[1], weight.shape[0])
    return BatchNorm2d(NAME, len(weight), float(settings["eps"]))


def layer(case: Case) -> Arrays:
    """y and all gradients of a single layer; the input `mask`, if there is one, closes channels of y."""
    own = layer_of(case)
    params = {f"{NAME}.{key}": case.inputs[key] for key in ("weight", "bias") if key in case.inputs}
    grads = {name: np.full_like(array, np.nan) for name, array in params.items()}
    mask = case.inputs.get("mask")
    y, _, cache = own.forward(params, case.inputs["x"], Flow(writes=mask))
    dx = own.backward(case.inputs["dy"], cache, params, grads, Back(dy_mask=mask))
    found = {"y": y} if dx is None else {"y": y, "grad.x": dx}
    return found | {f"grad.{name.removeprefix(f'{NAME}.')}": g for name, g in grads.items()}


def cross_entropy(case: Case) -> Arrays:
    """The mean loss and its gradient with respect to the logits."""
    logits = case.inputs["logits"]
    dlogits = np.empty_like(logits)
    loss = softmax_cross_entropy(logits, case.inputs["labels"], dlogits)
    return {"loss": np.array(loss), "grad.logits": dlogits}
