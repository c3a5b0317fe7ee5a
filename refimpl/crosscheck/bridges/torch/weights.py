"""Parameters to and from PyTorch: the flat vector w, arrays by name, a module's state_dict.

Names and shapes are PyTorch's on both sides (`conv3.weight`, `conv3.gate.fc2.bias`).
Source: mathematics.md §1 (one vector; backbone first).
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from refimpl.errors import InputError
from refimpl.nn.layout import Layout

Tensors = dict[str, Tensor]
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def tensor(array: np.ndarray) -> Tensor:
    """A tensor with a copy of the array's numbers."""
    return torch.from_numpy(np.array(array, order="C"))


def array(value: Tensor) -> np.ndarray:
    """A copy of a tensor's numbers; bfloat16, which NumPy has not, becomes float32."""
    plain = value.detach().cpu()
    return np.array((plain.float() if plain.dtype == torch.bfloat16 else plain).numpy(), order="C")


def views(shapes: Mapping[str, tuple[int, ...]], w: Tensor) -> Tensors:
    """Named parts of a flat tensor (d,), in the order of `shapes`: gradients flow back to w."""
    parts = w.split([math.prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def to_state_dict(layout: Layout, w: np.ndarray) -> Tensors:
    """The flat vector as a dict for `module.load_state_dict`."""
    return {name: tensor(value) for name, value in layout.to_arrays(w).items()}


def from_state_dict(layout: Layout, state: Mapping[str, Tensor], dtype: str | None = None) -> np.ndarray:
    """A state_dict as the flat vector, in `dtype` or in the tensors' own.

    Raises `InputError` where names or shapes are not this layout's. Buffers that count batches, and running
    statistics that the layout has no place for, are left out; those of a `frozen` network are taken.
    """
    arrays = {
        name: array(value)
        for name, value in state.items()
        if name in layout.by_name or not name.endswith(STATISTICS)
    }
    kinds = sorted({value.dtype.name for value in arrays.values()}) or ["float32"]  # none: all are missing
    if dtype is None and len(kinds) > 1:
        raise InputError(f"from_state_dict: tensors of different dtypes ({', '.join(kinds)}); name one")
    return layout.from_arrays(arrays, dtype or kinds[0])
