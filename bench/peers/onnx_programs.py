"""Inference in onnxruntime: the dense network without gates, batch size fixed, weights packed in advance.

Beside a gated program it stands for "not gating at all", and is checked against the ungated network.
"""

from __future__ import annotations

from dataclasses import replace

from onnx import helper

from bench.peers.onnx_graph import conv_node, session
from bench.peers.onnx_names import DENSE
from refimpl.bench.candidates import Candidate
from refimpl.bench.endtoend import program_reference
from refimpl.bench.programs import Inference, Model, Program
from refimpl.nn.gate import Gated
from refimpl.nn.layers import Conv2d, Layer, Linear
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten, MaxPool2d


def flat(layers: tuple[Layer, ...]) -> list[Layer]:
    """The layers with gated blocks replaced by their bodies."""
    return [one for layer in layers for one in (layer.body if isinstance(layer, Gated) else (layer,))]


def node(layer: Layer, x: str, y: str):
    """The operator of one layer."""
    if isinstance(layer, Conv2d):
        return conv_node(layer.name, x, y, layer.pad[0])
    if isinstance(layer, Linear):
        return helper.make_node("Gemm", [x, f"{layer.name}.weight", f"{layer.name}.bias"], [y], transB=1)
    if isinstance(layer, MaxPool2d):
        return helper.make_node("MaxPool", [x], [y], kernel_shape=layer.window, strides=layer.step)
    return helper.make_node({ReLU: "Relu", Flatten: "Flatten"}[type(layer)], [x], [y])


def dense(program: Program, threads: int) -> Candidate | None:
    """The backbone."""
    if not isinstance(program, Inference) or program.model.kind == "mlp":
        return None
    layers = flat(program.model.network.layers)
    names = ["x", *(f"t{i}" for i in range(1, len(layers))), "y"]
    nodes = [node(layer, *names[i : i + 2]) for i, layer in enumerate(layers)]
    views = program.model.network.layout.views(program.model.parameters())
    backbone = {name: view for name, view in views.items() if ".gate." not in name}
    x, _ = program.model.samples(program.batch)
    net, feed = session(nodes, backbone, x, 2, threads), {"x": x}
    ungated = replace(program, model=Model(program.model.kind))
    return Candidate(
        DENSE,
        lambda: net.run(None, feed)[0],
        lambda logits: {"logits": logits},
        own=program_reference(ungated),
    )


PROGRAMS = (dense,)
