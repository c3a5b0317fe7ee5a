"""Compute single operations: one layer, forward and backward. Source: mathematics.md §2.1-§2.4. Derived."""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.describe import build_layer
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.layers import Back, Flow, Layer

NAME = "op"  # the layer's name, before `.weight` and `.bias`


def layer_of(case: Case) -> Layer:
    """The layer of a case whose kind is one of `LAYERS`: what the settings leave out, its weight says."""
    sizes: dict[str, Any] = {}
    if "weight" in case.inputs:
        outs, *rest = case.inputs["weight"].shape
        sizes = {"out": outs, "channels": outs, "in": next(iter(rest), 0), "kernel": rest[1:]}
    own = {"type": case.kind, "name": NAME, "bias": "bias" in case.inputs}
    return build_layer({**case.settings, **own, **sizes})


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
