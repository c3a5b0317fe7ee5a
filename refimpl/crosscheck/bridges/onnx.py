"""Export of a network with its gates as an ONNX graph for inference.

Any runtime can then be compared with this package, for accuracy and for latency. The graph computes what
`nn/predict.py` computes, except that nothing is skipped: channels that are off are multiplied by zero. The
batch size is free.

Source: mathematics.md §2.1-§2.3; the ONNX operators' specification (opset 17).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refimpl._version import __version__
from refimpl.errors import InputError
from refimpl.nn.chain import Residual
from refimpl.nn.context import Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear, Shape
from refimpl.nn.network import Network
from refimpl.nn.pointwise import LeakyReLU, ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

try:
    from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper
except ModuleNotFoundError as error:
    if error.name != "onnx":
        raise
    raise InputError(
        'export needs the package onnx, which is not installed; try pip install "refimpl[onnx]"'
    ) from None

OPSET, IR_VERSION = 17, 8
INPUT, OUTPUT, BATCH = "x", "logits", "N"
# Layers without parameters: the operators that compute them, one after the other.
PLAIN: dict[type[Any], tuple[str, ...]] = {
    ReLU: ("Relu",),
    LeakyReLU: ("LeakyRelu",),
    Softplus: ("Softplus",),
    Tanh: ("Tanh",),
    Flatten: ("Flatten",),
    GlobalAvgPool2d: ("GlobalAveragePool", "Flatten"),
    MaxPool2d: ("MaxPool",),
    AvgPool2d: ("AveragePool",),
}


@dataclass
class Graph:
    """The nodes and constants so far; a value is named after the node that makes it."""

    constants: dict[str, np.ndarray]
    nodes: list[NodeProto] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its one output."""
        output = name or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """A named constant."""
        self.constants[name] = value
        return name


