"""Settings that fit a user's own arrays, for keys that the user has not set.

The model follows the shape of a sample. The number of classes at a node follows the classes there are, so
that training nodes have all of them. Support and mini-batches follow the size of the smallest node. All
of it is read from the arrays' headers and the labels; the samples are not read. All rules are ours.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.data.partition import LARGEST_SHARE
from refimpl.errors import InputError
from refimpl.files.storage import npz_headers, read_npz

IMAGE = 8  # pixels of the smallest side for which cnn3 has three poolings


def fitting(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Model, classes per node, support and batch size for the arrays in a file; `values`: the usual ones.

    Empty if the file cannot be read; the error is raised later, when the whole file is read.
    """
    try:
        shape, labels = _facts(path)
        counts = np.bincount(labels)
    except (InputError, ValueError, TypeError):
        return {}
    nodes, each = values["nodes"], values["classes_per_node"]
    if values["partition"] == "classes":
        each = min(len(counts), max(each, math.ceil(len(counts) / nodes)))
    found = {"model": model_for(shape), "classes_per_node": each}
    if values["node_max"] == 0 and not values["sizes"]:
        room = min(len(labels) / (nodes + values["targets"]), each * float(np.median(counts)))
        smallest = max(int(LARGEST_SHARE * (1 - values["test_share"]) * room) // 2, 1)
        found["support"] = min(values["support"], max(2 * smallest // 3, 1))
        found["batch_size"] = min(values["batch_size"], smallest)
    return found


def model_for(shape: tuple[int, ...]) -> str:
    """The model for samples of a shape: a convolutional one for images, else the fully connected one."""
    if shape == (1, IMAGE, IMAGE):
        return "digits"
    return "cnn3" if min(shape[-2:]) >= IMAGE else "mlp"


def _facts(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape of a sample (channels, height, width), and all labels."""
    headers = npz_headers(path)
    samples = headers["x" if "x" in headers else "x_train"].shape[1:] if headers else ()
    labels = read_npz(path, [name for name in ("y", "y_train", "y_test") if name in headers])
    return (1,) * (3 - len(samples)) + samples, np.concatenate([np.ravel(y) for y in labels.values()])
