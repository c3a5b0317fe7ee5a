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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.describe import build_layer, describe
from refimpl.crosscheck.golden.draw import Draw, gating_settings
from refimpl.crosscheck.golden.names import block_outputs
from refimpl.crosscheck.golden.own import Own
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.kernels.shaping import shape_gates
from refimpl.nn.chain import Residual
from refimpl.nn.context import GATE_GRADS, MODES, Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import Back, Conv2d, Flow, Layer, Pair, Shape
from refimpl.nn.layout import Layout
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import MaxPool2d

BATCH = 3
_ALL = ("y", "grad.x", "grad.weight", "grad.bias")


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """All cases of the level."""
    yield from _convolutions(seed, dtype)
    yield from _others(seed, dtype)
    for mode in MODES:
        for gate_grad in GATE_GRADS:
            yield _gated(seed, dtype, Gating(mode, gate_grad=gate_grad), "")
    yield _gated(seed, dtype, Gating("hard", detach_gate_input=True), "-detached")
    yield _gated(seed, dtype, Gating("soft", tau=0.5), "-tau")


# Title: channels in and out, kernel, stride, padding, whether there are a bias and a mask, more settings.
_CONVOLUTIONS: dict[str, tuple[int, int, Pair, Pair, Pair, bool, bool, dict[str, Any]]] = {
    "conv": (3, 4, (3, 3), (1, 1), (1, 1), True, False, {}),
    "conv-square": (4, 4, (3, 3), (1, 1), (1, 1), True, False, {}),  # as many channels out as in
    "conv-stride": (3, 4, (3, 2), (2, 1), (1, 0), False, False, {}),
    "conv-pointwise": (3, 4, (1, 1), (1, 1), (0, 0), True, False, {}),
    "conv-masked": (3, 4, (3, 3), (1, 1), (1, 1), True, True, {}),
    "conv-dilated": (3, 4, (3, 2), (1, 2), (2, 1), True, True, {"dilation": [2, 1]}),
    "conv-groups": (4, 6, (3, 3), (1, 1), (1, 1), True, True, {"groups": 2}),
    "conv-depthwise": (4, 4, (3, 3), (2, 1), (1, 1), False, True, {"groups": 4}),
}


def _convolutions(seed: int, dtype: str) -> Iterator[Case]:
    for title, (ins, outs, kernel, stride, padding, bias, masked, more) in _CONVOLUTIONS.items():
        draw = Draw(seed, title, dtype)
        layer = Conv2d("conv", ins, outs, kernel, stride, padding, bias, **more)
        inputs = {
            "x": draw.normal(BATCH, ins, 6, 5),
            "weight": draw.normal(*layer.parameters()[0].shape, scale=0.5),
        }
        if bias:
            inputs["bias"] = draw.normal(outs)
        if masked:
            inputs["mask"] = draw.mask(BATCH, outs)
        inputs["dy"] = draw.normal(BATCH, *layer.output_shape((ins, 6, 5)))
        settings = {"stride": list(stride), "padding": list(padding), **more}
        yield Case(f"ops/{title}", "conv2d", dtype, inputs, settings, _ALL if bias else _ALL[:3])


def _others(seed: int, dtype: str) -> Iterator[Case]:
    def case(title: str, kind: str, inputs: Arrays, outputs: tuple[str, ...], **settings: Any) -> Case:
        return Case(f"ops/{title}", kind, dtype, inputs, settings, outputs)

    draw = Draw(seed, "ops", dtype)
    for title, outs in (("linear", 4), ("linear-square", 5)):
        inputs = {"x": draw.normal(BATCH, 5), "weight": draw.normal(outs, 5), "bias": draw.normal(outs)}
        yield case(title, "linear", {**inputs, "dy": draw.normal(BATCH, outs)}, _ALL)
    for kind in ("relu", "softplus", "tanh"):
        yield case(kind, kind, {"x": draw.coarse(BATCH, 4, 5), "dy": draw.normal(BATCH, 4, 5)}, _ALL[:2])
    for kind in ("max_pool2d", "avg_pool2d"):
        for title, kernel, stride, size in (("", 2, 2, (2, 3)), ("-overlap", 3, 2, (2, 2))):
            inputs = {"x": draw.coarse(BATCH, 2, 5, 6), "dy": draw.normal(BATCH, 2, *size)}
            window = {"kernel": [kernel, kernel], "stride": [stride, stride]}
            yield case(f"{kind}{title}", kind, inputs, _ALL[:2], **window)
    inputs = {"x": draw.normal(BATCH, 4, 5, 3), "dy": draw.normal(BATCH, 4)}
    yield case("global_avg_pool2d", "global_avg_pool2d", inputs, _ALL[:2])
    inputs = {"x": draw.normal(BATCH, 3, 4, 2), "weight": draw.normal(3), "bias": draw.normal(3)}
    yield case("batch_norm2d", "batch_norm2d", {**inputs, "dy": draw.normal(BATCH, 3, 4, 2)}, _ALL, eps=1e-5)
    yield from _later(seed, dtype, case)
    inputs = {"logits": draw.normal(BATCH, 6, scale=3.0), "labels": draw.labels(BATCH, classes=6)}
    yield case("cross_entropy", "cross_entropy", inputs, ("loss", "grad.logits"))


