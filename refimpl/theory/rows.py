"""A checked statement as one row: both sides, the slack, the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

HOLDS, VIOLATED = "holds", "violated"


class Row(NamedTuple):
    """left <= right, up to the numerical error of evaluating both, for one family of problems."""

    statement: str
    family: str
    left: float
    right: float
    slack: float  # right - left
    verdict: str  # "holds" or "violated"


def at_most(statement: str, family: str, left: float, right: float, error: float = 0.0) -> Row:
    """The row for left <= right; `error` bounds what evaluating the two sides may be off. NaN violates."""
    left, right = float(left), float(right)
    return Row(statement, family, left, right, right - left, HOLDS if left <= right + error else VIOLATED)


def equal(statement: str, family: str, measured: float, expected: float, tolerance: float) -> Row:
    """The row for measured = expected within `tolerance` relative: left is the relative difference."""
    difference = abs(measured - expected) / max(abs(expected), 1e-300)
    return at_most(statement, family, difference, tolerance)


class Sides(NamedTuple):
    """One evaluation of an inequality: left <= right, each known up to `error` in all."""

    left: float
    right: float
    error: float


def worst(statement: str, family: str, evaluations: Iterable[Sides]) -> Row:
    """The row of the evaluation nearest to, or farthest beyond, violation, beyond its own error."""
    found = list(evaluations)

    def margin(sides: Sides) -> float:
        scale = max(abs(sides.left), abs(sides.right), 1e-300)
        value = (sides.right + sides.error - sides.left) / scale
        return value if value == value else -float("inf")

    return at_most(statement, family, *min(found, key=margin))


def all_hold(rows: Iterable[Row]) -> bool:
    """Whether every verdict is "holds"; False for no rows at all, as then nothing was checked."""
    verdicts = [row.verdict for row in rows]
    return bool(verdicts) and all(verdict == HOLDS for verdict in verdicts)
