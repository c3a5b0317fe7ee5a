"""Hints on a departure: usual mistakes that reproduce it, and patterns of the first departing array.

A usual mistake (a *suspect*) is computed and named only if it reproduces the given outputs, so it is a
finding. A pattern only observes how an array relates to the expected one; it says nothing about the cause.
Where no mistake reproduces an array, the closest ones are named with their distances, as places to look at.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from refimpl.contracts import nothing
from refimpl.crosscheck.compare import DEPARTS, FINE, SHAPE, Comparison, Row, Theirs, is_close, relative_error
from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.file import Expected, Golden
from refimpl.crosscheck.golden.ours import UNREADABLE
from refimpl.crosscheck.suspects import suspects
from refimpl.crosscheck.suspects.contract import Suspect
from refimpl.errors import InputError

EXAMINED = 120  # most departing cases that are examined; a suspect takes as long as a case
CLOSEST = 3  # most mistakes that are named beside an array that none explains
NO_FIT = (0, 0)  # how well a suspect fits that explains nothing


class Distance(NamedTuple):
    """How far a departing array is from what a usual mistake gives; `relative` as in `compare.Row`."""

    rule: str
    text: str
    relative: float


class Unexplained(NamedTuple):
    """A case's first departing array that no usual mistake reproduces, and the mistakes closest to it.

    relative: how far the array is from the expected one.
    """

    array: str
    relative: float
    closest: tuple[Distance, ...]


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


class Findings(NamedTuple):
    """What was found about departures: hints, and the first arrays that no mistake explains."""

    hints: list[Hint]
    unexplained: list[Unexplained]


def examine(
    golden: Golden,
    theirs: Theirs,
    comparison: Comparison,
    tell: Callable[[str], None] = nothing,
) -> Findings:
    """What is found about the first departure of each case, for the first cases in the order of execution.

    `tell` is called with each case's name before the case is examined.
    """
    cases = {case.name: case for case in golden.cases}
    found = Findings([], [])
    for row in comparison.first_by_case[:EXAMINED]:
        tell(row.case)
        hints, unexplained = _examine_case(cases[row.case], golden, theirs, comparison.of(row.case))
        found.hints.extend(hints)
        found.unexplained.extend(unexplained)
    return found


def _examine_case(case: Case, golden: Golden, theirs: Theirs, rows: list[Row]) -> Findings:
    """Hints on one case, whose arrays are given, from the suspects that fit best.

    Patterns are added only if no suspect explains everything, and the closest suspects if none explains
    anything.
    """
    expected, departing = golden.expected[case.name], [row for row in rows if row.departs]
    first = departing[0]
    known: list[Suspect] = []
    with suppress(*UNREADABLE):  # the case, which may be anyone's, may lack what a rule would alter
        known = list(suspects(case))
    given = [(suspect, outputs) for suspect in known if (outputs := _outputs(suspect, expected, rows))]
    fits = [(suspect, _fit(outputs, expected, theirs, rows)) for suspect, outputs in given]
    best = max((fit for _, fit in fits), default=NO_FIT)

    def hint(rule: str, text: str, explains: int, denied: int = 0) -> Hint:
        return Hint(case.name, first.name, rule, text, explains, len(departing), denied)

    found = [hint(s.rule, s.hint, best[0], -best[1]) for s, fit in fits if fit == best != NO_FIT]
    if best != (len(departing), 0) and first.status in (DEPARTS, SHAPE) and first.name in theirs.arrays:
        texts = patterns(theirs.arrays[first.name], expected[first.output], first)
        found += [hint("pattern", text, 1) for text in texts]
    hints = list({hint.text: hint for hint in found}.values())
    explained = best != NO_FIT or first.status != DEPARTS
    return Findings(hints, [] if explained else [_unexplained(first, given, expected, theirs)])


def _unexplained(
    row: Row,
    given: Sequence[tuple[Suspect, Arrays]],
    expected: Mapping[str, Expected],
    theirs: Theirs,
) -> Unexplained:
    """The suspects whose outputs come closest to a departing array, among those that change it."""
    right, array = expected[row.output], theirs.arrays[row.name]
    distances = [
        Distance(suspect.rule, suspect.hint, relative_error(array, right._replace(value=outputs[row.output])))
        for suspect, outputs in given
        if not is_close(outputs[row.output], right)
    ]
    closest = sorted(distances, key=lambda distance: distance.relative)[:CLOSEST]
    return Unexplained(row.name, row.relative, tuple(closest))


def _outputs(suspect: Suspect, expected: Mapping[str, Expected], rows: list[Row]) -> Arrays | None:
    """What a suspect gives; None where that cannot be computed, or has other shapes in someone's file."""
    try:
        outputs = suspect.outputs()
    except (InputError, *UNREADABLE):
        return None
    fits = all(outputs[row.output].shape == expected[row.output].value.shape for row in rows)
    return outputs if fits else None


def _fit(
    outputs: Arrays, expected: Mapping[str, Expected], theirs: Theirs, rows: list[Row]
) -> tuple[int, int]:
    """How many departing arrays a suspect explains, and minus the number of agreeing ones it would change.

    A greater pair is a better fit. It is `NO_FIT` if the suspect does not reproduce the first departing one.
    """
    changed = {row.output for row in rows if not is_close(outputs[row.output], expected[row.output])}
    follows = [
        row.output in changed
        and _follows(outputs[row.output], expected[row.output], theirs.arrays.get(row.name))
        for row in rows
        if row.departs
    ]
    denied = sum(row.status == FINE and row.output in changed for row in rows)
    return (sum(follows), -denied) if follows[0] else NO_FIT


def _follows(wrong: np.ndarray, expected: Expected, array: np.ndarray | None) -> bool:
    """Whether their array is what a suspect gives."""
    if array is None or array.shape != wrong.shape:
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
    ordered, wanted = (np.sort(x, axis=None).reshape(value.shape) for x in (wide, value))
    if value.size > 1 and is_close(ordered, expected._replace(value=wanted)):
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
