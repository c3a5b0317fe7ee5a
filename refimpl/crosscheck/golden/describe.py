"""Networks as plain JSON, so that anyone can build them: a list of tables, one for each layer.

    {"type": "conv2d", "name": "conv1", "in": 3, "out": 8, "kernel": [3, 3], "stride": [1, 1],
     "padding": [1, 1], "bias": true}           "dilation" and "groups" where they are not [1, 1] and 1
    {"type": "linear", "name": "fc", "in": 32, "out": 10}                     without a bias: "bias": false
    {"type": "batch_norm2d", "name": "norm", "channels": 6, "eps": 1e-05}     always batch statistics
    {"type": "frozen_norm2d", ...}        the same with the parameters running_mean and running_var (biased)
    {"type": "group_norm", ..., "groups": 2}
    {"type": "relu" | "softplus" | "tanh" | "flatten" | "global_avg_pool2d", "name": ...}
    {"type": "leaky_relu", "name": ..., "slope": 0.1}
    {"type": "max_pool2d" | "avg_pool2d", "name": ..., "kernel": [2, 2], "stride": [2, 2]}
        "padding" where it is not [0, 0]: of -infinity, or of zeros that count as pixels
    {"type": "gated", "name": "conv3.gated", "gate": {"name": "conv3.gate", "in": 8, "out": 16, "hidden": 16},
     "body": [layers]}                                       y = M(x) * body(x), mathematics.md §2.2, §2.3b
        a gate's "norm" is the normalisation in front of its first linear layer, where there is one
    {"type": "residual", "name": ..., "body": [layers], "shortcut": [layers]}             empty: the identity

A layer with parameters has the name that begins its parameters' names. Any other layer is named after the
last such layer before it and its own type (`conv1.relu`), with a number if that is not unique
(`conv1.relu2`).

Source: mathematics.md §2. Derived.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from refimpl.crosscheck.mistakes import BlindGate, LastMaxPool2d
from refimpl.errors import DataError
from refimpl.nn.chain import Residual
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear
from refimpl.nn.network import Network
from refimpl.nn.norms import FrozenNorm2d, GroupNorm
from refimpl.nn.pointwise import LeakyReLU, ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

Description = list[dict[str, Any]]
WEIGHTED = ("conv2d", "linear", "batch_norm2d", "frozen_norm2d", "group_norm")

# For every type without layers inside: its class, and which key of a table holds which attribute.
_NORM = {"channels": "channels", "eps": "eps"}
LAYERS: dict[str, tuple[type[Any], dict[str, str]]] = {
    "conv2d": (
        Conv2d,
        {"in": "in_channels", "out": "out_channels", "kernel": "window"}
        | {"stride": "step", "padding": "pad", "bias": "bias", "dilation": "spacing", "groups": "groups"},
    ),
    "linear": (Linear, {"in": "in_features", "out": "out_features", "bias": "bias"}),
    "batch_norm2d": (BatchNorm2d, _NORM),
    "frozen_norm2d": (FrozenNorm2d, _NORM),
    "group_norm": (GroupNorm, _NORM | {"groups": "groups"}),
    "relu": (ReLU, {}),
    "leaky_relu": (LeakyReLU, {"slope": "slope"}),
    "softplus": (Softplus, {}),
    "tanh": (Tanh, {}),
    "flatten": (Flatten, {}),
    "global_avg_pool2d": (GlobalAvgPool2d, {}),
    "max_pool2d": (MaxPool2d, {"kernel": "window", "stride": "step", "padding": "pad"}),
    "avg_pool2d": (AvgPool2d, {"kernel": "window", "stride": "step", "padding": "pad"}),
}
# Tables leave out entries that have these values.
USUAL: dict[str, dict[str, Any]] = {
    "conv2d": {"dilation": [1, 1], "groups": 1},
    "linear": {"bias": True},
    "max_pool2d": {"padding": [0, 0]},
    "avg_pool2d": {"padding": [0, 0]},
}
_TYPES = {kind: name for name, (kind, _) in LAYERS.items()}
# The names of these attributes as arguments of a class.
_FIELDS = {"window": "kernel_size", "step": "stride", "pad": "padding", "spacing": "dilation"}
_READ: dict[str, type] = dict.fromkeys(("kernel", "stride", "padding", "dilation"), tuple)
_READ |= dict.fromkeys(("eps", "slope"), float)


@dataclass
class _Names:
    """Gives names to layers without parameters."""

    last: str = ""
    taken: Counter[str] = field(default_factory=Counter)

    def after(self, kind: str) -> str:
        base = f"{self.last}.{kind}" if self.last else kind
        self.taken[base] += 1
        return base if self.taken[base] == 1 else f"{base}{self.taken[base]}"


def describe(layers: Sequence[Layer], names: _Names | None = None) -> Description:
    """The layers as JSON-able tables, in order of execution; names: given to the layers before, if any."""
    known = names or _Names()
    return [_entry(layer, known) for layer in layers]


def _entry(layer: Any, names: _Names) -> dict[str, Any]:
    if isinstance(layer, Gated):
        gate, body = layer.gate, describe(layer.body, names)
        sizes = {"name": gate.name, "in": gate.in_channels, "out": gate.out_channels, "hidden": gate.hidden}
        if gate.norm is not None:
            sizes["norm"] = _entry(gate.norm, _Names())
        return {"type": "gated", "name": f"{body[0]['name']}.gated", "gate": sizes, "body": body}
    if isinstance(layer, Residual):
        name = names.after("residual")
        body, shortcut = describe(layer.body, names), describe(layer.shortcut, names)
        return {"type": "residual", "name": name, "body": body, "shortcut": shortcut}
    kind = _TYPES[type(layer)]
    if kind in WEIGHTED:
        names.last = layer.name
    values = {key: getattr(layer, attribute) for key, attribute in LAYERS[kind][1].items()}
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    told = {key: value for key, value in lists.items() if USUAL.get(kind, {}).get(key) != value}
    return {"type": kind, "name": layer.name if kind in WEIGHTED else names.after(kind), **told}


def build(description: Iterable[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """Build the layers of a description; raises `DataError` if it cannot be read."""
    try:
        return tuple(build_layer(entry) for entry in description)
    except DataError:  # an inner description failed; quoting it again at every level would double the message
        raise
    except RecursionError:
        raise DataError("golden: the description of a network is nested too deeply") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"golden: cannot read the description of a network: {error!r}") from None


def build_layer(entry: Mapping[str, Any]) -> Layer:
    """Build one layer."""
    kind, name = entry["type"], entry["name"]
    if kind == "gated":
        gate = entry["gate"]
        own = BlindGate if gate.get("summary") == "all" else ChannelGate  # the first is a deliberate mistake
        norm: Any = build_layer(gate["norm"]) if "norm" in gate else None
        norm = norm and replace(norm, part="phi")
        return Gated(own(gate["name"], gate["in"], gate["out"], gate["hidden"], norm), build(entry["body"]))
    if kind == "residual":
        return Residual(build(entry["body"]), build(entry["shortcut"]))
    if kind not in LAYERS:
        raise DataError(f"golden: unknown type of layer {kind!r}")
    made, keys = LAYERS[kind]
    if kind == "max_pool2d" and entry.get("tie") == "last":  # a deliberate mistake, to compute its results
        made = LastMaxPool2d
    named, entry = (name,) if kind in WEIGHTED else (), {**USUAL.get(kind, {}), **entry}
    values = {at: _READ[key](entry[key]) if key in _READ else entry[key] for key, at in keys.items()}
    layer: Layer = made(*named, **{_FIELDS.get(at, at): value for at, value in values.items()})
    return layer


def network_of(settings: Mapping[str, Any]) -> Network:
    """The network of a case: `settings["layers"]` on samples of `settings["input_shape"]`."""
    return Network("golden", build(settings["layers"]), tuple(settings["input_shape"]))


def gated_blocks(layers: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The tables of all gated blocks, in order of execution."""
    for entry in layers:
        if entry["type"] == "gated":
            yield entry
        for branch in ("body", "shortcut"):
            yield from gated_blocks(entry.get(branch, ()))
