"""Networks as plain JSON, so that anyone can build them: a list of tables, one for each layer.

    {"type": "conv2d", "name": "conv1", "in": 3, "out": 8, "kernel": [3, 3], "stride": [1, 1],
     "padding": [1, 1], "bias": true}
    {"type": "linear", "name": "fc", "in": 32, "out": 10}
    {"type": "batch_norm2d", "name": "norm", "channels": 6, "eps": 1e-05}     always batch statistics
    {"type": "relu" | "softplus" | "tanh" | "flatten" | "global_avg_pool2d", "name": ...}
    {"type": "max_pool2d" | "avg_pool2d", "name": ..., "kernel": [2, 2], "stride": [2, 2]}
    {"type": "gated", "name": "conv3.gated", "gate": {"name": "conv3.gate", "in": 8, "out": 16, "hidden": 16},
     "body": [layers]}                                       y = M(x) * body(x), mathematics.md §2.2, §2.3b
    {"type": "residual", "name": ..., "body": [layers], "shortcut": [layers]}             empty: the identity

A layer with parameters has the name that begins its parameters' names. Any other layer is named after the
last such layer before it and its own type (`conv1.relu`), with a number if that is not unique
(`conv1.relu2`).

Source: mathematics.md §2. Derived.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from refimpl.crosscheck.mistakes import LastMaxPool2d
from refimpl.errors import DataError
from refimpl.nn.chain import Residual
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

Description = list[dict[str, Any]]

PLAIN: dict[str, type[Any]] = {
    "relu": ReLU,
    "softplus": Softplus,
    "tanh": Tanh,
    "flatten": Flatten,
    "global_avg_pool2d": GlobalAvgPool2d,
}
POOLS: dict[str, type[Any]] = {"max_pool2d": MaxPool2d, "avg_pool2d": AvgPool2d}
_TYPES = {kind: name for name, kind in {**PLAIN, **POOLS}.items()}


class _Names:
    """Gives names to layers without parameters."""

    def __init__(self) -> None:
        self.last = ""
        self.taken: set[str] = set()

    def after(self, kind: str) -> str:
        base = f"{self.last}.{kind}" if self.last else kind
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}{number}"
        self.taken.add(name)
        return name


def describe(layers: Sequence[Layer]) -> Description:
    """The layers as JSON-able tables, in order of execution."""
    return _describe(layers, _Names())


def _describe(layers: Sequence[Layer], names: _Names) -> Description:
    return [_entry(layer, names) for layer in layers]


def _entry(layer: Layer, names: _Names) -> dict[str, Any]:
    if isinstance(layer, Gated):
        gate, body = layer.gate, _describe(layer.body, names)
        sizes = {"name": gate.name, "in": gate.in_channels, "out": gate.out_channels, "hidden": gate.hidden}
        return {"type": "gated", "name": f"{body[0]['name']}.gated", "gate": sizes, "body": body}
    if isinstance(layer, Residual):
        name = names.after("residual")
        body, shortcut = _describe(layer.body, names), _describe(layer.shortcut, names)
        return {"type": "residual", "name": name, "body": body, "shortcut": shortcut}
    if isinstance(layer, (Conv2d, Linear, BatchNorm2d)):
        names.last = layer.name
        return _weighted(layer)
    kind = _TYPES[type(layer)]
    windows = {}
    if isinstance(layer, (MaxPool2d, AvgPool2d)):
        windows = {"kernel": list(layer.window), "stride": list(layer.step)}
    return {"type": kind, "name": names.after(kind), **windows}


def _weighted(layer: Conv2d | Linear | BatchNorm2d) -> dict[str, Any]:
    if isinstance(layer, Linear):
        return {"type": "linear", "name": layer.name, "in": layer.in_features, "out": layer.out_features}
    if isinstance(layer, BatchNorm2d):
        return {"type": "batch_norm2d", "name": layer.name, "channels": layer.channels, "eps": layer.eps}
    sizes = {"in": layer.in_channels, "out": layer.out_channels, "kernel": list(layer.window)}
    where = {"stride": list(layer.step), "padding": list(layer.pad), "bias": layer.bias}
    return {"type": "conv2d", "name": layer.name, **sizes, **where}


def build(description: Iterable[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """Build the layers of a description; raises `DataError` if it cannot be read."""
    try:
        return tuple(_layer(entry) for entry in description)
    except DataError:  # an inner description failed; quoting it again at every level would double the message
        raise
    except RecursionError:
        raise DataError("golden: the description of a network is nested too deeply") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"golden: cannot read the description of a network: {error!r}") from None


def _layer(entry: Mapping[str, Any]) -> Layer:
    kind, name = entry["type"], entry["name"]
    if kind in PLAIN:
        plain: Layer = PLAIN[kind]()
        return plain
    if kind in POOLS:
        window, step = tuple(entry["kernel"]), tuple(entry["stride"])
        if entry.get("tie") == "last":  # a deliberate mistake, to compute what it leads to
            return LastMaxPool2d(window, step)
        pool: Layer = POOLS[kind](window, step)
        return pool
    if kind == "linear":
        return Linear(name, entry["in"], entry["out"])
    if kind == "batch_norm2d":
        return BatchNorm2d(name, entry["channels"], float(entry["eps"]))
    if kind == "conv2d":
        window, step, pad = (tuple(entry[key]) for key in ("kernel", "stride", "padding"))
        return Conv2d(name, entry["in"], entry["out"], window, step, pad, entry["bias"])
    if kind == "gated":
        gate = entry["gate"]
        sized = ChannelGate(gate["name"], gate["in"], gate["out"], gate["hidden"])
        return Gated(sized, build(entry["body"]))
    if kind == "residual":
        return Residual(build(entry["body"]), build(entry["shortcut"]))
    raise DataError(f"golden: unknown type of layer {kind!r}")


def network_of(settings: Mapping[str, Any]) -> Network:
    """The network of a case: `settings["layers"]` on samples of `settings["input_shape"]`."""
    return Network("golden", build(settings["layers"]), tuple(settings["input_shape"]))
