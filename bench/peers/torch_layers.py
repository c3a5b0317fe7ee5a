"""Single layers in PyTorch, in both memory layouts; the mask is multiplied on, as frameworks do."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from refimpl.bench.candidates import Candidate
from refimpl.bench.cases import Case, LayerData

LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def tensor(array: np.ndarray, layout: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    return torch.from_numpy(array).contiguous(memory_format=layout)


def conv(case: Case, data: LayerData, layout: str) -> Candidate | None:
    """Forward by conv2d; gradients by the backward operator itself, without autograd's bookkeeping."""
    if case.geometry.linear:
        return None
    x, weight, dy = (tensor(array, LAYOUTS[layout]) for array in (data.x, data.weight, data.dy))
    bias, pad = tensor(data.bias), [case.geometry.pad] * 2
    mask = None if data.mask is None else tensor(data.mask.astype(case.dtype))[:, :, None, None]

    @torch.inference_mode()
    def forward():
        y = torch.conv2d(x, weight, bias, padding=pad)
        return y if mask is None else y.mul_(mask)

    @torch.inference_mode()
    def backward(wanted):
        masked = dy if mask is None else dy * mask
        sizes = [case.geometry.filters]
        return torch.ops.aten.convolution_backward(
            masked, x, weight, sizes, [1, 1], pad, [1, 1], False, [0, 0], 1, wanted
        )

    name = f"torch {layout}"
    if case.pass_ == "forward":
        return Candidate(name, forward, lambda y: {"y": y.numpy()})
    if case.pass_ == "input_grad":
        run = partial(backward, [True, False, False])
        return Candidate(name, run, lambda grads: {"dx": grads[0].numpy()})
    run = partial(backward, [False, True, True])
    return Candidate(name, run, lambda grads: {"dw": grads[1].numpy(), "db": grads[2].numpy()})


def linear(case: Case, data: LayerData) -> Candidate | None:
    """Matrix products."""
    if not case.geometry.linear:
        return None
    x, weight, dy = (tensor(array).flatten(1) for array in (data.x, data.weight, data.dy))
    bias = tensor(data.bias)
    mask = None if data.mask is None else tensor(data.mask.astype(case.dtype))

    @torch.inference_mode()
    def forward():
        y = torch.addmm(bias, x, weight.t())
        return y if mask is None else y.mul_(mask)

    @torch.inference_mode()
    def input_grad():
        return (dy if mask is None else dy * mask) @ weight

    @torch.inference_mode()
    def weight_grad():
        masked = dy if mask is None else dy * mask
        return masked.t() @ x, masked.sum(0)

    if case.pass_ == "forward":
        return Candidate("torch", forward, lambda y: {"y": y.numpy()[:, :, None, None]})
    if case.pass_ == "input_grad":
        return Candidate("torch", input_grad, lambda dx: {"dx": dx.numpy()[:, :, None, None]})
    return Candidate(
        "torch", weight_grad, lambda d: {"dw": d[0].numpy()[:, :, None, None], "db": d[1].numpy()}
    )


def product(a: np.ndarray, b: np.ndarray) -> Candidate:
    """torch.mm."""
    left, right = tensor(a), tensor(b)
    c = torch.empty(a.shape[0], b.shape[1], dtype=left.dtype)
    return Candidate("torch.mm", lambda: torch.mm(left, right, out=c), lambda c: {"c": c.numpy()})


LAYERS = (*(partial(conv, layout=layout) for layout in LAYOUTS), linear)
PRODUCTS = (product,)