def _later(seed: int, dtype: str, case: Callable[..., Case]) -> Iterator[Case]:
    """Cases with draws of their own, so that the others' numbers stay."""
    draw = Draw(seed, "more ops", dtype)
    inputs = {"x": draw.normal(BATCH, 5), "weight": draw.normal(4, 5), "dy": draw.normal(BATCH, 4)}
    yield case("linear-bare", "linear", inputs, _ALL[:3])
    inputs = {"x": draw.coarse(BATCH, 4, 5), "dy": draw.normal(BATCH, 4, 5)}
    yield case("leaky_relu", "leaky_relu", inputs, _ALL[:2], slope=0.1)
    for kind, settings in (("frozen_norm2d", {}), ("group_norm", {"groups": 2})):
        inputs = {"x": draw.normal(BATCH, 4, 3, 2), "weight": draw.normal(4), "bias": draw.normal(4)}
        if kind == "frozen_norm2d":
            inputs |= {"running_mean": draw.normal(4), "running_var": 0.5 + np.abs(draw.normal(4))}
        yield case(kind, kind, {**inputs, "dy": draw.normal(BATCH, 4, 3, 2)}, _ALL, eps=1e-5, **settings)
    for kind in ("max_pool2d", "avg_pool2d"):
        inputs = {"x": draw.coarse(BATCH, 2, 5, 6), "dy": draw.normal(BATCH, 2, 3, 3)}
        window = {"kernel": [3, 2], "stride": [2, 2], "padding": [1, 0]}
        yield case(f"{kind}-padded", kind, inputs, _ALL[:2], **window)
    inputs, outputs, shaping = {"d": draw.normal(5, 3)}, ("loss", "grad.d"), [0.75, 0.6, 0.4]
    yield case("gate_shaping", "gate_shaping", inputs, outputs, tau=0.5, shaping=shaping)


def _gated(seed: int, dtype: str, gating: Gating, note: str) -> Case:
    """The case of a gated convolution with ReLU and max-pooling: (N, 3, 6, 4) -> (N, 5, 3, 2)."""
    title = f"gated-{gating.mode}-{gating.gate_grad}{note}"
    draw = Draw(seed, title, dtype)
    block = Gated(
        ChannelGate("conv.gate", 3, 5, hidden=6), (Conv2d("conv", 3, 5, 3, padding=1), ReLU(), MaxPool2d(2))
    )
    layout, layers = Layout(block.parameters()), describe((block,))
    inputs = draw.params(layout) | {"x": draw.normal(BATCH, 3, 6, 4), "dy": draw.normal(BATCH, 5, 3, 2)}
    if gating.mode == "gumbel":
        inputs |= draw.noise({"conv.gate": 5}, BATCH)
    settings = {"layers": layers, "input_shape": [3, 6, 4], "gating": gating_settings(gating)}
    return Case(f"ops/{title}", "gated", dtype, inputs, settings, block_outputs(layers, gating.gate_grad))


def own_cases(own: Own, seed: int, dtype: str) -> Iterator[Case]:
    """Every different layer of a user's network with the input shape it has there, gates and joins aside."""
    seen = set()
    for layer, shape in _inside(own.network.layers, own.network.input_shape):
        (entry,) = describe((layer,))
        kind, _ = entry.pop("type"), entry.pop("name")
        if kind == "flatten" or (different := repr((entry, kind, shape))) in seen:
            continue
        seen.add(different)
        title = f"{own.name}-{len(seen)}-{kind}"
        draw = own.draw(f"ops {title}", seed, dtype)
        weighted = bool(layer.parameters())
        inputs: Arrays = {"x": (draw.normal if weighted else draw.coarse)(own.batch, *shape)}
        for parameter in layer.parameters():
            values = draw.normal(*parameter.shape, scale=max(1, math.prod(parameter.shape[1:])) ** -0.5)
            last = parameter.name.rpartition(".")[2]
            inputs[last] = np.abs(values) + values.dtype.type(0.5) if last == "running_var" else values
        inputs["dy"] = draw.normal(own.batch, *layer.output_shape(shape))
        outputs = ("y", "grad.x", *(f"grad.{key}" for key in ("weight", "bias") if key in inputs))
        told = {
            "in",
            "out",
            "bias",
            "channels",
            *(["kernel"] if weighted else []),
        }  # by the shape of the weight
        settings = {key: value for key, value in entry.items() if key not in told}
        yield Case(f"ops/{title}", kind, dtype, inputs, settings, outputs)


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

NAME = "op"  # the layer's name, before `.weight` and `.bias`


def layer_of(case: Case) -> Layer:
    """The layer of a case whose kind is one of `LAYERS`: what the settings leave out, its weight says."""
    sizes: dict[str, Any] = {}
    if "weight" in case.inputs:
        outs, *rest = case.inputs["weight"].shape
        ins = next(iter(rest), 0) * case.settings.get("groups", 1)
        sizes = {"out": outs, "channels": outs, "in": ins, "kernel": rest[1:]}
    own = {"type": case.kind, "name": NAME, "bias": "bias" in case.inputs}
    return build_layer({**case.settings, **own, **sizes})


def layer(case: Case) -> Arrays:
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
