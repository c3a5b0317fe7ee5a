"""PyTorch as most people write it: a flat parameter vector, functional layers, autograd.

The mask is multiplied on after activation and pooling, with the straight-through gradient of the
softmax relaxation, as gated networks are usually written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from bench.peers.torch_layers import LAYOUTS
from bench.peers.torch_prox import server_step
from refimpl.bench.candidates import Candidate
from refimpl.bench.endtoend import round_arrays
from refimpl.bench.programs import Adaptation, Inference, Program, Round
from refimpl.nn.gate import Gated
from refimpl.nn.layers import Conv2d, Layer, Linear
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten, MaxPool2d

Params = dict[str, torch.Tensor]
NAME = "torch autograd"


def views(network: Network, w: torch.Tensor, train: tuple[str, ...] = ("theta", "phi")) -> Params:
    """Named parts of the flat vector; those that are not trained are cut off from the gradient."""
    slots = network.layout.slots
    parts = w.split([slot.stop - slot.start for slot in slots])
    return {
        slot.name: (part if slot.parameter.part in train else part.detach()).view(slot.shape)
        for slot, part in zip(slots, parts, strict=True)
    }


def run_layers(layers: tuple[Layer, ...], params: Params, x: torch.Tensor) -> torch.Tensor:
    """Forward pass."""
    for layer in layers:
        if isinstance(layer, Conv2d):
            weight, bias = params[f"{layer.name}.weight"], params[f"{layer.name}.bias"]
            x = functional.conv2d(x, weight, bias, padding=layer.pad)
        elif isinstance(layer, Linear):
            x = functional.linear(x, params[f"{layer.name}.weight"], params[f"{layer.name}.bias"])
        elif isinstance(layer, ReLU):
            x = functional.relu(x)
        elif isinstance(layer, MaxPool2d):
            x = functional.max_pool2d(x, layer.window, layer.step)
        elif isinstance(layer, Flatten):
            x = x.flatten(1)
        elif isinstance(layer, Gated):
            mask = gate(layer.gate.name, params, x)
            x = run_layers(layer.body, params, x) * mask[:, :, None, None]
        else:
            raise TypeError(type(layer).__name__)
    return x


def gate(name: str, params: Params, x: torch.Tensor) -> torch.Tensor:
    """0/1 mask (N, C) whose gradient is that of the softmax over the two logits; a constant if phi is."""
    if not params[f"{name}.fc2.weight"].requires_grad:
        x = x.detach()
    summary = x.mean(dim=(2, 3))
    hidden = functional.relu(
        functional.linear(summary, params[f"{name}.fc1.weight"], params[f"{name}.fc1.bias"])
    )
    logits = functional.linear(hidden, params[f"{name}.fc2.weight"], params[f"{name}.fc2.bias"])
    margin = logits[:, 1::2] - logits[:, 0::2]
    soft = torch.sigmoid(margin)
    return (margin > 0).to(soft.dtype) + (soft - soft.detach())


def gradient(
    network: Network, w: torch.Tensor, train: tuple[str, ...], x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient w.r.t. the flat vector."""
    w = w.detach().requires_grad_()
    loss = functional.cross_entropy(run_layers(network.layers, views(network, w, train), x), y)
    return loss.detach(), torch.autograd.grad(loss, w)[0]


def round_(program: Round) -> Candidate:
    """One round, node by node."""
    network, centre = program.model.network, torch.from_numpy(program.model.parameters())
    x, y = (torch.from_numpy(array) for array in program.data())
    batches = torch.from_numpy(program.batches())

    def local(node: int) -> tuple[torch.Tensor, torch.Tensor]:
        w = centre
        losses = []
        for chosen in batches[node]:
            loss, g = gradient(network, w, program.train, x[node][chosen], y[node][chosen])
            w = w - program.eta * (g + program.lam * (w - centre))
            losses.append(loss)
        return w, losses[0]

    def run():
        ends, losses = zip(*(local(node) for node in range(program.nodes)), strict=True)
        new_x, ag = server_step(program, centre, torch.stack(ends).mean(0))
        return float(torch.stack(losses).mean()), new_x, ag

    def arrays(result):
        loss, new_x, ag = result
        return round_arrays(loss, centre.numpy(), new_x.numpy(), ag.numpy())

    return Candidate(NAME, run, arrays)


def adaptation(program: Adaptation) -> Candidate:
    """Stage I moves phi, stage II theta."""
    network, start = program.model.network, torch.from_numpy(program.model.parameters())
    x, y = (torch.from_numpy(array) for array in program.model.samples(program.support))

    def run():
        w = start
        for part in ("phi", "theta"):
            w = w - program.eta * gradient(network, w, (part,), x, y)[1]
        return w

    return Candidate(NAME, run, lambda w: {"moved": (w - start).numpy()})


def inference(program: Inference, layout: str) -> Candidate:
    """Logits without a graph."""
    network, w = program.model.network, torch.from_numpy(program.model.parameters())
    images = torch.from_numpy(program.model.samples(program.batch)[0])
    x = images.contiguous(memory_format=LAYOUTS[layout]) if images.dim() == 4 else images
    params = {
        name: part.contiguous(memory_format=LAYOUTS[layout]) if part.dim() == 4 else part
        for name, part in views(network, w).items()
    }

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return run_layers(network.layers, params, x)

    return Candidate(f"torch {layout}", run, lambda logits: {"logits": logits.numpy()})


def make(program: Program, threads: int) -> Candidate | None:
    """Rounds and adaptations; torch's number of threads is set for the whole process."""
    if isinstance(program, Round):
        return round_(program)
    return adaptation(program) if isinstance(program, Adaptation) else None


def make_inference(program: Program, threads: int, layout: str) -> Candidate | None:
    """Inferences."""
    return inference(program, layout) if isinstance(program, Inference) else None


PROGRAMS: tuple[Callable[[Program, int], Candidate | None], ...] = (
    make,
    *(partial(make_inference, layout=layout) for layout in LAYOUTS),
)
