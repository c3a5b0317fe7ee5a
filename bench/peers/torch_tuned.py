"""Rounds, adaptations and inferences of convolutional networks in PyTorch, tuned by hand (`torch_net`)."""

from __future__ import annotations

from functools import partial

import torch

from bench.peers.torch_net import ConvNet
from bench.peers.torch_prox import server_step
from refimpl.bench.candidates import Candidate
from refimpl.bench.endtoend import round_arrays
from refimpl.bench.programs import Adaptation, Inference, Program, Round


def restore(net: ConvNet, w: torch.Tensor) -> torch.Tensor:
    """A vector in the net's order as one in the package's."""
    out = torch.empty_like(w)
    out[net.order] = w
    return out


def round_(program: Round, net: ConvNet, name: str) -> Candidate:
    """One round, node by node; w moves in place."""
    start = torch.from_numpy(program.model.parameters())
    centre = start[net.order]
    x, y = program.data()
    x, y, batches = net.store_images(x), torch.from_numpy(y), torch.from_numpy(program.batches())
    w = torch.empty_like(centre)
    params = net.parameters(w)

    def local(node: int) -> torch.Tensor:
        """Solve node's local problem in w; returns the first loss."""
        w.copy_(centre)
        first = None
        for step, chosen in enumerate(batches[node]):
            images = net.images(x[node].index_select(0, chosen))
            loss, gradients = net.gradients(params, images, y[node].index_select(0, chosen), program.train)
            if step:
                w.lerp_(centre, program.eta * program.lam)
            for key, gradient in gradients.items():
                params[key].add_(gradient, alpha=-program.eta)
            first = loss if first is None else first
        return first

    @torch.inference_mode()
    def run():
        total, loss = torch.zeros_like(centre), 0.0
        for node in range(program.nodes):
            loss += float(local(node))
            total += w
        return loss / program.nodes, *server_step(program, centre, total / program.nodes)

    def arrays(result):
        loss, new_x, ag = result
        return round_arrays(loss, start.numpy(), restore(net, new_x).numpy(), restore(net, ag).numpy())

    return Candidate(name, run, arrays)


def adaptation(program: Adaptation, net: ConvNet, name: str) -> Candidate:
    """Stage I moves phi, stage II theta, in place."""
    start = torch.from_numpy(program.model.parameters())
    meta = start[net.order]
    x, y = program.model.samples(program.support)
    images, y = net.images(net.store_images(x)), torch.from_numpy(y)
    w = torch.empty_like(meta)
    params = net.parameters(w)

    @torch.inference_mode()
    def run():
        w.copy_(meta)
        for part in ("phi", "theta"):
            for key, gradient in net.gradients(params, images, y, (part,))[1].items():
                params[key].add_(gradient, alpha=-program.eta)
        return w

    return Candidate(name, run, lambda w: {"moved": (restore(net, w) - start).numpy()})


def inference(program: Inference, net: ConvNet, name: str) -> Candidate:
    """Logits."""
    params = net.parameters(torch.from_numpy(program.model.parameters())[net.order])
    x = net.images(net.store_images(program.model.samples(program.batch)[0]))
    run = torch.inference_mode()(lambda: net.logits(params, x))
    return Candidate(name, run, lambda logits: {"logits": logits.numpy()})


def make(program: Program, threads: int, channels_last: bool) -> Candidate | None:
    """The program in one memory format."""
    if program.model.kind == "mlp":
        return None
    net = ConvNet(program.model.network, channels_last)
    name = f"torch tuned, {'channels-last' if channels_last else 'NCHW'}"
    if isinstance(program, Round):
        return round_(program, net, name)
    return (adaptation if isinstance(program, Adaptation) else inference)(program, net, name)


PROGRAMS = tuple(partial(make, channels_last=channels_last) for channels_last in (False, True))
