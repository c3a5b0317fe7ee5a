"""Few-shot meta-learning and tickets with PyTorch, on flat tensors w (d,).

Source: mathematics.md §13.2, §13.3, §14.1, §14.2, and the papers named there.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from refimpl.crosscheck.bridges.torch import ops
from refimpl.crosscheck.bridges.torch.network import Entry, Objective
from refimpl.crosscheck.bridges.torch.weights import Tensors
from refimpl.nn.context import Gating

Shapes = Mapping[str, tuple[int, ...]]
# By method: what the inner loop moves, and whether the answer goes back through it.
METHODS = {
    "maml": ("all", True),
    "fomaml": ("all", False),
    "reptile": ("all", False),
    "anil": ("head", True),
    "boil": ("body", True),
}


def plan(settings: Mapping[str, Any]) -> tuple[str, bool]:
    """What the inner loop of a case moves, and whether its answer goes back through it."""
    what, through = METHODS[settings["method"]]
    return what, through and settings.get("exact", True)


def ones(shapes: Shapes, what: str, masks: Tensors) -> tuple[Tensor, Tensor]:
    """Booleans (d,): where the inner loop moves w, and where w may be other than zero."""
    head = list(shapes)[-1].rpartition(".")[0]
    alive = {name: masks.get(name, torch.ones(shape, dtype=torch.bool)) for name, shape in shapes.items()}
    moves = {
        name: mask & (what == "all" or (name.rpartition(".")[0] == head) == (what == "head"))
        for name, mask in alive.items()
    }
    return flat(moves), flat(alive)


def flat(parts: Tensors) -> Tensor:
    """All parts as one vector."""
    return torch.cat([part.flatten() for part in parts.values()])


def inner_loop(
    w: Tensor, objective: Objective, steps: int, alpha: float, moves: Tensor, exact: bool
) -> Iterator[Tensor]:
    """The points after each step; `exact`: they are differentiable in w."""
    for _ in range(steps):
        w = w if exact else w.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective.loss(w), w, create_graph=exact)
        w = w - moves * (alpha * gradient)
        yield w


def normalised_together(layers: Sequence[Entry], params: Tensors, x: Tensor, first: int) -> Tensor:
    """The logits of x; its `first` samples give the statistics of batch normalisation for all."""
    run: Any = ops.template.Pass(params, vars(Gating()), {})
    usual = run.layer

    def layer(entry: Entry, x: Tensor) -> Any:
        if entry["type"] != "batch_norm2d":
            return usual(entry, x)
        variance, mean = torch.var_mean(x[:first], dim=(0, *range(2, x.dim())), correction=0)
        weight, bias = (params[f"{entry['name']}.{name}"] for name in ("weight", "bias"))
        return functional.batch_norm(x, mean, variance, weight, bias, eps=entry["eps"])

    run.layer = layer
    logits: Tensor = run.chain(layers, x)
    return logits


# --- tickets ----------------------------------------------------------------------------------------


def prunable(shapes: Shapes) -> list[str]:
    """Weights of convolutions with windows larger than 1x1."""
    return [name for name, shape in shapes.items() if len(shape) == 4 and shape[2:] != (1, 1)]


def largest(scores: Tensor, count: int) -> Tensor:
    """Booleans, true at the `count` largest scores; of equal ones at the first."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[torch.sort(scores.flatten(), descending=True, stable=True).indices[:count]] = True
    return mask.reshape(scores.shape)


def kept_of(pruned: float, whole: int) -> int:
    """How many of `whole` weights stay."""
    return whole - round(pruned * whole)


def by_magnitude(sizes: Tensors, scope: str, pruned: float) -> Tensors:
    """Masks by name of the largest |w|, of all layers together or of each."""
    if scope == "layers":
        return {name: largest(value, kept_of(pruned, value.numel())) for name, value in sizes.items()}
    together = torch.cat([value.flatten() for value in sizes.values()])
    mask = largest(together, kept_of(pruned, len(together)))
    pieces = mask.split([value.numel() for value in sizes.values()])
    return {name: piece.reshape(sizes[name].shape) for name, piece in zip(sizes, pieces, strict=True)}


def smart_counts(sizes: Sequence[int], pruned: float) -> list[int]:
    """What each layer keeps; a layer of L has the part r (r + 1) of its size, with r from L down to 1."""
    left, counts = kept_of(pruned, sum(sizes)), []
    parts = [size * rank * (rank + 1) for size, rank in zip(sizes, range(len(sizes), 0, -1), strict=True)]
    for at, size in enumerate(sizes):
        counts.append(min(size, round(left * parts[at] / sum(parts[at:]))))
        left -= counts[-1]
    return counts


def first_masks(rows: Tensor, count: int, settings: Mapping[str, Any]) -> tuple[list[float], int, Tensor]:
    """Overlaps of the last masks of the first layer, the iteration after which they are stable, and its mask.

    rows: |w| of the first layer after each iteration.
    """
    gamma, length, delta = settings["gamma"], settings["length"], settings["delta"]
    masks = [largest(rows[at], count) for at in range(gamma, len(rows), gamma)]
    overlaps = [int((a & b).sum()) / count for a, b in pairwise(masks)]
    for end in range(length, len(overlaps) + 1):
        queue = overlaps[end - length : end]
        if min(queue) >= delta if settings["rule"] == "min" else max(queue) > delta:
            break
    return queue, gamma * (end + 1), masks[end]
