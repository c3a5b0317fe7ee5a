"""Single layers in PyTorch, in both memory layouts; the mask is multiplied on, as frameworks do."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from refimpl.bench.candidates import Candidate, torch_twin
from refimpl.bench.cases import Case, LayerData

LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def conv(case: Case, data: LayerData, layout: str) -> Candidate | None:
    """A convolution in one of the layouts."""
    return None if case.geometry.linear else torch_twin(case, data, f"torch {layout}", layout=LAYOUTS[layout])


def linear(case: Case, data: LayerData) -> Candidate | None:
    """A fully connected layer."""
    return torch_twin(case, data) if case.geometry.linear else None


def product(a: np.ndarray, b: np.ndarray) -> Candidate:
    """torch.mm."""
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    c = torch.empty(a.shape[0], b.shape[1], dtype=left.dtype)
    return Candidate("torch.mm", lambda: torch.mm(left, right, out=c), lambda c: {"c": c.numpy()})


LAYERS = (*(partial(conv, layout=layout) for layout in LAYOUTS), linear)
PRODUCTS = (product,)
