"""Small ONNX graphs as onnxruntime sessions with a fixed number of threads."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

OPSET = 17


def session(nodes: list, constants: dict[str, np.ndarray], x: np.ndarray, results: int, threads: int = 1):
    """A session computing `nodes` (from "x" to "y") with `constants`, for inputs shaped like x.

    results: number of axes of y.
    """
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, [None] * results)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others run in between
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def conv_node(name: str, x: str, y: str, pad: int):
    """A convolution with weights `name.weight` and `name.bias`."""
    return helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [y], pads=[pad] * 4)
