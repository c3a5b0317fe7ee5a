"""One HTML page that needs no other file and no network: tables, figures, configurations, environments."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from refimpl._version import __version__
from refimpl.experiments.compare.layout import plan_notes, tables
from refimpl.experiments.compare.nodes import node_table
from refimpl.experiments.methods import notes, settings_used
from refimpl.files.tables import html
from refimpl.report.gather import View
from refimpl.report.subject import Compared

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.75rem; text-align: right; border-bottom: 1px solid #ddd; }
th { vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; overflow-wrap: anywhere; } .wide { overflow-x: auto; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #444; font-size: 0.9rem; max-width: 55rem; }
summary { cursor: pointer; margin: 0.5rem 0; }
"""
ACCURACY = (
    "Accuracy: test parts of the target nodes after adaptation, last round, mean over nodes. Before: the "
    "meta-model as it is. Off: gated channels off, mean ± standard deviation over nodes (ddof 0). FLOPs: one "
    "sample, forward. Adapt: one node, all stages, measured for this report; train: as the run recorded it."
)
NODES = (
    "Off: mean ± standard deviation over the test samples of the node (ddof 0). The last two rows: mean and "
    "standard deviation over the nodes (ddof 0)."
)
STRANGERS = "Chance: no training node has the classes of this node, so the meta-model can only guess there."
FIRST_SEED = (
    "Figures named after a comparison are over all of its seeds; all others show its rows at the first seed."
)


class Drawn(NamedTuple):
    """A figure: its file name, a line that says what it shows, how to read it, and the PNG itself."""

    name: str
    title: str
    caption: str
    png: bytes


def html_page(
    views: Sequence[View],
    compared: Sequence[Compared],
    drawn: Sequence[Drawn],
    here: Mapping[str, Any],
    notice: str,
) -> str:
    """The page. `here` is the environment of this report; `notice` is what the reader must know first."""
    subject = ", ".join(dict.fromkeys([*(str(one.path) for one in compared), *_loose(views, compared)]))
    body = [
        f"<h1>Report: {escape(subject)}</h1>",
        note(notice),
        *(_comparison(one) for one in compared),
        _summary(views, compared),
        "<h2>Figures</h2>" if drawn else "",
        note(FIRST_SEED) if drawn and compared else "",
        *map(figure, drawn),
        "<h2>Runs</h2>",
        *map(_run, views),
        *made(here, "adaptation and forward passes were timed here:"),
    ]
    return document(subject, body)


def made(here: Mapping[str, Any], what: str) -> list[str]:
    """The last parts of a page: by which version and where it was made."""
    return [f"<h2>This report</h2>\n<p>refimpl {__version__}; {what}</p>", facts(here)]


def document(subject: str, body: Sequence[str]) -> str:
    """A page about the subject with these parts."""
    head = f'<meta charset="utf-8"><title>refimpl: {escape(subject)}</title><style>{STYLE}</style>'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    text = "\n".join(part for part in body if part)
    page = f'<html lang="en">\n<head>{head}{viewport}</head>\n<body>\n{text}\n</body>\n</html>'
    return f"<!DOCTYPE html>\n{page}\n"


def _loose(views: Sequence[View], compared: Sequence[Compared]) -> list[str]:
    """The folders of runs that were given directly and not as part of a comparison."""
    return [str(v.folder) for v in views if not any(one.path in v.folder.parents for one in compared)]


def _comparison(one: Compared) -> str:
    plan = one.comparison.plan
    lines = "".join(f"<li>{escape(_text(line))}</li>" for line in plan_notes(plan, one.outcomes))
    title = f"<h2>Comparison {escape(str(one.path))}</h2>"
    found = [table(*each) for each in tables(one.outcomes, plan.claims)]
    return "\n".join([title, *found, f'<ul class="note">{lines}</ul>'])


def _summary(views: Sequence[View], compared: Sequence[Compared]) -> str:
    """The tables of a comparison, for the runs that were given directly."""
    loose = _loose(views, compared)
    outcomes = [view for view in views if str(view.folder) in loose and view.reports]
    if not outcomes:
        return ""
    lines = [ACCURACY, *notes({outcome.config.method for outcome in outcomes})]
    return "\n".join(["<h2>In short</h2>", *(table(*each) for each in tables(outcomes)), *map(note, lines)])


def figure(one: Drawn) -> str:
    """A figure with what it shows."""
    data = base64.b64encode(one.png).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(one.title)}">'
    caption = f"<figcaption><b>{escape(one.title)}.</b> {escape(one.caption)} ({one.name})</figcaption>"
    return f"<figure>{image}{caption}</figure>"


def _run(view: View) -> str:
    parts = [
        f"<h3>{escape(view.label)}</h3>",
        note(f"{view.folder}; {view.note}" if view.note else str(view.folder)),
    ]
    parts += [note(f"Missing: {line}") for line in view.missing]
    if view.reports:
        nodes = table(*node_table(view.config.method, view.reports, view.strangers))
        nodes += note(NODES) + note(STRANGERS if view.strangers else "")
        parts.append(folded("target nodes", nodes))
    parts.append(folded("configuration", facts(settings_used(view.config))))
    parts.append(folded("environment of the training", facts(view.environment)))
    return "\n".join(parts)


def folded(title: str, content: str) -> str:
    """Content that is shown on demand."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def note(text: str) -> str:
    """A line of explanation; nothing for an empty one."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, which scrolls if it is wide."""
    return f'<div class="wide">{html(header, [[_text(cell) for cell in row] for row in rows])}</div>'


def _text(plain: str) -> str:
    """Text as commands print it, with signs that a terminal may lack."""
    return plain.replace("+-", "±")


def facts(table: Mapping[str, Any]) -> str:
    """A table of names and values; entries of nested tables are called `name.key`."""
    return f'<div class="facts">{html((), _flat(table))}</div>'


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            found.append((f"{prefix}{key}", text if value is not None else "-"))
    return found
