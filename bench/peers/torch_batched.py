"""The round of the two-layer network in PyTorch, tuned by hand: node by node, and all nodes at once."""

from __future__ import annotations

import torch

from bench.peers.torch_net import aten, cross_entropy
from bench.peers.torch_prox import server_step
from refimpl.bench.candidates import Candidate
from refimpl.bench.endtoend import round_arrays
from refimpl.bench.programs import Program, Round


def shapes(program: Round) -> list[tuple[int, ...]]:
    """fc1.weight, fc1.bias, fc2.weight, fc2.bias."""
    return [slot.shape for slot in program.model.network.layout.slots]


def split(w: torch.Tensor, program: Round) -> list[torch.Tensor]:
    """Views of (..., entries) as the four parameters."""
    sizes = [torch.Size(shape).numel() for shape in shapes(program)]
    parts = w.split(sizes, dim=-1)
    return [part.view(*w.shape[:-1], *shape) for part, shape in zip(parts, shapes(program), strict=True)]


def node_by_node(program: Program, threads: int) -> Candidate | None:
    """Manual backward; the gradient is added to w by the matrix product itself."""
    if not isinstance(program, Round) or program.model.kind != "mlp":
        return None
    centre = torch.from_numpy(program.model.parameters())
    x, y = (torch.from_numpy(array) for array in program.data())
    batches = torch.from_numpy(program.batches())
    w = torch.empty_like(centre)
    w1, b1, w2, b2 = split(w, program)
    eta = program.eta

    def local(node: int) -> torch.Tensor:
        w.copy_(centre)
        first = None
        for step, chosen in enumerate(batches[node]):
            xb, yb = x[node], y[node]
            if not program.full:
                xb, yb = xb.index_select(0, chosen), yb.index_select(0, chosen)
            hidden = torch.addmm(b1, xb, w1.t()).relu_()
            loss, dlogits = cross_entropy(torch.addmm(b2, hidden, w2.t()), yb)
            dhidden = aten.threshold_backward(dlogits @ w2, hidden, 0)
            if step:
                w.lerp_(centre, eta * program.lam)
            w2.addmm_(dlogits.t(), hidden, alpha=-eta)
            b2.sub_(dlogits.sum(0), alpha=eta)
            w1.addmm_(dhidden.t(), xb, alpha=-eta)
            b1.sub_(dhidden.sum(0), alpha=eta)
            first = loss if first is None else first
        return first

    @torch.inference_mode()
    def run():
        total, loss = torch.zeros_like(centre), 0.0
        for node in range(program.nodes):
            loss += float(local(node))
            total += w
        return loss / program.nodes, *server_step(program, centre, total / program.nodes)

    return Candidate("torch tuned, node by node", run, lambda result: _arrays(result, centre))


def all_nodes(program: Program, threads: int) -> Candidate | None:
    """All nodes' weights in one batched matrix product; a step of all nodes is one step of Python."""
    if not isinstance(program, Round) or program.model.kind != "mlp":
        return None
    centre = torch.from_numpy(program.model.parameters())
    x, y = (torch.from_numpy(array) for array in program.data())
    batches = torch.from_numpy(program.batches())
    nodes = torch.arange(program.nodes)[:, None]
    w = torch.empty(program.nodes, centre.numel())
    w1, b1, w2, b2 = split(w, program)
    eta = program.eta

    @torch.inference_mode()
    def run():
        w.copy_(centre)
        first = None
        for step in range(program.steps):
            chosen = batches[:, step]
            xb, yb = (x, y) if program.full else (x[nodes, chosen], y[nodes, chosen])
            hidden = torch.baddbmm(b1[:, None], xb, w1.mT).relu_()
            logits = torch.baddbmm(b2[:, None], hidden, w2.mT)
            loss, dlogits = cross_entropy(logits.flatten(0, 1), yb.flatten())
            dlogits = dlogits.mul_(program.nodes).view_as(logits)  # a mean for each node, not over all
            dhidden = aten.threshold_backward(dlogits @ w2, hidden, 0)
            if step:
                w.lerp_(centre, eta * program.lam)
            w2.baddbmm_(dlogits.mT, hidden, alpha=-eta)
            b2.sub_(dlogits.sum(1), alpha=eta)
            w1.baddbmm_(dhidden.mT, xb, alpha=-eta)
            b1.sub_(dhidden.sum(1), alpha=eta)
            first = loss if first is None else first
        return float(first), *server_step(program, centre, w.mean(0))

    return Candidate("torch tuned, nodes batched", run, lambda result: _arrays(result, centre))


def _arrays(result, centre: torch.Tensor):
    loss, new_x, ag = result
    return round_arrays(loss, centre.numpy(), new_x.numpy(), ag.numpy())


PROGRAMS = (node_by_node, all_nodes)
