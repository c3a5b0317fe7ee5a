"""A penalty whose weight rises over the first rounds. Source: mathematics.md §5 (rising weight). Derived."""

from __future__ import annotations

from dataclasses import dataclass, replace

from refimpl.contracts import Penalty, Vector
from refimpl.optim.prox.contract import check_pair


@dataclass(frozen=True)
class Rising:
    """factor R(u), where the factor is min(1, k / rounds) in round k (`at`) and 1 in the end.

    Its prox with step c is that of R with step c factor.
    """

    penalty: Penalty
    rounds: float
    factor: float = 1.0

    def at(self, round_: int) -> Rising:
        """The penalty of a round, counted from 1."""
        return replace(self, factor=min(1.0, round_ / self.rounds))

    def value(self, u: Vector) -> float:
        """Factor R(u)."""
        return self.factor * self.penalty.value(u)

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """See `contracts.Penalty`."""
        return self.factor * self.penalty.prox(v, step * self.factor, out)

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """dist(s, factor dR(u)) = factor dist(s / factor, dR(u))."""
        check_pair("Rising.subdifferential_distance", s, u)
        return self.factor * self.penalty.subdifferential_distance(s / s.dtype.type(self.factor), u)
