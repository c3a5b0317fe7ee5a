"""Penalties made of others: a sum over disjoint ranges of one vector, and a weight that rises by rounds.

Source: mathematics.md §5 (separable sum, rising weight). Derived.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np

from refimpl.contracts import Penalty, Vector
from refimpl.errors import InputError, shown
from refimpl.kernels import groups as kernels
from refimpl.optim.prox.contract import CheckedPenalty, add_up, check_pair


def _ends(where: slice) -> tuple[int, int]:
    """Start and stop of a range; raises `InputError` unless they are whole numbers."""
    if isinstance(where, slice):
        start, stop = 0 if where.start is None else where.start, where.stop
        if isinstance(start, Integral) and isinstance(stop, Integral):
            return int(start), int(stop)
    raise _no_range(where)


def _no_range(where: object) -> InputError:
    return InputError(
        f"`Separable`: expected disjoint slices(start, stop) with 0 <= start <= stop, got {shown(where)}"
    )


@dataclass(frozen=True)
class Separable(CheckedPenalty):
    """R(w) = sum over parts of R_part(w[range]); what no range covers carries no penalty.

    `parts` are pairs (slice(start, stop), penalty); for a model, one pair: the gate's slice of w.
    """

    parts: tuple[tuple[slice, Penalty], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(sorted(self.parts, key=lambda part: _ends(part[0])[0])))
        before = 0
        for where, penalty in self.parts:
            start, stop = _ends(where)
            if where.step not in (None, 1) or not before <= start <= stop:
                raise _no_range(where)
            if not isinstance(penalty, Penalty):
                raise InputError(
                    f"`Separable`: {shown(penalty)} is no penalty; "
                    "it needs value, prox, subdifferential_distance"
                )
            before = stop

    def _fits(self, who: str, x: Vector) -> None:
        if self.parts and self.parts[-1][0].stop > x.size:
            raise InputError(
                f"`{who}`: ranges reach to {self.parts[-1][0].stop}, the vector has {x.size} entries"
            )

    def _gaps(self, size: int) -> Iterator[slice]:
        """The ranges without a penalty."""
        before = 0
        for where, _ in self.parts:
            yield slice(before, where.start)
            before = where.stop
        yield slice(before, size)

    def _value(self, u: Vector) -> float:
        return add_up(penalty.value(u[where]) for where, penalty in self.parts)

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        """Each part's prox on its range; a copy elsewhere."""
        if out is not v:
            for gap in self._gaps(v.size):
                out[gap] = v[gap]
        return add_up(penalty.prox(v[where], step, out[where]) for where, penalty in self.parts)

    def _distance(self, s: Vector, u: Vector) -> float:
        """Root of the sum of squared distances of the parts; ||s|| where there is no penalty."""
        distances = [penalty.subdifferential_distance(s[where], u[where]) for where, penalty in self.parts]
        distances += [float(kernels.safe_norm(s[gap])) for gap in self._gaps(u.size)]
        return kernels.safe_norm(np.array(distances))


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
