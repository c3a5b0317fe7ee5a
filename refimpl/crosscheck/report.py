"""Write the outcome of a comparison as Markdown or HTML: what was compared, and every array."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from refimpl._version import __version__
from refimpl.crosscheck.conformance import HEADER, SUMMARY, Outcome, cells, statements, summary
from refimpl.crosscheck.golden.file import FORMAT, VERSION, Golden
from refimpl.crosscheck.golden.names import shown
from refimpl.crosscheck.tolerance import FLOOR
from refimpl.files.storage import read_bytes
from refimpl.files.tables import markdown

ABOUT = ("what", "which")
LEGEND = {
    "max abs": "the largest difference of an entry",
    "relative": "norm of the difference over the norm of the expected array, whose root mean square counts "
    f"as at least the floor that the file gives: {FLOOR:g} of that of the case's largest array, values and "
    "gradients apart",
    "allowed": "the largest relative that agrees; masks must be equal",
    "ulp": "the largest difference in units in the last place, where the file is float32",
}


def about(expected: Path, given: Path | None, golden: Golden, today: date) -> dict[str, str]:
    """What was compared with what, when and by whom; `given` is None if this installation computed it."""
    dtypes = sorted({case.dtype for case in golden.cases})
    return {
        "expected": f"{_file(expected)}, computed by {shown(golden.made_by)}",
        "given": "computed by this installation" if given is None else _file(given),
        "dtype": ", ".join(dtypes),
        "seed of the inputs": "the file does not say" if golden.seed is None else str(golden.seed),
        "format": f"{FORMAT}, version {VERSION}",
        "checked": f"{today.isoformat()}, by refimpl {__version__}",
    }


def _file(path: Path) -> str:
    return f"{shown(path.name)}, sha256 {hashlib.sha256(read_bytes(path)).hexdigest()[:16]}"


def as_markdown(outcome: Outcome) -> str:
    """The conformance report as Markdown."""
    sections = [
        "# Conformance report",
        "\n".join(f"* {line}" for line in statements(outcome)),
        markdown(ABOUT, list(outcome.about.items())),
        markdown(SUMMARY, summary(outcome.comparison)),
        "## Every array, in the order of execution",
        "\n".join(f"* {word}: {meaning}" for word, meaning in LEGEND.items()),
        markdown(HEADER, [cells(row) for row in outcome.comparison.rows]),
    ]
    return "\n\n".join(sections) + "\n"


STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.1em .6em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}.bad{background:#fdd}"
)


def as_html(outcome: Outcome) -> str:
    """The conformance report as one HTML page, in which departures are marked."""
    rows = outcome.comparison.rows
    levels = summary(outcome.comparison)
    marks = [outcome.is_bad(row) for row in rows]
    bad = {row.case.split("/")[0] for row, mark in zip(rows, marks, strict=True) if mark}
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>Conformance report</title>',
            f"<style>{STYLE}</style></head><body><h1>Conformance report</h1>",
            _html_list(statements(outcome)),
            _html_table(ABOUT, list(outcome.about.items()), [False] * len(outcome.about)),
            _html_table(SUMMARY, levels, [line[0] in bad for line in levels]),
            "<h2>Every array, in the order of execution</h2>",
            _html_list([f"{word}: {meaning}" for word, meaning in LEGEND.items()]),
            _html_table(HEADER, [cells(row) for row in rows], marks),
            "</body></html>\n",
        )
    )


def _html_list(lines: Sequence[str]) -> str:
    return "<ul>" + "\n".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[bool]) -> str:
    lines = [_html_line("th", header, False)]
    lines += [_html_line("td", row, mark) for row, mark in zip(rows, marks, strict=True)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _html_line(tag: str, row: Sequence[str], mark: bool) -> str:
    line = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
    return f'<tr class="bad">{line}</tr>' if mark else f"<tr>{line}</tr>"
