"""Single convolutions in onnxruntime: forward only (it has no backward), weights packed, float32 only."""

from __future__ import annotations

from onnx import helper

from bench.peers.onnx_graph import conv_node, session
from refimpl.bench.candidates import Candidate
from refimpl.bench.cases import Case, LayerData


def conv(case: Case, data: LayerData) -> Candidate | None:
    """Convolution, and a product with the mask where there is one."""
    if case.pass_ != "forward" or case.geometry.linear or case.dtype != "float32":
        return None
    constants = {"conv.weight": data.weight, "conv.bias": data.bias}
    nodes = [conv_node("conv", "x", "y" if data.mask is None else "z", case.geometry.pad)]
    if data.mask is not None:
        constants["mask"] = data.mask.astype(case.dtype)[:, :, None, None]
        nodes.append(helper.make_node("Mul", ["z", "mask"], ["y"]))
    net = session(nodes, constants, data.x, 4)
    feed = {"x": data.x}
    return Candidate("onnxruntime", lambda: net.run(None, feed)[0], lambda y: {"y": y})


LAYERS = (conv,)
