"""The outcome of a comparison as data, as text for a terminal, and as a report in Markdown or HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from refimpl.golden.compare import FINE, MISSING, Comparison, Row
from refimpl.golden.file import Golden
from refimpl.golden.hints import Hint
from refimpl.golden.names import shown
from refimpl.tables import markdown, table

HEADER = ("array", "max abs", "relative", "allowed", "ulp", "verdict")
SUMMARY = ("level", "cases", "arrays", "worst relative", "departing", "missing")
SHOWN = 40  # rows of a table on a terminal


class Outcome(NamedTuple):
    """What was compared and what came out. partial: arrays may be missing."""

    golden: Golden
    comparison: Comparison
    hints: Sequence[Hint]
    partial: bool

    @property
    def conforms(self) -> bool:
        """Nothing departs, something was compared, and nothing is missing unless that is admitted."""
        compared = any(row.status == FINE for row in self.comparison.rows)
        complete = self.partial or not self.comparison.missing
        return compared and complete and not self.comparison.departures


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything: every row, in the order of execution."""
    comparison = outcome.comparison
    first = comparison.departures[:1]
    return {
        "conforms": outcome.conforms,
        "expected_by": outcome.golden.made_by,
        "first_departure": first[0].name if first else None,
        "hints": [hint._asdict() for hint in outcome.hints],
        "missing": [row.name for row in comparison.missing],
        "extra": list(comparison.extra),
        "arrays": [
            {
                "name": row.name,
                "status": row.status,
                "max_abs": row.max_abs,
                "relative": row.relative,
                "allowed": row.limit,
                "floor": row.floor,
                "ulp": row.ulp,
                "where": row.where,
                "note": row.note,
            }
            for row in comparison.rows
        ],
    }


def as_text(outcome: Outcome, verbose: bool) -> str:
    """For a terminal: a line for each level, the arrays that matter (or all), and the verdict."""
    comparison = outcome.comparison
    rows = comparison.rows if verbose else _shown(comparison)
    parts = [table(SUMMARY, summary(comparison))]
    if rows:
        parts.append(table(HEADER, [cells(row) for row in rows]))
    hidden = len(comparison.departures) - len(set(comparison.departures) & set(rows))
    if hidden > 0:
        parts.append(f"and {hidden} more that depart; --verbose shows all")
    parts.append("\n".join(statements(outcome)))
    return "\n\n".join(parts)


def _shown(comparison: Comparison) -> list[Row]:
    """The arrays of the first departing cases, from the array before the departure on."""
    rows: list[Row] = []
    for first in comparison.first_by_case:
        own = [row for row in comparison.rows if row.case == first.case]
        rows += [row for row in own if row.status not in (FINE, MISSING) or _just_before(row, first, own)]
        if len(rows) >= SHOWN:
            break
    return rows[:SHOWN]


def _just_before(row: Row, first: Row, own: Sequence[Row]) -> bool:
    return own.index(row) + 1 == own.index(first)


def summary(comparison: Comparison) -> list[tuple[str, ...]]:
    """One line for each level."""
    levels: dict[str, list[Row]] = {}
    for row in comparison.rows:
        levels.setdefault(row.case.split("/")[0], []).append(row)
    return [_summary_line(level, rows) for level, rows in levels.items()]


def _summary_line(level: str, rows: Sequence[Row]) -> tuple[str, ...]:
    errors = [row.relative for row in rows if row.relative == row.relative]
    departing = [row for row in rows if row.status not in (FINE, MISSING)]
    missing = [row for row in rows if row.status == MISSING]
    worst = f"{max(errors):.1e}" if errors else "-"
    cases = len({row.case for row in rows})
    return level, str(cases), str(len(rows)), worst, str(len(departing)), str(len(missing))


def cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    measured = row.max_abs == row.max_abs
    verdict = row.status if row.status == FINE or not row.where else f"{row.status} at {row.where}"
    return (
        row.name,
        f"{row.max_abs:.1e}" if measured else "-",
        f"{row.relative:.1e}" if measured else "-",
        f"{row.limit:.0e}" if row.limit else "equal",
        "-" if row.ulp is None else str(row.ulp),
        f"{verdict} ({row.note})" if row.note else verdict,
    )


def statements(outcome: Outcome) -> list[str]:
    """The verdict in sentences."""
    comparison, lines = outcome.comparison, []
    for name, names in (
        ("missing", [row.name for row in comparison.missing]),
        ("not expected, left out", [shown(name) for name in comparison.extra]),
    ):
        if names:
            lines.append(f"{name}: {_some(names)}")
    if comparison.departures:
        first = comparison.departures[0]
        lines.append(f"first departure: {first.name} ({cells(first)[-1]})")
    lines += [f"hint for {hint.case}: {_said(hint)}" for hint in outcome.hints]
    compared = len(comparison.rows) - len(comparison.missing)
    good = compared - len(comparison.departures)
    lines.append(
        f"{good} of {compared} arrays agree with {outcome.golden.made_by}: "
        f"{'conforms' if outcome.conforms else 'DOES NOT CONFORM'}"
    )
    return lines


def _said(hint: Hint) -> str:
    proof = f"which reproduces {hint.explains} of {hint.departing} departing arrays"
    return hint.text if hint.rule == "pattern" else f"{hint.rule}: {hint.text}; {proof}"


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def as_markdown(outcome: Outcome) -> str:
    """A conformance report."""
    sections = [
        "# Conformance report",
        "\n".join(f"* {line}" for line in statements(outcome)),
        markdown(SUMMARY, summary(outcome.comparison)),
        "## Every array, in the order of execution",
        markdown(HEADER, [cells(row) for row in outcome.comparison.rows]),
    ]
    return "\n\n".join(sections) + "\n"


STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.1em .6em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}.bad{background:#fdd}"
)


def as_html(outcome: Outcome) -> str:
    """The same as one HTML page; what departs is marked."""
    rows = outcome.comparison.rows
    marks = [row.status != FINE for row in rows]
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in statements(outcome))
    levels = summary(outcome.comparison)
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>Conformance report</title>',
            f"<style>{STYLE}</style></head><body><h1>Conformance report</h1>",
            f"<ul>{items}</ul>",
            _html_table(SUMMARY, levels, [line[-2:] != ("0", "0") for line in levels]),
            "<h2>Every array, in the order of execution</h2>",
            _html_table(HEADER, [cells(row) for row in rows], marks),
            "</body></html>\n",
        )
    )


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[bool]) -> str:
    lines = [_html_line("th", header, False)]
    lines += [_html_line("td", row, mark) for row, mark in zip(rows, marks, strict=True)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _html_line(tag: str, row: Sequence[str], mark: bool) -> str:
    line = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
    return f'<tr class="bad">{line}</tr>' if mark else f"<tr>{line}</tr>"
