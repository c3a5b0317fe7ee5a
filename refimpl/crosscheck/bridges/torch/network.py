"""Any network of this package as a `torch.nn.Module`, gates included, its loss and its local problem.

The module is built from a network's plain description (`golden/describe.py`), as a stranger would build
it. It has PyTorch's names: its `state_dict` and the package's dict of arrays exchange by name.

Source: mathematics.md §2.1-§2.4, §3.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from refimpl.crosscheck.bridges.torch import ops
from refimpl.crosscheck.bridges.torch.weights import Tensors, to_state_dict, views
from refimpl.crosscheck.golden.describe import describe, gated_blocks
from refimpl.nn.context import Gating
from refimpl.nn.network import Network

Entry = Mapping[str, Any]
Shape = tuple[int, ...]
Noise = Mapping[str, Tensor]


class GatedNetwork(nn.Module):
    """The layers of a description: x (N, ...) -> their output, for a network the logits (N, classes).

    layers: as `golden/describe.py` has them; params: the parameters by name, in the order of the flat vector
    w; train: the parts that want a gradient, the others' parameters have `requires_grad` off. Where phi, the
    gates, is fixed, masks that are not soft are constants. What is computed is the template's.
    """

    def __init__(
        self,
        layers: Sequence[Entry],
        params: Mapping[str, Tensor],
        gating: Gating,
        train: Sequence[str] = ("theta", "phi"),
    ) -> None:
        super().__init__()
        self.layers, self.gating, self.gates_learn = layers, gating, "phi" in train
        self.shapes: dict[str, Shape] = {name: tuple(value.shape) for name, value in params.items()}
        gates, trained = tuple(f"{block['gate']['name']}." for block in gated_blocks(layers)), []
        for name, value in params.items():
            part = "phi" if name.startswith(gates) else "theta"
            wanted = part in train and not name.endswith(ops.STATISTICS)
            trained.append(torch.full((value.numel(),), wanted))
            _put(self, name, nn.Parameter(value.clone(), wanted))
        self.trained = torch.cat(trained)  # which entries of w need a gradient

    def forward(self, x: Tensor, noise: Noise | None = None, seen: dict[str, Tensor] | None = None) -> Tensor:
        """The output; noise: g_on - g_off by gate name, for mode `gumbel`.

        `seen` gets every layer's output, and every gate's summary, hidden units, logits and mask, by name.
        """
        # The parameters, or the tensors that `functional_call` has put in their place.
        params = dict(self.named_parameters())
        run = ops.template.Pass(params, vars(self.gating), noise or {}, self.gates_learn)
        y: Tensor = run.chain(self.layers, x)
        if seen is not None:
            seen.update(run.notes)
        return y

    def shaping(self, seen: Mapping[str, Tensor]) -> Tensor:
        """What batch-shaping adds to the loss, from what the forward pass has `seen`."""
        if not (self.gates_learn and self.gating.shaping.weight > 0):
            return torch.zeros(())
        gates = [ops.template.margin(seen[f"{b['gate']['name']}.logits"]) for b in gated_blocks(self.layers)]
        terms = [ops.shaping(d, self.gating.tau, *self.gating.shaping) for d in gates]
        return torch.stack(terms).sum() if terms else torch.zeros(())


def _put(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under its dotted name, making modules on the way."""
    *path, last = name.split(".")
    for step in path:
        if step not in dict(root.named_children()):
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    root.register_parameter(last, parameter)


def build(
    network: Network,
    w: np.ndarray,
    gating: Gating | None = None,
    train: Sequence[str] = ("theta", "phi"),
) -> GatedNetwork:
    """The module of a network with the parameters w (d,), in the dtype of w."""
    return GatedNetwork(describe(network.layers), to_state_dict(network.layout, w), gating or Gating(), train)


class Batch(NamedTuple):
    """Samples x, labels y (int64), and the gates' noise by name (mode `gumbel`)."""

    x: Tensor
    y: Tensor
    noise: Noise | None = None


class Objective(NamedTuple):
    """The mean loss of a model on a batch, as a function of the flat vector w (d,)."""

    model: GatedNetwork
    batch: Batch

    def loss(self, w: Tensor) -> Tensor:
        """Value at w, differentiable in w."""
        seen: Tensors = {}
        given = (self.batch.x, self.batch.noise, seen)
        y = functional_call(self.model, views(self.model.shapes, w), given)
        loss: Tensor = ops.template.cross_entropy(y, self.batch.y)
        return loss + self.model.shaping(seen)

    def both(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient at w, which is zero in the parts that are not trained."""
        point = w.detach().clone().requires_grad_()
        value = self.loss(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.detach(), gradient * self.model.trained

    def gradient(self, w: Tensor) -> Tensor:
        """The gradient alone."""
        return self.both(w)[1]


def local_solution(centre: Tensor, objectives: Sequence[Objective], eta: float, lam: float = 0.0) -> Tensor:
    """Where gradient descent from the centre ends, after a step on each L + (lam/2)||w - centre||^2.

    The proximal term is differentiated, not written out; with lam = 0 this is plain descent.
    """
    w = centre
    for objective in objectives:
        point = w.detach().clone().requires_grad_()
        (pull,) = torch.autograd.grad(lam / 2 * (point - centre).square().sum(), point)
        w = w - eta * (objective.gradient(w) + pull)
    return w
