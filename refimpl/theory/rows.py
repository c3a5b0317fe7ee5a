"""A checked statement as one row: both sides, the slack, the verdict.

Source: mathematics.md §8 (both sides are printed term by term). Derived.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

Terms = tuple[tuple[str, float], ...]  # names and numbers
HOLDS, VIOLATED, UNCHECKED = "holds", "violated", "unchecked"
GRAVEST_FIRST = (VIOLATED, UNCHECKED, HOLDS)


class Row(NamedTuple):
    """left <= right, up to the numerical error of evaluating both, for one family of problems.

    A row is unchecked if a side, or the error, is NaN or infinite: nothing was compared then.
    """

    statement: str
    family: str
    left: float
    right: float
    slack: float  # right - left
    verdict: str  # "holds", "violated" or "unchecked"
    terms: Terms = ()  # what the sides are made of, where that is worth seeing


def at_most(
    statement: str, family: str, left: float, right: float, error: float = 0.0, terms: Terms = ()
) -> Row:
    """The row for left <= right; `error` bounds what evaluating the two sides may be off."""
    left, right = float(left), float(right)
    if not all(map(math.isfinite, (left, right, error))):
        verdict = UNCHECKED
    else:
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
    """The row of the evaluation nearest to, or farthest beyond, violation, beyond its own error.

    Without a violation, one unchecked evaluation leaves the row unchecked, and so does having none.
    """
    pairs = [(at_most(statement, family, *sides), sides.error) for sides in evaluations]
    nothing = at_most(statement, family, math.nan, math.nan), 0.0
    return min(pairs, key=lambda pair: _gravity(*pair), default=nothing)[0]


def largest(values: Iterable[float]) -> float:
    """The largest of the values; NaN if one is NaN, which `max` may pass over, or if there is none."""
    found = [float(value) for value in values]
    return math.nan if any(map(math.isnan, found)) else max(found, default=math.nan)


class Summary(NamedTuple):
    """All rows of one statement."""

    statement: str
    checked: int  # rows that compare two numbers
    held: int
    tightest: Row  # a violated one, else an unchecked one, else the one nearest to violation, relatively
    unchecked: int


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """One summary a statement, in order of first appearance."""
    by_statement: dict[str, list[Row]] = {}
    for row in rows:
        by_statement.setdefault(row.statement, []).append(row)
    return [
        Summary(
            name,
            len(found) - count(found, UNCHECKED),
            count(found, HOLDS),
            min(found, key=_gravity),
            count(found, UNCHECKED),
        )
        for name, found in by_statement.items()
    ]


def count(rows: Iterable[Row], verdict: str) -> int:
    """How many of the rows have this verdict."""
    return sum(row.verdict == verdict for row in rows)


def _gravity(row: Row, error: float = 0.0) -> tuple[int, float]:
    """Violated rows first, then unchecked ones, then the others by relative slack."""
    order = GRAVEST_FIRST.index(row.verdict)
    if row.verdict == UNCHECKED:
        return order, 0.0
    return order, (row.slack + error) / max(abs(row.left), abs(row.right), 1e-300)


def all_hold(rows: Iterable[Row]) -> bool:
    """Whether no row is violated and at least one holds; unchecked rows are shown, they do not count."""
    verdicts = {row.verdict for row in rows}
    return HOLDS in verdicts and VIOLATED not in verdicts
