"""The page of cooperative runs: accuracy of every depth against the FLOPs and the time that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refimpl.files.environment import environment
from refimpl.report.canvas import MISSING, has_matplotlib, legend_below, looks, new_figure, percent_axis
from refimpl.report.page import Drawn, document, facts, figure, folded, made, note, table
from refimpl.report.write import Plan, publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from refimpl.cooperative.compare import Line

FRONTIER = (
    "Each point is a depth, the least one to the left: accuracy on the test samples against executed FLOPs "
    "of a sample, and against the median time of a call with one sample on one thread of this machine."
)
RECONSTRUCTED = (
    "After Fang, Bradford & Kim 2023, Cooperative Learning for Cost-Adaptive Inference, of which only the "
    "abstract is known here: losses, weights and settings are a reconstruction."
)


class Curve(NamedTuple):
    """A network of several depths: its name, and its rows as `refimpl cooperative evaluate` writes them."""

    label: str
    rows: Sequence[Mapping[str, Any]]


def frontier_figure(curves: Sequence[Curve]) -> Figure:
    """Test accuracy against executed FLOPs of a sample, and against milliseconds of a single call."""
    figure, (by_flops, by_time) = new_figure(2, 6.0, 4.2)
    for number, (label, rows) in enumerate(curves):
        accuracy = [100 * row["test"] for row in rows]
        look = {"ms": 5, "lw": 1.2, "label": label, **looks(number)}
        by_flops.plot([row["flops"] / 1e6 for row in rows], accuracy, **look)
        by_time.plot([row["latencies"][0]["median"] for row in rows], accuracy, **look)
    by_flops.set(xlabel="executed MFLOPs of a sample", ylabel="accuracy %", title="Work")
    by_time.set(xlabel="milliseconds of a call", ylabel="accuracy %", title="Time on this machine")
    for axes in (by_flops, by_time):
        percent_axis(axes)
    legend_below(figure, by_flops.get_lines())
    return figure


def comparison_figure(lines: Sequence[Line], timed: bool = True) -> Figure:
    """Mean test accuracy of each scheme's depths, with the deviation over seeds, against FLOPs and time.

    Without `timed` against FLOPs alone, where times were taken beside other work.
    """
    figure, panels = new_figure(1 + timed, 6.0, 4.2)
    for number, name in enumerate(dict.fromkeys(one.scheme for one in lines)):
        own = [one for one in lines if one.scheme == name]
        mean, spread = ([getattr(one, what) for one in own] for what in ("accuracy", "spread"))
        work = ([one.flops / 1e6 for one in own], [one.milliseconds for one in own])
        for axes, at in zip(panels, work, strict=False):
            axes.errorbar(
                at, mean, np.nan_to_num(spread), ms=5, lw=1.2, capsize=2, label=name, **looks(number)
            )
    for axes, what in zip(panels, ("executed MFLOPs of a sample", "milliseconds of a call"), strict=False):
        axes.set(xlabel=what, ylabel="accuracy %, mean +- deviation over seeds")
        percent_axis(axes)
    legend_below(figure, panels[0].get_legend_handles_labels()[0])
    return figure


def write_teams(
    out: Path,
    curves: Sequence[Curve],
    header: Sequence[str],
    cells: Sequence[Sequence[Sequence[str]]],
    settings: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Write the page of cooperative runs: for each a curve, the rows of its table, and its settings."""

    def page(drawn: Sequence[Drawn]) -> str:
        names = [curve.label for curve in curves]
        runs = [
            [f"<h3>{escape(name)}</h3>", table(header, rows), folded("configuration", facts(own))]
            for name, rows, own in zip(names, cells, settings, strict=True)
        ]
        subject = ", ".join(names)
        notes = [note(RECONSTRUCTED), note("" if has_matplotlib() else MISSING)]
        parts = [f"<h1>Report: {escape(subject)}</h1>", *notes, *map(figure, drawn), "<h2>Runs</h2>"]
        parts += [part for run in runs for part in run]
        return document(subject, [*parts, *made(environment(), "all depths were timed here:")])

    plan = Plan("frontier.png", "Accuracy against work and time", FRONTIER, lambda: frontier_figure(curves))
    return publish(out, [plan] if has_matplotlib() else [], page)
