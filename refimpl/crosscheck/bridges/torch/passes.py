"""Layers and networks in PyTorch as functions without arguments, to be timed; masks are multiplied.

Source: mathematics.md §2.1, §2.3b, §3 and §6, and PyTorch's documentation.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refimpl.crosscheck.bridges.torch.network import Batch, Objective, build, local_solution
from refimpl.crosscheck.bridges.torch.weights import array, tensor
from refimpl.nn.context import Gating
from refimpl.nn.network import Network

Where = tuple[int, int, int, int]  # stride, padding, dilation, groups
LayerPasses = tuple[
    Callable[[], np.ndarray], Callable[[], np.ndarray], Callable[[], tuple[np.ndarray, np.ndarray]]
]


def layer_passes(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    dy: np.ndarray,
    mask: np.ndarray | None,
    where: Where | None,
    layout: torch.memory_format = torch.contiguous_format,
) -> LayerPasses:
    """y; dx; (dw, db) of a convolution x (N,C,H,W), or with where = None of a fully connected layer.

    Gradients come from the backward operator itself, without autograd's bookkeeping; on one thread.
    """
    torch.set_num_threads(1)
    images, matrix, sent = (torch.from_numpy(one).contiguous(memory_format=layout) for one in (x, weight, dy))
    gate = None if mask is None else torch.from_numpy(mask.astype(x.dtype))[:, :, None, None]
    given = images, matrix, sent, torch.from_numpy(bias), gate
    return _linear(*given) if where is None else _conv(*given, where)


def _conv(
    x: Tensor, weight: Tensor, dy: Tensor, bias: Tensor, gate: Tensor | None, where: Where
) -> LayerPasses:
    stride, pad, dilation = ([number] * 2 for number in where[:3])

    @torch.inference_mode()
    def forward() -> np.ndarray:
        y = torch.conv2d(x, weight, bias, stride, pad, dilation, where[3])
        return (y if gate is None else y.mul_(gate)).numpy()

    @torch.inference_mode()
    def backward(*wanted: bool) -> Any:
        masked = dy if gate is None else dy * gate
        sizes, rest = [weight.shape[0]], (stride, pad, dilation, False, [0, 0], where[3])
        return torch.ops.aten.convolution_backward(masked, x, weight, sizes, *rest, list(wanted))

    def weight_grad() -> tuple[np.ndarray, np.ndarray]:
        _, dw, db = backward(False, True, True)
        return dw.numpy(), db.numpy()

    return forward, lambda: np.asarray(backward(True, False, False)[0].numpy()), weight_grad


def _linear(x: Tensor, weight: Tensor, dy: Tensor, bias: Tensor, gate: Tensor | None) -> LayerPasses:
    flat, matrix, sent = (one.flatten(1) for one in (x, weight, dy))
    factor = None if gate is None else gate.flatten(1)

    @torch.inference_mode()
    def forward() -> np.ndarray:
        y = torch.addmm(bias, flat, matrix.t())
        return (y if factor is None else y.mul_(factor)).numpy()

    @torch.inference_mode()
    def input_grad() -> np.ndarray:
        return ((sent if factor is None else sent * factor) @ matrix).numpy()

    @torch.inference_mode()
    def weight_grad() -> tuple[np.ndarray, np.ndarray]:
        masked = sent if factor is None else sent * factor
        return (masked.t() @ flat).numpy(), masked.sum(0).numpy()

    return forward, input_grad, weight_grad


def network_passes(
    network: Network,
    w: np.ndarray,
    samples: tuple[np.ndarray, np.ndarray],
    noise: Mapping[str, np.ndarray],
    rates: tuple[float, float],
) -> dict[str, Callable[[], np.ndarray]]:
    """By name: logits of x, gradient at w, and how far a local step and an adaptation move w (d,).

    samples: x, y; noise: of the gates by name, which decides; rates: eta and lam of a step of the local
    problem. Adaptation is a step of rate eta on phi, where there are gates, then one on theta. PyTorch runs
    on one thread from then on.
    """
    torch.set_num_threads(1)
    eta, lam = rates
    batch = Batch(tensor(samples[0]), tensor(samples[1]), {name: tensor(one) for name, one in noise.items()})
    gating, start = Gating("gumbel" if noise else "hard"), tensor(w)
    models = {train: build(network, w, gating, train) for train in (("theta", "phi"), ("theta",), ("phi",))}
    both, theta, phi = (Objective(model, batch) for model in models.values())

    @torch.inference_mode()
    def forward() -> np.ndarray:
        return array(both.model(batch.x, batch.noise))

    def adaptation() -> np.ndarray:
        first = local_solution(start, [phi], eta) if noise else start
        return array(local_solution(first, [theta], eta) - start)

    return {
        "forward": forward,
        "gradient": lambda: array(both.gradient(start)),
        "local step": lambda: array(local_solution(start, [both], eta, lam) - start),
        "adaptation": adaptation,
    }
