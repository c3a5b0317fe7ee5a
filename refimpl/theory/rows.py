"""A checked statement as one row: both sides, the slack, the verdict.

Source: mathematics.md §8 (both sides are printed term by term). Derived.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

Terms = tuple[tuple[str, float], ...]  # names and numbers
HOLDS, VIOLATED, UNCHECKED = "holds", "violated", "unchecked"
WORST_FIRST = (VIOLATED, UNCHECKED, HOLDS)


class Row(NamedTuple):
    """left <= right, up to the numerical error of evaluating both, for one family of problems.

    statement: what is compared; family: the problems; left, right: its sides; slack: right - left; verdict:
    "holds", "violated" or "unchecked"; terms: those of the two sides, if they are worth showing. A row is
    unchecked if a side, or the error, is NaN or infinite: nothing was compared then.
    """

    statement: str
    family: str
    left: float
    right: float
    slack: float
    verdict: str
    terms: Terms = ()


def at_most(
    statement: str, family: str, left: float, right: float, error: float = 0.0, terms: Terms = ()
) -> Row:
    """The row for left <= right; `error` bounds the error of evaluating the two sides."""
    left, right = float(left), float(right)
    if not all(map(math.isfinite, (left, right, error))):
        verdict = UNCHECKED
    else:
        verdict = HOLDS if left <= right + error else VIOLATED
    return Row(statement, family, left, right, right - left, verdict, tuple(terms))


def equal(statement: str, family: str, measured: float, expected: float, tolerance: float) -> Row:
    """The row for measured = expected up to the relative `tolerance`; left is the relative difference."""
    difference = abs(measured - expected) / max(abs(expected), 1e-300)
    terms = (("measured", float(measured)), ("expected", float(expected)))
    return at_most(statement, family, difference, tolerance, terms=terms)


class Sides(NamedTuple):
    """One evaluation of the inequality left <= right; `error` bounds the error of both sides together."""

    left: float
    right: float
    error: float


def worst(statement: str, family: str, evaluations: Iterable[Sides]) -> Row:
    """The row of the evaluation that violates the inequality most, or comes nearest to it, given its error.

    If none violates it, a single unchecked evaluation makes the row unchecked; so does having no evaluation.
    """
    pairs = [(at_most(statement, family, *sides), sides.error) for sides in evaluations]
    nothing = at_most(statement, family, math.nan, math.nan), 0.0
    return min(pairs, key=lambda pair: _severity(*pair), default=nothing)[0]


def largest(values: Iterable[float]) -> float:
    """The largest of the values; NaN if one is NaN, which `max` may overlook, or if there is none."""
    found = [float(value) for value in values]
    return math.nan if any(map(math.isnan, found)) else max(found, default=math.nan)


class Summary(NamedTuple):
    """All rows of one statement.

    statement: which one; checked: rows that compare two numbers; held: those that hold; unchecked: the
    others; tightest: a violated row, else an unchecked one, else the one nearest to violation, relatively.
    """

    statement: str
    checked: int
    held: int
    tightest: Row
    unchecked: int


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """One summary for each statement, in the order in which they first appear."""
    by_statement: dict[str, list[Row]] = {}
    for row in rows:
        by_statement.setdefault(row.statement, []).append(row)
    return [
        Summary(
            name,
            len(found) - count(found, UNCHECKED),
            count(found, HOLDS),
            min(found, key=_severity),
            count(found, UNCHECKED),
        )
        for name, found in by_statement.items()
    ]


def count(rows: Iterable[Row], verdict: str) -> int:
    """How many of the rows have this verdict."""
    return sum(row.verdict == verdict for row in rows)


def _severity(row: Row, error: float = 0.0) -> tuple[int, float]:
    """Violated rows first, then unchecked ones, then the others by relative slack."""
    order = WORST_FIRST.index(row.verdict)
    if row.verdict == UNCHECKED:
        return order, 0.0
    return order, (row.slack + error) / max(abs(row.left), abs(row.right), 1e-300)


def all_hold(rows: Iterable[Row]) -> bool:
    """Whether no row is violated and at least one holds; unchecked rows do not matter."""
    verdicts = {row.verdict for row in rows}
    return HOLDS in verdicts and VIOLATED not in verdicts
