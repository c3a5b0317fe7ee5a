"""Level `ops`: single operations, forward and all gradients.

| kind | inputs | settings | outputs |
| --- | --- | --- | --- |
| conv2d | x (N,C,H,W), weight (K,C/groups,kh,kw), bias (K,)?, mask (N,K)?, dy | stride, padding, dilation?, groups? | y = mask * (conv + bias), grad.x, grad.weight, grad.bias |
| linear | x (N,I), weight (O,I), bias (O,)?, dy | | y, grad.x, grad.weight, grad.bias |
| relu, softplus, tanh | x, dy | | y, grad.x; relu's derivative at 0 is 0 |
| leaky_relu | x, dy | slope | y, grad.x; its derivative at 0 is the slope |
| max_pool2d, avg_pool2d, global_avg_pool2d | x, dy | kernel, stride, padding? | y, grad.x; of equal maxima the first gets it |
| batch_norm2d | x, weight (C,), bias (C,), dy | eps | y, grad.x, grad.weight, grad.bias; biased variance |
| frozen_norm2d | x, weight (C,), bias (C,), running_mean (C,), running_var (C,), dy | eps | y, grad.x, grad.weight, grad.bias |
| group_norm | x, weight (C,), bias (C,), dy | eps, groups | y, grad.x, grad.weight, grad.bias; biased variance |
| cross_entropy | logits (N,classes), labels | | loss = mean over the batch, grad.logits |
| gate_shaping | d (N,K), the decisions of K channels | tau, shaping: weight, a, b | loss = weight/N * sum of (F - i/(N+1))^2, grad.d |
| gated | x, dy, param.*, noise.* | layers, gating | as `names.py` has them |

grad.* are gradients of sum(dy * y); those of cross_entropy and gate_shaping of the loss itself. F is the
distribution function of Beta(a, b) at sigmoid(d/tau), and i counts the decisions of a channel from the smallest.

Source: mathematics.md §2.1-§2.4. Derived.
"""  # noqa: E501 - a row of a table is one line

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.describe import LAYERS, build_layer, describe
from refimpl.crosscheck.golden.draw import Draw, gating_settings
from refimpl.crosscheck.golden.names import block_outputs
from refimpl.crosscheck.golden.subject import Subject
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.kernels.shaping import shape_gates
from refimpl.nn.chain import Residual
from refimpl.nn.context import GATE_GRADS, MODES, Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import Back, BatchNorm2d, Conv2d, Flow, Layer, Linear, Shape
from refimpl.nn.layout import Layout
from refimpl.nn.norms import FrozenNorm2d, GroupNorm
from refimpl.nn.pointwise import LeakyReLU, ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d