def export(network: Network, w: np.ndarray, gating: Gating | None = None) -> ModelProto:
    """The network with parameters w (d,) as a checked float32 model: `x` (N, *input_shape) -> `logits`.

    Gate modes `hard`, `ste` and `gumbel` decide by d > 0, without noise, as evaluation does; `soft`
    multiplies by sigmoid(d/tau). Raises `InputError` for a layer that has no counterpart here, and for
    parameters that are not finite in float32.
    """
    chosen = gating or Gating()
    with np.errstate(over="ignore"):  # numbers too large for float32 are refused below
        graph = Graph({name: value.astype(np.float32) for name, value in network.layout.views(w).items()})
    for name, value in graph.constants.items():
        if not np.isfinite(value).all():
            raise InputError(f"export: expected finite float32 parameters, found NaN or infinity in {name}")
    graph.constant("zero", np.zeros((), np.float32))
    last = _chain(graph, network.layers, INPUT, network.input_shape, chosen)
    graph.add("Identity", last, name=OUTPUT)
    ends = (
        helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, *network.input_shape]),
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, network.classes]),
    )
    used = {name for node in graph.nodes for name in node.input}
    constants = [
        numpy_helper.from_array(value, name) for name, value in graph.constants.items() if name in used
    ]
    body = helper.make_graph(graph.nodes, network.name, ends[:1], ends[1:], constants)
    model = helper.make_model(
        body,
        producer_name="refimpl",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    checker.check_model(model)
    return model


def _chain(graph: Graph, layers: Sequence[Layer], x: str, shape: Shape, gating: Gating) -> str:
    """Add the layers; x has shape (N, *shape)."""
    for layer in layers:
        x = _layer(graph, layer, x, shape, gating)
        shape = layer.output_shape(shape)
    return x


def _layer(graph: Graph, layer: Layer, x: str, shape: Shape, gating: Gating) -> str:
    if isinstance(layer, Gated):
        mask = _mask(graph, layer.gate, x, shape, gating)
        y = _chain(graph, layer.body, x, shape, gating)
        pixels = (1,) * (len(layer.output_shape(shape)) - 1)
        axes = graph.constant(
            f"{layer.gate.name}.shape", np.array([-1, layer.gate.out_channels, *pixels], np.int64)
        )
        return graph.add("Mul", y, graph.add("Reshape", mask, axes))
    if isinstance(layer, Residual):
        branches = (_chain(graph, branch, x, shape, gating) for branch in (layer.body, layer.shortcut))
        return graph.add("Add", *branches)
    if isinstance(layer, Conv2d):
        inputs = [x, f"{layer.name}.weight", *([f"{layer.name}.bias"] if layer.bias else [])]
        return graph.add("Conv", *inputs, strides=layer.step, pads=[*layer.pad, *layer.pad])
    if isinstance(layer, Linear):
        return _linear(graph, layer.name, x)
    if isinstance(layer, BatchNorm2d):
        return _batch_norm(graph, layer, x)
    if type(layer) not in PLAIN:
        raise InputError(f"export: a {type(layer).__name__} has no ONNX counterpart here")
    settings: dict[str, Any] = {}
    if isinstance(layer, (MaxPool2d, AvgPool2d)):
        settings = {"kernel_shape": layer.window, "strides": layer.step, "pads": [*layer.pad, *layer.pad]}
        if isinstance(layer, AvgPool2d):
            settings["count_include_pad"] = 1
    elif isinstance(layer, LeakyReLU):
        settings = {"alpha": layer.slope}
    for operator in PLAIN[type(layer)]:
        x = graph.add(operator, x, **settings)
    return x


def _linear(graph: Graph, name: str, x: str) -> str:
    bias = [f"{name}.bias"] if f"{name}.bias" in graph.constants else []
    return graph.add("Gemm", x, f"{name}.weight", *bias, transB=1)


def _mask(graph: Graph, gate: ChannelGate, x: str, shape: Shape, gating: Gating) -> str:
    """The gate's mask (N, K) as floats."""
    summary = graph.add("Flatten", graph.add("GlobalAveragePool", x)) if len(shape) == 3 else x
    hidden = graph.add("Relu", _linear(graph, f"{gate.name}.fc1", summary))
    logits, rows = (
        _linear(graph, f"{gate.name}.fc2", hidden),
        np.arange(2 * gate.out_channels, dtype=np.int64),
    )
    off, on = (
        graph.add("Gather", logits, graph.constant(f"{gate.name}.{side}", every_second), axis=1)
        for side, every_second in (("off", rows[0::2]), ("on", rows[1::2]))
    )
    d = graph.add("Sub", on, off)
    if gating.mode != "soft":
        return graph.add(
            "Cast", graph.add("Greater", d, "zero"), name=f"{gate.name}.mask", to=TensorProto.FLOAT
        )
    tau = graph.constant("tau", np.array(gating.tau, np.float32))
    return graph.add("Sigmoid", graph.add("Div", d, tau), name=f"{gate.name}.mask")


def _batch_norm(graph: Graph, layer: BatchNorm2d, x: str) -> str:
    """Statistics of the batch, as in `BatchNorm2d`; ONNX's own operator would want running ones."""
    axes = [0, 2, 3]
    eps = graph.constant(f"{layer.name}.eps", np.array(layer.eps, np.float32))
    shape = graph.constant(f"{layer.name}.shape", np.array([1, layer.channels, 1, 1], np.int64))
    weight, bias = (graph.add("Reshape", f"{layer.name}.{part}", shape) for part in ("weight", "bias"))
    centred = graph.add("Sub", x, graph.add("ReduceMean", x, axes=axes))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=axes)
    spread = graph.add("Sqrt", graph.add("Add", variance, eps))
    return graph.add("Add", graph.add("Mul", graph.add("Div", centred, spread), weight), bias)


def disagreement(model: ModelProto, x: np.ndarray, logits: np.ndarray) -> float:
    """Largest |onnxruntime's logits - `logits`| relative to the largest of `logits`, for float32 samples x.

    Needs onnxruntime.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run([OUTPUT], {INPUT: np.asarray(x, np.float32)})
    error = np.abs(theirs.astype(np.float64) - logits).max()
    return float(error / max(np.abs(logits).max(), np.finfo(np.float32).tiny))
