"""A checked statement as one row: both sides, the slack, the verdict.

Source: mathematics.md §8 (both sides are printed term by term). Derived.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Terms = tuple[tuple[str, float], ...]  # names and numbers
HOLDS, VIOLATED = "holds", "violated"


class Row(NamedTuple):
    """left <= right, up to the numerical error of evaluating both, for one family of problems."""

    statement: str
    family: str
    left: float
    right: float
    slack: float  # right - left
    verdict: str  # "holds" or "violated"
    terms: Terms = ()  # what the sides are made of, where that is worth seeing


def at_most(
    statement: str, family: str, left: float, right: float, error: float = 0.0, terms: Terms = ()
) -> Row:
    """The row for left <= right; `error` bounds what evaluating the two sides may be off. NaN violates."""
    left, right = float(left), float(right)
    verdict = HOLDS if left <= right + error else VIOLATED
    return Row(statement, family, left, right, right - left, verdict, tuple(terms))


def equal(statement: str, family: str, measured: float, expected: float, tolerance: float) -> Row:
    """The row for measured = expected within `tolerance` relative: left is the relative difference."""
    difference = abs(measured - expected) / max(abs(expected), 1e-300)
    terms = (("measured", float(measured)), ("expected", float(expected)))
    return at_most(statement, family, difference, tolerance, terms=terms)


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


class Summary(NamedTuple):
    """All rows of one statement."""

    statement: str
    checked: int
    held: int
    tightest: Row  # the one nearest to violation, relative to the size of its sides


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """One summary a statement, in order of first appearance."""
    by_statement: dict[str, list[Row]] = {}
    for row in rows:
        by_statement.setdefault(row.statement, []).append(row)
    return [
        Summary(name, len(found), sum(row.verdict == HOLDS for row in found), min(found, key=_nearness))
        for name, found in by_statement.items()
    ]


def _nearness(row: Row) -> tuple[bool, float]:
    """Violated rows first, then by relative slack."""
    relative = row.slack / max(abs(row.left), abs(row.right), 1e-300)
    return row.verdict == HOLDS, relative if relative == relative else -float("inf")


def all_hold(rows: Iterable[Row]) -> bool:
    """Whether every verdict is "holds"; False for no rows at all, as then nothing was checked."""
    verdicts = [row.verdict for row in rows]
    return bool(verdicts) and all(verdict == HOLDS for verdict in verdicts)
