"""The outcome of a comparison as data and as text for a terminal; `report.py` writes it as a report."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from refimpl.crosscheck.compare import FINE, MISSING, Comparison, Row
from refimpl.crosscheck.golden.file import Golden
from refimpl.crosscheck.golden.names import shown, some, with_nearest
from refimpl.crosscheck.hints import EXAMINED, Hint, Unexplained
from refimpl.files.tables import counted, table

HEADER = ("array", "max abs", "relative", "allowed", "ulp", "verdict")
SUMMARY = ("level", "cases", "arrays", "worst relative", "departing", "missing")
ROW = ("name", "status", "max_abs", "relative", "allowed", "floor", "ulp", "where", "note")
SHOWN = 40  # rows of a table on a terminal


class Outcome(NamedTuple):
    """What was compared, and with what result.

    partial: arrays may be missing; about: facts about the files and the check, by name; unexplained: the
    departures that no usual mistake reproduces.
    """

    golden: Golden
    comparison: Comparison
    hints: Sequence[Hint]
    partial: bool
    about: Mapping[str, str] = MappingProxyType({})
    unexplained: Sequence[Unexplained] = ()

    @property
    def conforms(self) -> bool:
        """Whether nothing departs, something was compared, and nothing is missing unless that is allowed."""
        compared = any(row.status == FINE for row in self.comparison.rows)
        return compared and not self.comparison.departures and (self.partial or not self.comparison.missing)

    def is_bad(self, row: Row) -> bool:
        """Whether an array prevents the outcome from conforming."""
        return row.status != FINE and not (self.partial and row.status == MISSING)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything as data, with every row in the order of execution."""
    comparison = outcome.comparison
    first = comparison.departures[:1]
    return {
        "conforms": outcome.conforms,
        "about": dict(outcome.about),
        "expected_by": outcome.golden.made_by,
        "first_departure": first[0].name if first else None,
        "hints": [hint._asdict() for hint in outcome.hints],
        "unexplained": [
            {**one._asdict(), "closest": [near._asdict() for near in one.closest]}
            for one in outcome.unexplained
        ],
        "missing": [row.name for row in comparison.missing],
        "extra": list(comparison.extra),
        "arrays": [{key: getattr(row, key) for key in ROW} for row in comparison.rows],
    }


def as_text(outcome: Outcome, every: bool) -> str:
    """Text for a terminal: a line for each level, the departing arrays (or all), and the verdict."""
    comparison = outcome.comparison
    rows = comparison.rows if every else comparison.departures[:SHOWN]
    parts = [table(SUMMARY, summary(comparison))]
    if rows:
        parts.append(table(HEADER, [cells(row) for row in rows]))
    hidden = 0 if every else len(comparison.departures) - len(rows)
    if hidden > 0:
        parts.append(f"and {hidden} more that depart; --all shows every array")
    parts.append("\n".join(statements(outcome)))
    return "\n\n".join(parts)


def summary(comparison: Comparison) -> list[tuple[str, ...]]:
    """One line for each level."""
    levels: dict[str, list[Row]] = {}
    for row in comparison.rows:
        levels.setdefault(row.case.split("/")[0], []).append(row)
    lines = []
    for level, rows in levels.items():
        errors = [row.relative for row in rows if row.relative == row.relative]
        worst = f"{max(errors):.1e}" if errors else "-"
        departing, missing = sum(row.departs for row in rows), sum(row.status == MISSING for row in rows)
        counts = len({row.case for row in rows}), len(rows)
        lines.append((level, *map(str, counts), worst, str(departing), str(missing)))
    return lines


def cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    measured = row.max_abs == row.max_abs
    verdict = row.status if row.status == FINE or not row.where else f"{row.status} at {row.where}"
    return (
        row.name,
        f"{row.max_abs:.1e}" if measured else "-",
        f"{row.relative:.1e}" if measured else "-",
        f"{row.allowed:.0e}" if row.allowed else "equal",
        "-" if row.ulp is None else str(row.ulp),
        f"{verdict} ({row.note})" if row.note else verdict,
    )


def statements(outcome: Outcome) -> list[str]:
    """The verdict in sentences."""
    comparison, lines = outcome.comparison, []
    if comparison.missing:
        lines.append(f"missing: {some([row.name for row in comparison.missing])}")
    if comparison.extra:
        known = [row.name for row in comparison.missing]
        lines.append(f"not expected, left out: {some([with_nearest(n, known) for n in comparison.extra])}")
    if comparison.departures:
        first = comparison.departures[0]
        lines.append(f"first departure: {first.name} ({cells(first)[-1]})")
    hints = (*_hint_lines(outcome), *_closest_lines(outcome))
    return [*lines, *_narrower(comparison), *hints, _verdict(outcome)]


def _closest_lines(outcome: Outcome) -> Iterator[str]:
    """The mistakes closest to the first array that none explains, and how many cases there are like it."""
    for one in outcome.unexplained[:1]:
        more = len(outcome.unexplained) - 1
        like = f"; so are the first departures of {counted(more, 'more case')}" if more else ""
        yield f"unexplained: {one.array}, {one.relative:.1e} from the expected array{like}"
        for near in one.closest:
            yield f"closest known mistake, {near.relative:.1e} from {one.array}: {near.rule}: {near.text}"


def _narrower(comparison: Comparison) -> Iterator[str]:
    """Departing arrays whose dtype has too few digits to agree."""
    pairs = [row.narrower for row in comparison.departures if row.narrower]
    for given, expected in dict.fromkeys(pairs):
        other = f", or check against a file of `refimpl golden make --dtype {given}`"
        yield (
            f"{counted(pairs.count((given, expected)), 'departing array')} given as {given}, the file is "
            f"{expected}: compute in {expected}{other if given == 'float32' else ''}"
        )


def _hint_lines(outcome: Outcome) -> Iterator[str]:
    """The hints, where those that say the same of several cases are one, and how many were left out."""
    groups: dict[tuple[str, str], list[Hint]] = {}
    for hint in outcome.hints:
        groups.setdefault((hint.rule, hint.text), []).append(hint)
    for (rule, text), same in groups.items():
        if rule == "pattern":
            more = f"; so in {counted(len(same) - 1, 'more case')}" if len(same) > 1 else ""
            yield f"pattern: {same[0].array} {text}{more}"
        else:
            cases = same[0].case if len(same) == 1 else f"{len(same)} cases, first {same[0].case}"
            explained, departing, denied = (
                sum(getattr(hint, key) for hint in same) for key in ("explains", "departing", "denied")
            )
            proof = f"which reproduces {explained} of {departing} departing arrays"
            proof += f", but would change {denied} that agree" if denied else ""
            yield f"hint for {cases}: {rule}: {text}; {proof}"
    left = len(outcome.comparison.first_by_case) - EXAMINED
    if left > 0:
        yield f"{counted(left, 'more departing case')} not examined for hints"


def _verdict(outcome: Outcome) -> str:
    comparison = outcome.comparison
    total, missing = len(comparison.rows), len(comparison.missing)
    given = total - missing
    good = given - len(comparison.departures)
    verdict = "conforms" if outcome.conforms else "DOES NOT CONFORM"
    if missing and outcome.conforms:
        verdict += f" in the {given} of {total} arrays given (--partial)"
    if missing and not outcome.partial:
        verdict += f"; {counted(missing, 'array')} missing, which --partial allows"
    return f"{good} of {given} arrays agree with {shown(outcome.golden.made_by)}: {verdict}"
