"""Write the outcome of a comparison as Markdown or HTML: what was compared, and every array."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import date
from html import escape
from pathlib import Path

from refimpl._version import __version__
from refimpl.crosscheck.conformance import HEADER, SUMMARY, Outcome, cells, statements, summary
from refimpl.crosscheck.golden.file import FORMAT, VERSION, Golden
from refimpl.crosscheck.golden.names import shown
from refimpl.crosscheck.tolerance import FLOOR
from refimpl.files.storage import read_bytes
from refimpl.files.tables import html, markdown

ABOUT = ("what", "which")
LEGEND = {
    "max abs": "the largest difference of an entry",
    "relative": "the norm of the difference over the norm of the expected array; one that is nearly zero "
    f"counts as having the root mean square that the file calls its floor, which is {FLOOR:g} times that of "
    "the case's largest array of values, or of gradients",
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

    def items(lines: Iterable[str]) -> str:
        return "\n".join(f"* {line}" for line in lines)

    sections = _sections(outcome, items, lambda header, rows, bad: markdown(header, rows), "## {}".format)
    return "\n\n".join(("# Conformance report", *sections)) + "\n"


STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.1em .6em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}.bad{background:#fdd}"
)


def as_html(outcome: Outcome) -> str:
    """The conformance report as one HTML page, in which departures are marked."""

    def items(lines: Iterable[str]) -> str:
        return "<ul>" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"

    head = '<html lang="en"><head><meta charset="utf-8"><title>Conformance report</title>'
    start = f"<style>{STYLE}</style></head><body><h1>Conformance report</h1>"
    sections = _sections(outcome, items, html, "<h2>{}</h2>".format)
    return "\n".join(("<!doctype html>", head, start, *sections, "</body></html>\n"))


def _sections(
    outcome: Outcome,
    items: Callable[[Iterable[str]], str],
    table: Callable[[Sequence[str], Sequence[Sequence[str]], Collection[int]], str],
    heading: Callable[[str], str],
) -> Iterator[str]:
    """The parts of a report, in the form that the functions for lists, tables and headings give them."""
    rows, levels = outcome.comparison.rows, summary(outcome.comparison)
    marked = {number for number, row in enumerate(rows) if outcome.is_bad(row)}
    bad = {rows[number].case.split("/")[0] for number in marked}
    yield items(statements(outcome))
    yield table(ABOUT, list(outcome.about.items()), ())
    yield table(SUMMARY, levels, {number for number, line in enumerate(levels) if line[0] in bad})
    yield heading("Every array, in the order of execution")
    yield items(f"{word}: {meaning}" for word, meaning in LEGEND.items())
    yield table(HEADER, [cells(row) for row in rows], marked)
