"""The server's half of a round in PyTorch: accelerated proximal step with a group lasso on the gates."""

from __future__ import annotations

import torch

from refimpl.bench.programs import RHO, Round


def shrink_gates(program: Round, w: torch.Tensor, step: float) -> torch.Tensor:
    """prox of the group lasso, in place: a group is a channel's two rows of A2 and two entries of b2."""
    for block in program.model.network.gates:
        slots = program.model.network.layout.by_name
        rows, bias = (slots[f"{block.gate.name}.fc2.{part}"] for part in ("weight", "bias"))
        channels = block.gate.out_channels
        parts = [w[slot.start : slot.stop].view(channels, -1) for slot in (rows, bias)]
        size = sum(part.shape[1] for part in parts)
        norms = torch.sqrt(sum(part.square().sum(1) for part in parts))
        scale = (1 - step * RHO * size**0.5 / norms).clamp_(min=0)[:, None]
        for part in parts:
            part.mul_(scale)
    return w


def server_step(
    program: Round, centre: torch.Tensor, mean: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_1 and xag_1 from md_1 = x_0 and the mean of the answers (mathematics.md §4, k = 1)."""
    gradient = program.lam * (centre - mean)
    long_step, step = 0.5 * program.beta, program.beta
    x = shrink_gates(program, centre - long_step * gradient, long_step)
    return x, shrink_gates(program, centre - step * gradient, step)