BATCH = 3
NAME = "op"  # of the layer of a case, before `.weight` and `.bias`
POOLS = {"max_pool2d": MaxPool2d, "avg_pool2d": AvgPool2d}
# By title: the layer, and whether a mask closes channels of its output.
_CONVOLUTIONS = {
    "conv": (Conv2d(NAME, 3, 4, 3, padding=1), False),
    "conv-square": (Conv2d(NAME, 4, 4, 3, padding=1), False),  # as many channels out as in
    "conv-stride": (Conv2d(NAME, 3, 4, (3, 2), (2, 1), (1, 0), bias=False), False),
    "conv-pointwise": (Conv2d(NAME, 3, 4, 1), False),
    "conv-masked": (Conv2d(NAME, 3, 4, 3, padding=1), True),
    "conv-dilated": (Conv2d(NAME, 3, 4, (3, 2), (1, 2), (2, 1), dilation=(2, 1)), True),
    "conv-groups": (Conv2d(NAME, 4, 6, 3, padding=1, groups=2), True),
    "conv-depthwise": (Conv2d(NAME, 4, 4, 3, (2, 1), 1, bias=False, groups=4), True),
}
# By title: the layer, and the shape of a sample.
_LAYERS: dict[str, tuple[Layer, Shape]] = {
    "linear": (Linear(NAME, 5, 4), (5,)),
    "linear-square": (Linear(NAME, 5, 5), (5,)),
    "relu": (ReLU(), (4, 5)),
    "softplus": (Softplus(), (4, 5)),
    "tanh": (Tanh(), (4, 5)),
    **{
        f"{kind}{title}": (pool(size, 2), (2, 5, 6))
        for kind, pool in POOLS.items()
        for title, size in (("", 2), ("-overlap", 3))
    },
    "global_avg_pool2d": (GlobalAvgPool2d(), (4, 5, 3)),
    "batch_norm2d": (BatchNorm2d(NAME, 3), (3, 4, 2)),
}
_MORE_LAYERS: dict[str, tuple[Layer, Shape]] = {
    "linear-bare": (Linear(NAME, 5, 4, bias=False), (5,)),
    "leaky_relu": (LeakyReLU(0.1), (4, 5)),
    "frozen_norm2d": (FrozenNorm2d(NAME, 4), (4, 3, 2)),
    "group_norm": (GroupNorm(NAME, 4, groups=2), (4, 3, 2)),
    **{f"{kind}-padded": (pool((3, 2), 2, (1, 0)), (2, 5, 6)) for kind, pool in POOLS.items()},
}


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """All cases of the level."""
    for title, (layer, masked) in _CONVOLUTIONS.items():
        draw = Draw(seed, title, dtype)
        x = draw.normal(BATCH, layer.in_channels, 6, 5)
        yield _single(draw, title, layer, x, scale=0.5, masked=masked)
    first, second = (Draw(seed, stream, dtype) for stream in ("ops", "more ops"))
    for draw, layers in ((first, _LAYERS), (second, _MORE_LAYERS)):
        for title, (plain, shape) in layers.items():
            ties = not plain.parameters() and title != "global_avg_pool2d"
            x = (draw.coarse if ties else draw.normal)(BATCH, *shape)
            yield _single(draw, title, plain, x, scale=1.0)
    settings = {"tau": 0.5, "shaping": [0.75, 0.6, 0.4]}
    inputs = {"d": second.normal(5, 3)}
    yield Case("ops/gate_shaping", "gate_shaping", dtype, inputs, settings, ("loss", "grad.d"))
    inputs = {"logits": first.normal(BATCH, 6, scale=3.0), "labels": first.labels(BATCH, classes=6)}
    yield Case("ops/cross_entropy", "cross_entropy", dtype, inputs, {}, ("loss", "grad.logits"))
    for mode in MODES:
        for gate_grad in GATE_GRADS:
            yield _gated(seed, dtype, Gating(mode, gate_grad=gate_grad), "")
    yield _gated(seed, dtype, Gating("hard", detach_gate_input=True), "-detached")
    yield _gated(seed, dtype, Gating("soft", tau=0.5), "-tau")


def _single(
    draw: Draw, title: str, layer: Layer, x: np.ndarray, scale: float | None = None, masked: bool = False
) -> Case:
    """The case of one layer on samples x.

    scale: of its weights; None: one over the root of their fan-in. masked: whether channels of y are closed.
    """
    (entry,) = describe((layer,))
    inputs = {"x": x}
    for parameter in layer.parameters():
        fan_in = parameter.shape[1:]
        by = scale if scale and fan_in else math.prod(fan_in) ** -0.5
        values = draw.normal(*parameter.shape, scale=by)
        last = parameter.name.rpartition(".")[2]
        inputs[last] = np.abs(values) + values.dtype.type(0.5) if last == "running_var" else values
    output = len(x), *layer.output_shape(x.shape[1:])
    if masked:
        inputs["mask"] = draw.mask(*output[:2])
    inputs["dy"] = draw.normal(*output)
    outputs = ("y", "grad.x", *(f"grad.{key}" for key in ("weight", "bias") if key in inputs))
    # The shape of the weight tells the sizes of a layer that has one.
    told = {"type", "name", "in", "out", "bias", "channels", *(["kernel"] if "weight" in inputs else [])}
    settings = {key: value for key, value in entry.items() if key not in told}
    return Case(f"ops/{title}", entry["type"], draw.dtype, inputs, settings, outputs)


