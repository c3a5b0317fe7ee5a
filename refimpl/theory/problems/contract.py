"""What a theory check needs: a problem whose losses know their constants.

Source: mathematics.md §8. Derived.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from refimpl.contracts import Penalty, Vector
from refimpl.errors import InputError
from refimpl.optim.prox import Zero


class Loss(Protocol):
    """A node's loss: an objective that knows how curved it is.

    The eigenvalues of its Hessian lie in [-concavity, smoothness], and concavity <= smoothness.
    """

    smoothness: float
    concavity: float

    def __call__(self, w: Vector, grad_out: Vector) -> float:
        """Value at w (d,); writes the whole gradient."""


@runtime_checkable
class ClosedForm(Protocol):
    """A loss whose local problem has an explicit solution."""

    def local_point(self, centre: Vector, lam: float) -> Vector:
        """argmin_w loss(w) + (lam/2) ||w - centre||^2, for lam > smoothness."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise, over v, the mean over nodes of the Moreau envelopes of `losses`, plus `penalty`."""

    name: str
    losses: tuple[Loss, ...]
    size: int
    penalty: Penalty = field(default_factory=Zero)
    attains: int = 0  # +1, -1: the lemmas are equalities here, at curvature +L or -L on every axis

    @property
    def smoothness(self) -> float:
        """L: the largest of the nodes'."""
        return max(loss.smoothness for loss in self.losses)

    @property
    def concavity(self) -> float:
        """The largest downward curvature of a node; 0 if all losses are convex."""
        return max(loss.concavity for loss in self.losses)


def check_family(who: str, nodes: int, spread: float) -> None:
    """Raise `InputError` unless there is a node and `spread` is a size."""
    if nodes < 1 or not (np.isfinite(spread) and spread >= 0):
        raise InputError(f"`{who}`: expected nodes >= 1 and spread >= 0, got nodes={nodes}, spread={spread}")
