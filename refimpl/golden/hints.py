"""What lies behind a departure: relations of an array to the expected one, and suspects that reproduce it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.golden.case import Case
from refimpl.golden.compare import DEPARTS, SHAPE, Comparison, Expected, Golden, Row, Theirs, is_close
from refimpl.golden.ours import UNREADABLE
from refimpl.golden.suspects import suspects
from refimpl.golden.suspects.contract import Suspect


class Hint(NamedTuple):
    """A finding about a case.

    rule: the suspect's name, or `pattern`; explains: how many of the case's `departing` arrays follow it.
    """

    case: str
    rule: str
    text: str
    explains: int
    departing: int


def find_hints(golden: Golden, theirs: Theirs, comparison: Comparison, most: int = 8) -> list[Hint]:
    """Hints on the first departure of each case, for at most so many cases, in the order of execution."""
    cases = {case.name: case for case in golden.cases}
    hints: list[Hint] = []
    for row in comparison.first_by_case[:most]:
        departing = [other for other in comparison.departures if other.case == row.case]
        hints += case_hints(cases[row.case], golden, theirs, departing)
    return hints


def case_hints(case: Case, golden: Golden, theirs: Theirs, departing: list[Row]) -> list[Hint]:
    """Hints on one case, whose departing arrays are given; the rule that explains most comes first."""
    expected = golden.expected[case.name]
    found = [
        Hint(case.name, "pattern", text, 1, len(departing))
        for row in departing[:1]
        if row.status in (DEPARTS, SHAPE) and row.name in theirs.arrays
        for text in patterns(theirs.arrays[row.name], expected[row.output], row.status == SHAPE)
    ]
    followed = [
        (count, suspect)
        for suspect in _suspects(case)
        if (count := _explained(suspect, expected, theirs, departing))
    ]
    followed.sort(key=lambda pair: -pair[0])
    most = followed[0][0] if followed else 0
    rules = [Hint(case.name, s.rule, s.hint, count, len(departing)) for count, s in followed if count == most]
    return list({hint.text: hint for hint in rules + found}.values())


def _suspects(case: Case) -> list[Suspect]:
    """None where a case, which may come from anyone's file, lacks what a rule would alter."""
    try:
        return list(suspects(case))
    except UNREADABLE:
        return []


def _explained(
    suspect: Suspect, expected: Mapping[str, Expected], theirs: Theirs, departing: list[Row]
) -> int:
    """How many departing arrays are as the suspect has them; 0 if the first is not."""
    try:
        outputs = suspect.outputs()
    except (InputError, *UNREADABLE):  # an altered case may be none at all
        return 0
    follows = [_follows(outputs[row.output], expected[row.output], theirs, row.name) for row in departing]
    return sum(follows) if follows and follows[0] else 0


def _follows(wrong: np.ndarray, expected: Expected, theirs: Theirs, name: str) -> bool:
    """Whether their array is what a suspect gives, although that is not what is expected."""
    array = theirs.arrays.get(name)
    if array is None or array.shape != wrong.shape or is_close(wrong, expected):
        return False
    return is_close(array, expected._replace(value=wrong))


def patterns(array: np.ndarray, expected: Expected, wrong_shape: bool) -> Iterator[str]:
    """How an array relates to the expected one, where it does so within the tolerance."""
    yield from _axes(array, expected, wrong_shape)
    if wrong_shape:
        return
    value = expected.value
    if value.dtype == np.bool_:
        if np.array_equal(array, ~value):
            yield "every channel is on that should be off, and the other way round: two-logit order?"
        return
    with np.errstate(over="ignore", invalid="ignore"):  # what float64 cannot hold follows no pattern
        wide = array.astype(np.float64)
        factor = _factor(wide, expected)
    if factor:
        yield f"it is {factor:.6g} times the expected array"
    if value.size > 1 and is_close(np.sort(wide, axis=None).reshape(value.shape), _sorted(expected)):
        yield "it holds the expected numbers in another order"


def _factor(wide: np.ndarray, expected: Expected) -> float:
    """By what the expected array is multiplied, 0 if it is not.

    One number is a multiple of any other: of a lone one only whole factors, and one over these, count.
    """
    value = expected.value.astype(np.float64)
    size = float(np.vdot(value, value))
    factor = float(np.vdot(value, wide)) / size if size else 0.0
    if not factor or not np.isfinite(factor) or not is_close(wide / factor, expected):
        return 0.0
    whole = any(abs(f - round(f)) <= expected.relative * abs(f) for f in (factor, 1 / factor))
    return factor if value.size > 1 or whole else 0.0


def _axes(array: np.ndarray, expected: Expected, wrong_shape: bool) -> Iterator[str]:
    """Whether the expected array is there with its axes exchanged, or in another shape."""
    shape = expected.value.shape
    if array.ndim >= 2 and array.T.shape == shape and is_close(array.T, expected):
        yield "it is the expected array transposed"
    moved = np.moveaxis(array, -1, 1) if array.ndim == 4 else array
    if moved is not array and moved.shape == shape and is_close(moved, expected):
        yield "its channels come last; the layout is (N, C, H, W)"
    if wrong_shape and is_close(array.reshape(shape), expected):
        yield "it holds the expected numbers in another shape"


def _sorted(expected: Expected) -> Expected:
    return expected._replace(value=np.sort(expected.value, axis=None).reshape(expected.value.shape))
