"""Hints on a departure: usual mistakes that reproduce it, and patterns of the first departing array.

A usual mistake (a *suspect*) is computed and named only if it reproduces the given outputs, so it is a
finding. A pattern only observes how an array relates to the expected one; it says nothing about the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from refimpl.crosscheck.compare import (
    DEPARTS,
    FINE,
    MISSING,
    SHAPE,
    Comparison,
    Expected,
    Golden,
    Row,
    Theirs,
    is_close,
)
from refimpl.crosscheck.golden.case import Case
from refimpl.crosscheck.golden.ours import UNREADABLE
from refimpl.crosscheck.suspects import suspects
from refimpl.crosscheck.suspects.contract import Suspect
from refimpl.errors import InputError

EXAMINED = 120  # most departing cases that are examined; a suspect takes as long as a case


class Hint(NamedTuple):
    """A finding about a case.

    rule: the suspect's name, or `pattern`, which is of `array`, the first that departs; explains: how many
    of the case's `departing` arrays follow it; denied: how many arrays it would change that agree.
    """

    case: str
    array: str
    rule: str
    text: str
    explains: int
    departing: int
    denied: int = 0


def _nobody(case: str) -> None:
    """Tell nobody."""


def find_hints(
    golden: Golden,
    theirs: Theirs,
    comparison: Comparison,
    most: int = EXAMINED,
    tell: Callable[[str], None] = _nobody,
) -> list[Hint]:
    """Hints on the first departure of each case, for the first cases in the order of execution.

    `tell` is called with each case's name before the case is examined.
    """
    cases = {case.name: case for case in golden.cases}
    hints: list[Hint] = []
    for row in comparison.first_by_case[:most]:
        tell(row.case)
        own = [other for other in comparison.rows if other.case == row.case]
        hints += case_hints(cases[row.case], golden, theirs, own)
    return hints


def case_hints(case: Case, golden: Golden, theirs: Theirs, rows: list[Row]) -> list[Hint]:
    """Hints on one case, whose arrays are given, from the suspects that fit best.

    Patterns are added only if no suspect explains everything.
    """
    expected = golden.expected[case.name]
    departing = [row for row in rows if row.status not in (FINE, MISSING)]
    first = departing[0]
    fits = [(suspect, fit) for suspect in _suspects(case) if (fit := _fit(suspect, expected, theirs, rows))]
    best = max((fit.rank for _, fit in fits), default=(0, 0))
    found = [
        Hint(case.name, first.name, suspect.rule, suspect.hint, fit.explains, len(departing), fit.denied)
        for suspect, fit in fits
        if fit.rank == best
    ]
    if best != (len(departing), 0) and first.status in (DEPARTS, SHAPE) and first.name in theirs.arrays:
        texts = patterns(theirs.arrays[first.name], expected[first.output], first)
        found += [Hint(case.name, first.name, "pattern", text, 1, len(departing)) for text in texts]
    return list({hint.text: hint for hint in found}.values())


def _suspects(case: Case) -> list[Suspect]:
    """The case's suspects; none if the case, which may be anyone's, lacks what a rule would alter."""
    try:
        return list(suspects(case))
    except UNREADABLE:
        return []


class _Fit(NamedTuple):
    """How many departing arrays a suspect explains, and how many agreeing arrays it would change."""

    explains: int
    denied: int

    @property
    def rank(self) -> tuple[int, int]:
        """The order of fits; a greater one is better."""
        return self.explains, -self.denied


def _fit(suspect: Suspect, expected: Mapping[str, Expected], theirs: Theirs, rows: list[Row]) -> _Fit | None:
    """How well a suspect fits; None if it does not reproduce the first departing array."""
    try:
        outputs = suspect.outputs()
    except (InputError, *UNREADABLE):  # an altered case may be impossible to compute
        return None
    if any(outputs[row.output].shape != expected[row.output].value.shape for row in rows):
        return None  # outputs in someone else's file may have other shapes
    departing = [row for row in rows if row.status not in (FINE, MISSING)]
    follows = [_follows(outputs[row.output], expected[row.output], theirs, row.name) for row in departing]
    changed = [row for row in rows if not is_close(outputs[row.output], expected[row.output])]
    denied = sum(row.status == FINE for row in changed)
    return _Fit(sum(follows), denied) if follows[0] else None


def _follows(wrong: np.ndarray, expected: Expected, theirs: Theirs, name: str) -> bool:
    """Whether their array is what a suspect gives, and this is not what is expected."""
    array = theirs.arrays.get(name)
    if array is None or array.shape != wrong.shape or is_close(wrong, expected):
        return False
    return is_close(array, expected._replace(value=wrong))


def patterns(array: np.ndarray, expected: Expected, row: Row) -> Iterator[str]:
    """Simple relations between an array and the expected one that hold within the tolerance."""
    yield from _axes(array, expected, row.status == SHAPE)
    if row.status == SHAPE:
        return
    value = expected.value
    if value.dtype == np.bool_:
        if np.array_equal(array, ~value):
            yield "is the expected mask inverted"
        return
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that float64 cannot hold follow no pattern
        wide = array.astype(np.float64)
        factor = _factor(wide, expected)
    if factor:
        yield f"is {factor:.6g} times the expected array"
    # Gradients of activations are left out: pools move their entries, and most are zero.
    if row.output.startswith("backward.") or row.output == "grad.x":
        return
    if value.size > 1 and is_close(np.sort(wide, axis=None).reshape(value.shape), _sorted(expected)):
        yield "holds the expected numbers in another order"


def _factor(wide: np.ndarray, expected: Expected) -> float:
    """The factor by which the array is a multiple of the expected one, or 0 if it is no multiple.

    A single number is a multiple of any other, so for one only whole factors and their inverses count.
    """
    value = expected.value.astype(np.float64)
    size = float(np.vdot(value, value))
    factor = float(np.vdot(value, wide)) / size if size else 0.0
    if not factor or not np.isfinite(factor) or not is_close(wide / factor, expected):
        return 0.0
    whole = any(abs(f - round(f)) <= expected.relative * abs(f) for f in (factor, 1 / factor))
    return factor if value.size > 1 or whole else 0.0


def _axes(array: np.ndarray, expected: Expected, wrong_shape: bool) -> Iterator[str]:
    """Whether the array is the expected one with its axes exchanged, or in another shape."""
    shape = expected.value.shape
    if array.ndim >= 2 and array.T.shape == shape and is_close(array.T, expected):
        yield "is the expected array transposed"
    moved = np.moveaxis(array, -1, 1) if array.ndim == 4 else array
    if moved is not array and moved.shape == shape and is_close(moved, expected):
        yield "is the expected array with the channels last; the layout is (N, C, H, W)"
    if wrong_shape and is_close(array.reshape(shape), expected):
        yield "holds the expected numbers in another shape"


def _sorted(expected: Expected) -> Expected:
    return expected._replace(value=np.sort(expected.value, axis=None).reshape(expected.value.shape))
