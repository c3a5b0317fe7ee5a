"""PyTorch as a second implementation of the objective: the same total and the same gradients, live."""

from __future__ import annotations

import numpy as np
import pytest
from team_cases import point, team

from refimpl.cooperative.objective import TeamObjective

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

F = torch.nn.functional
T, A, B, C = 2.5, 0.7, 1.3, 0.4


def logits(p, member, depth, x):
    """resnet20 with `depth` blocks a stage, written out; norms of lesser depths have names of their own."""
    norm_name = "norm" if depth == 3 else f"norm.depth{depth}"

    def conv(name, h, stride=1):
        weight = p[f"{member}.{name}.weight"]
        h = F.conv2d(h, weight, None, stride, weight.shape[-1] // 2)
        scale, shift = (p[f"{member}.{name}.{norm_name}.{kind}"] for kind in ("weight", "bias"))
        return F.batch_norm(h, None, None, scale, shift, training=True, eps=1e-5)

    h = conv("conv1", x).relu()
    for stage in (1, 2, 3):
        for block in range(1, depth + 1):
            name, changes = f"stage{stage}.block{block}", block == 1 < stage
            stride = 2 if changes else 1
            beside = conv(f"{name}.shortcut", h, stride) if changes else h
            h = (conv(f"{name}.conv2", conv(f"{name}.conv1", h, stride).relu()) + beside).relu()
    return F.linear(h.mean((2, 3)), p[f"{member}.fc.weight"], p[f"{member}.fc.bias"])


def kl(teacher, student):
    goal = F.log_softmax(teacher.detach() / T, dim=1)
    return T * T * F.kl_div(F.log_softmax(student / T, dim=1), goal, log_target=True, reduction="batchmean")


def test_total_and_gradients_agree():
    built, students = team()
    w, x, y = point(built)
    gradient = np.empty_like(w)
    total = TeamObjective(built, students, x, y, T)(w, gradient)

    p = {name: torch.tensor(array, requires_grad=True) for name, array in built.layout.to_arrays(w).items()}
    x, y = torch.tensor(x), torch.tensor(y)
    leader, *mates = (logits(p, member, 3, x) for member in ("leader", "a", "b"))
    loss = F.cross_entropy(leader, y)
    for member, own, other in (("a", *mates), ("b", *mates[::-1])):
        loss = loss + F.cross_entropy(own, y) + A * kl(leader, own) + B * kl(other, own)
        for depth in (1, 2):
            found = logits(p, member, depth, x)
            loss = loss + F.cross_entropy(found, y) + C * kl(own, found)
    loss.backward()

    assert total == pytest.approx(loss.item(), rel=1e-10)
    scale = np.abs(gradient).max()
    for name, ours in built.layout.views(gradient).items():
        theirs = p[name].grad
        assert theirs is None or np.abs(ours - theirs.numpy()).max() < 1e-10 * scale, name
        assert theirs is not None or not ours.any(), name  # statistics
