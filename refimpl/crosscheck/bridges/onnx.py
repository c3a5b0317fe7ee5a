"""Export of a network with its gates as an ONNX graph for inference.

Any runtime can then be compared with this package, for accuracy and for latency. The graph computes what
`nn/predict.py` computes, except that nothing is skipped: channels that are off are multiplied by zero. The
batch size is free.

Source: mathematics.md §2.1-§2.3; the ONNX operators' specification (opset 17).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refimpl._version import __version__
from refimpl.errors import InputError
from refimpl.nn.context import Context, FixedShare, Gating
from refimpl.nn.gate import Decide
from refimpl.nn.joins import Add, Fork, Product
from refimpl.nn.layers import BatchNorm2d, Conv2d, Linear, Shape
from refimpl.nn.network import Network
from refimpl.nn.norms import FrozenNorm2d, GroupNorm
from refimpl.nn.plan import Step, plan
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

    def sizes(self, name: str, *values: int) -> str:
        """A named constant of whole numbers, such as a shape."""
        return self.constant(name, np.array(values, np.int64))


def export(network: Network, w: np.ndarray, gating: Gating | None = None) -> ModelProto:
    """The network with parameters w (d,) as a checked float32 model: `x` (N, *input_shape) -> `logits`.

    Gate modes `hard`, `ste` and `gumbel` decide by d > 0, without noise, as evaluation does; `soft`
    multiplies by sigmoid(d/tau). With a `FixedShare` the gates' noise is a further input each,
    `noise.GATE` (N, K). Raises `InputError` for a layer that has no counterpart here, and for
    parameters that are not finite in float32.
    """
    chosen = gating or Gating()
    with np.errstate(over="ignore"):  # numbers too large for float32 are refused below
        graph = Graph({name: value.astype(np.float32) for name, value in network.layout.views(w).items()})
    for name, value in graph.constants.items():
        if not np.isfinite(value).all():
            raise InputError(f"export: expected finite float32 parameters, found NaN or infinity in {name}")
    graph.constant("zero", np.zeros((), np.float32))
    values = {0: INPUT}
    for step in plan(network.layers, network.input_shape, Context(chosen).routing):
        values[step.output] = _step(graph, step, [values[number] for number in step.inputs], chosen)
    last = values[max(values)]
    graph.add("Identity", last, name=OUTPUT)
    shapes = {INPUT: network.input_shape, OUTPUT: (network.classes,)}
    if isinstance(chosen, FixedShare):
        shapes |= {f"noise.{block.gate.name}": (block.gate.out_channels,) for block in network.gates}
    ends = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
        for name, shape in shapes.items()
    }
    output = ends.pop(OUTPUT)
    used = {name for node in graph.nodes for name in node.input}
    read = {name: value for name, value in graph.constants.items() if name in used}
    constants = [numpy_helper.from_array(value, name) for name, value in read.items()]
    body = helper.make_graph(graph.nodes, network.name, list(ends.values()), [output], constants)
    model = helper.make_model(
        body,
        producer_name="refimpl",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    checker.check_model(model)
    return model


def _step(graph: Graph, step: Step, inputs: list[str], gating: Gating) -> str:
    """Add what a step computes; returns the name of the value."""
    layer, x = step.layer, inputs[0]
    if isinstance(layer, Fork):
        return x
    if isinstance(layer, Add):
        return graph.add("Add", *inputs)
    if isinstance(layer, Product):
        shape = graph.sizes(f"{layer.name}.shape", -1, step.result[0], *(1 for _ in step.result[1:]))
        return graph.add("Mul", x, graph.add("Reshape", inputs[1], shape))
    if isinstance(layer, Decide):
        return _mask(graph, layer.name, step.result[0], x, gating)
    own = [parameter.name for parameter in layer.parameters()]
    if isinstance(layer, Conv2d):
        pads = [*layer.pad, *layer.pad]
        where: dict[str, Any] = {"strides": layer.step, "pads": pads, "dilations": layer.spacing}
        return graph.add("Conv", x, *own, group=layer.groups, **where)
    if isinstance(layer, Linear):
        return graph.add("Gemm", x, *own, transB=1)
    if isinstance(layer, FrozenNorm2d):
        return graph.add("BatchNormalization", x, *own, epsilon=layer.eps)
    if isinstance(layer, (BatchNorm2d, GroupNorm)):
        if isinstance(layer, GroupNorm):
            y = _group_norm(graph, layer, x, step.shape)
        else:
            y = _batch_norm(graph, layer, x)
        per_channel = graph.sizes(f"{layer.name}.shape", 1, layer.channels, *(1 for _ in step.shape[1:]))
        weight, bias = (graph.add("Reshape", name, per_channel) for name in own)
        return graph.add("Add", graph.add("Mul", y, weight), bias)
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


def _mask(graph: Graph, name: str, channels: int, logits: str, gating: Gating) -> str:
    """The mask (N, K) of a gate as floats, from its logits."""
    off, on = (
        graph.add("Gather", logits, graph.sizes(f"{name}.{side}", *range(first, 2 * channels, 2)), axis=1)
        for first, side in enumerate(("off", "on"))
    )
    d = graph.add("Sub", on, off)
    if isinstance(gating, FixedShare):
        d = graph.add("Add", d, f"noise.{name}")
    if gating.mode != "soft":
        return graph.add("Cast", graph.add("Greater", d, "zero"), name=f"{name}.mask", to=TensorProto.FLOAT)
    tau = graph.constant("tau", np.array(gating.tau, np.float32))
    return graph.add("Sigmoid", graph.add("Div", d, tau), name=f"{name}.mask")


def _batch_norm(graph: Graph, layer: BatchNorm2d, x: str) -> str:
    """x normalised with the statistics of the batch; ONNX's own operator would want running ones."""
    eps = graph.constant(f"{layer.name}.eps", np.array(layer.eps, np.float32))
    centred = graph.add("Sub", x, graph.add("ReduceMean", x, axes=[0, 2, 3]))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[0, 2, 3])
    return graph.add("Div", centred, graph.add("Sqrt", graph.add("Add", variance, eps)))


def _group_norm(graph: Graph, layer: GroupNorm, x: str, shape: Shape) -> str:
    """x normalised by groups of channels, each of which is taken for one long channel."""
    groups = graph.sizes(f"{layer.name}.groups", 0, layer.groups, -1)
    images = graph.sizes(f"{layer.name}.images", 0, *shape)
    one, zero = (
        graph.constant(f"{layer.name}.{name}", np.full(layer.groups, value, np.float32))
        for name, value in (("one", 1), ("zero", 0))
    )
    maps = graph.add("Reshape", x, groups)
    normalised = graph.add("InstanceNormalization", maps, one, zero, epsilon=layer.eps)
    return graph.add("Reshape", normalised, images)


def runner(model: ModelProto, inputs: Mapping[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """A function that computes the logits of these inputs with onnxruntime, on one thread."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise InputError(
            'the comparison needs onnxruntime, which is not installed; try pip install "refimpl[onnx]"'
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others run in between
    providers, feed = ["CPUExecutionProvider"], dict(inputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers)
    return lambda: np.asarray(session.run([OUTPUT], feed)[0])


def disagreement(model: ModelProto, x: np.ndarray, logits: np.ndarray) -> float:
    """Largest |onnxruntime's logits - `logits`| relative to the largest of `logits`, for float32 samples x.

    Needs onnxruntime.
    """
    theirs = runner(model, {INPUT: np.asarray(x, np.float32)})()
    error = np.abs(theirs.astype(np.float64) - logits).max()
    return float(error / max(np.abs(logits).max(), np.finfo(np.float32).tiny))
