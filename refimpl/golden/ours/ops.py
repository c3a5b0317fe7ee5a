"""Single operations: a layer alone, forward and backward. Source: mathematics.md §2.1-§2.4. Derived."""

from __future__ import annotations

import numpy as np

from refimpl.golden.case import Arrays, Case
from refimpl.golden.describe import PLAIN, POOLS
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.layers import Back, BatchNorm2d, Conv2d, Flow, Layer, Linear

_NAME = "op"  # of the layer, before `.weight` and `.bias`


def plain(case: Case) -> Arrays:
    """Activations and pools: no parameters."""
    if case.kind in POOLS:
        return _one_layer(
            case, POOLS[case.kind](*(tuple(case.settings[key]) for key in ("kernel", "stride")))
        )
    return _one_layer(case, PLAIN[case.kind]())


def weighted(case: Case) -> Arrays:
    """Convolution, linear, batch normalisation."""
    weight, settings = case.inputs["weight"], case.settings
    if case.kind == "conv2d":
        outs, ins, *kernel = weight.shape
        windows = (tuple(kernel), tuple(settings["stride"]), tuple(settings["padding"]))
        return _one_layer(case, Conv2d(_NAME, ins, outs, *windows, bias="bias" in case.inputs))
    if case.kind == "linear":
        return _one_layer(case, Linear(_NAME, weight.shape[1], weight.shape[0]))
    return _one_layer(case, BatchNorm2d(_NAME, len(weight), settings["eps"]))


def _one_layer(case: Case, layer: Layer) -> Arrays:
    """y and all gradients; a `mask` of the inputs closes channels of y."""
    params = {f"{_NAME}.{key}": case.inputs[key] for key in ("weight", "bias") if key in case.inputs}
    grads = {name: np.full_like(array, np.nan) for name, array in params.items()}
    mask = case.inputs.get("mask")
    y, _, cache = layer.forward(params, case.inputs["x"], Flow(writes=mask))
    dx = layer.backward(case.inputs["dy"], cache, params, grads, Back(dy_mask=mask))
    found = {"y": y} if dx is None else {"y": y, "grad.x": dx}
    return found | {f"grad.{name.removeprefix(f'{_NAME}.')}": g for name, g in grads.items()}


def cross_entropy(case: Case) -> Arrays:
    """Mean loss and its gradient in the logits."""
    logits = case.inputs["logits"]
    dlogits = np.empty_like(logits)
    loss = softmax_cross_entropy(logits, case.inputs["labels"], dlogits)
    return {"loss": np.array(loss), "grad.logits": dlogits}