def _gated(seed: int, dtype: str, gating: Gating, note: str) -> Case:
    """The case of a gated convolution with ReLU and max-pooling: (N, 3, 6, 4) -> (N, 5, 3, 2)."""
    title = f"gated-{gating.mode}-{gating.gate_grad}{note}"
    draw = Draw(seed, title, dtype)
    body = (Conv2d("conv", 3, 5, 3, padding=1), ReLU(), MaxPool2d(2))
    block = Gated(ChannelGate("conv.gate", 3, 5, hidden=6), body)
    layout, layers = Layout(block.parameters()), describe((block,))
    inputs = draw.params(layout) | {"x": draw.normal(BATCH, 3, 6, 4), "dy": draw.normal(BATCH, 5, 3, 2)}
    if gating.mode == "gumbel":
        inputs |= draw.noise({"conv.gate": 5}, BATCH)
    settings = {"layers": layers, "input_shape": [3, 6, 4], "gating": gating_settings(gating)}
    return Case(f"ops/{title}", "gated", dtype, inputs, settings, block_outputs(layers, gating.gate_grad))


def own_cases(own: Subject, seed: int, dtype: str) -> Iterator[Case]:
    """Every different layer of a user's network with the input shape it has there, gates and joins aside."""
    seen = set()
    for layer, shape in _inside(own.network.layers, own.network.input_shape):
        (entry,) = describe((layer,))
        different = repr(({**entry, "name": ""}, shape))
        if entry["type"] == "flatten" or different in seen:
            continue
        seen.add(different)
        title = f"{own.name}-{len(seen)}-{entry['type']}"
        draw = own.draw(f"ops {title}", seed, dtype)
        x = (draw.normal if layer.parameters() else draw.coarse)(own.batch, *shape)
        yield _single(draw, title, layer, x)


def _inside(layers: Sequence[Layer], shape: Shape) -> Iterator[tuple[Any, Shape]]:
    """Every layer without layers inside, with the shape of its input."""
    for layer in layers:
        if isinstance(layer, Gated):
            yield from _inside(layer.body, shape)
        elif isinstance(layer, Residual):
            yield from _inside(layer.body, shape)
            yield from _inside(layer.shortcut, shape)
        else:
            yield layer, shape
        shape = layer.output_shape(shape)


# --- what this package computes ---------------------------------------------------------------------


def layer_of(case: Case) -> Layer:
    """The layer of a case whose kind is one of `LAYERS`: what the settings leave out, its weight says."""
    sizes: dict[str, Any] = {}
    if "weight" in case.inputs:
        outs, *rest = case.inputs["weight"].shape
        ins = next(iter(rest), 0) * case.settings.get("groups", 1)
        sizes = {"out": outs, "channels": outs, "in": ins, "kernel": rest[1:]}
    own = {"type": case.kind, "name": NAME, "bias": "bias" in case.inputs}
    return build_layer({**case.settings, **own, **sizes})


def single(case: Case) -> Arrays:
    """y and all gradients of a single layer; the input `mask`, if there is one, closes channels of y."""
    own = layer_of(case)
    keys = (key for key in case.inputs if key not in ("x", "dy", "mask"))
    params = {f"{NAME}.{key}": case.inputs[key] for key in keys}
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


def gate_shaping(case: Case) -> Arrays:
    """What batch-shaping adds to the loss, and its gradient with respect to the decisions."""
    d, how = case.inputs["d"], Gating(tau=case.settings["tau"], shaping=case.settings["shaping"])
    slope = np.empty_like(d)
    total = shape_gates(d, how.tau, how.shaping, slope)
    return {"loss": np.array(total / len(d)), "grad.d": slope}


KINDS = {
    **dict.fromkeys(LAYERS, single),
    "cross_entropy": cross_entropy,
    "gate_shaping": gate_shaping,
}
