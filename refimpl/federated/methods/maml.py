"""MAML with the exact second-order term, by Hessian-vector products.

The direction is the gradient in w of the loss after the inner steps: the outer gradient taken back
through every inner step w -> w - alpha g(w; D), whose Jacobian is I - alpha H(w; D). H belongs to the
inner step's own batch, so on the batches drawn the gradient is exact, not an estimate.

With one outer step a round the server takes Finn et al.'s step on the mean over nodes; with more it is
Per-FedAvg with the exact Hessian.
Source: mathematics.md §10; Finn et al. 2017, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.contracts import Curved, Objective
from refimpl.errors import InputError
from refimpl.federated.local import Tally
from refimpl.federated.methods.keys import inner_steps_key
from refimpl.federated.methods.meta import LookingAhead, gradient_at, look_ahead
from refimpl.registry import METHODS


@METHODS.register("maml")
@dataclass(frozen=True, kw_only=True)
class MAML(LookingAhead):
    """v = g(w~; D'); w <- w - eta (v - alpha H v), for one inner step; batches are independent."""

    inner_steps: int = inner_steps_key()

    def meta_gradient(
        self, w: np.ndarray, batches: Sequence[Objective], tally: Tally
    ) -> tuple[float, np.ndarray]:
        """The loss after the inner steps, and its gradient in w.

        A Hessian-vector product counts as two gradient evaluations. Raises `InputError` where the
        objectives have none.
        """
        *inners, outer = batches
        points = look_ahead(w, inners, self.alpha, tally)
        loss, v = gradient_at(outer, points.pop(), tally)
        return loss, carry_back(v, inners, points, self.alpha, tally)


def carry_back(
    v: np.ndarray,
    inners: Sequence[Objective],
    points: Sequence[np.ndarray],
    alpha: float,
    tally: Tally,
    moves: np.ndarray | None = None,
) -> np.ndarray:
    """The gradient v after the inner steps as a gradient in the point before them.

    points: where each of `inners` was evaluated. An inner step w - alpha M g, with M = diag(`moves`), has the
    transposed Jacobian v -> v - alpha H M v.
    """
    for inner, at in zip(reversed(inners), reversed(points), strict=True):
        if not isinstance(inner, Curved):
            raise InputError(
                f"maml: a {type(inner).__name__} has no hessian_vector(w, v); give it one, or use "
                "perfedavg-hf or fomaml, which need gradients only"
            )
        product = inner.hessian_vector(at, v if moves is None else moves * v)
        tally.add(inner, gradients=2)
        v = v - v.dtype.type(alpha) * product
    return v
