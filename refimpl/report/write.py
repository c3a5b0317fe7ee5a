"""Write a folder with `report.html` and its figures as PNG files; all of it is about the runs it is given.

The page is written last and, like every file, completely or not at all. So a report that is stopped leaves
the previous one intact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from refimpl.contracts import nothing
from refimpl.experiments.compare.plan import slug
from refimpl.files.environment import environment
from refimpl.files.storage import make_folder, write_whole
from refimpl.report.canvas import MISSING, has_matplotlib, png
from refimpl.report.comparison import figures
from refimpl.report.gap import GapSeries, gap_figure
from refimpl.report.gates import gates_figure
from refimpl.report.gather import View, has_gap, trainings
from refimpl.report.page import Drawn, html_page
from refimpl.report.runs import closes_channels, sparsity_figure, training_figure, work_figure
from refimpl.report.subject import Compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"

TRAINING = (
    "Loss is the mean over the nodes of the round, on their mini-batches. A single point of accuracy is that "
    "of the last round, where no other was measured. Rows that prune one trained model share its loss, which "
    "is drawn as that of the first. Accuracy has a gap where adaptation diverged at a node."
)
GAP = (
    "Squared norm of the gradient mapping. The server's gap comes from mini-batches and a few local steps, "
    "the true one from local problems solved in float64 on all data. No Lipschitz constant is known of a "
    "network, so no bound can be drawn here: the dotted line has the slope of Theorem 1 and nothing more."
)
GATES = (
    "Share of the test samples of a class, over all target nodes that have it, for which a channel's gate is "
    "open. Stage I of adaptation changes the gate only, with each node's support samples. The last map has, "
    "for each target node after adaptation, the share of test samples for which a channel is not as for most "
    "of them: it is zero for a gate that does not look at its input."
)
SPARSITY = (
    "A point is a target node after adaptation, its bar the standard deviation over its test samples (ddof "
    "0); a line is the mean over nodes, and the legend has the standard deviation over nodes (ddof 0). Nodes "
    "at which adaptation diverged are left out."
)
WORK = (
    "Rounds as the run recorded them; adaptation and forward passes measured for this report. Dotted: equal "
    "speed. Hollow: the same adapted backbone without gates; gating saves time where full points lie below "
    "hollow ones."
)
COMPARED = (
    "Mean over target nodes, then mean and standard deviation over seeds (ddof 1). Seeds whose training or "
    "adaptation diverged are left out."
)


class Plan(NamedTuple):
    """A figure that is to be drawn."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


def plans(views: Sequence[View], compared: Sequence[Compared]) -> list[Plan]:
    """The figures that have data; none without matplotlib."""
    if not has_matplotlib():
        return []
    found, begun = [], any(view.records for view in views)
    if begun:
        found.append(
            Plan("training.png", "Loss and accuracy by round", TRAINING, lambda: training_figure(views))
        )
    for one in compared:
        found += _of_comparison(one)
    gapped = [
        GapSeries(label, [(record.round, record.gap) for record in view.records], view.gaps, number)
        for number, label, view in trainings(views)
        if has_gap(view)
    ]
    if gapped:
        found.append(Plan("stationarity.png", "Stationarity gap by round", GAP, lambda: gap_figure(gapped)))
    for view in views:
        if view.openings:
            name, title = f"gates-{slug(view.label).strip('-')}.png", f"Gates of {view.label}"
            found.append(Plan(name, title, GATES, partial(gates_figure, view)))
    if any(map(closes_channels, views)):
        found.append(
            Plan("sparsity.png", "Sparsity over target nodes", SPARSITY, lambda: sparsity_figure(views))
        )
    if begun:
        found.append(Plan("work.png", "Executed FLOPs against seconds", WORK, lambda: work_figure(views)))
    return numbered(found)


def _of_comparison(one: Compared) -> list[Plan]:
    shown = {"accuracy": "accuracy by round", "frontier": "accuracy against work"}
    return [
        Plan(f"{slug(one.path.name)}-{name}.png", f"{one.path}: {shown[name]}", COMPARED, draw)
        for name, draw in figures(one.outcomes).items()
    ]


def numbered(found: Sequence[Plan]) -> list[Plan]:
    """Add a number to file names that occur twice, as folders may have the same name."""
    taken: dict[str, Plan] = {}
    for plan in found:
        name, number = plan.name, 1
        while name in taken:
            number += 1
            name = f"{plan.name.removesuffix('.png')}-{number}.png"
        taken[name] = plan._replace(name=name)
    return list(taken.values())


def write(
    out: Path,
    views: Sequence[View],
    compared: Sequence[Compared],
    chosen: Sequence[Plan],
    on_figure: Callable[[str], None] = nothing,
) -> list[Path]:
    """Draw figures and write them with the page into `out`; returns the paths, with the page first."""
    notice = "" if has_matplotlib() else MISSING
    return publish(
        out, chosen, lambda drawn: html_page(views, compared, drawn, environment(), notice), on_figure
    )


def publish(
    out: Path,
    chosen: Sequence[Plan],
    page: Callable[[Sequence[Drawn]], str],
    on_figure: Callable[[str], None] = nothing,
) -> list[Path]:
    """Draw the figures that are chosen, and write them with the `page` that holds them; returns the paths."""
    make_folder(out)
    drawn = []
    for plan in chosen:
        drawn.append(Drawn(plan.name, plan.title, plan.caption, png(plan.draw)))
        write_whole(out / plan.name, drawn[-1].png)
        on_figure(plan.name)
    for name in _figures_before(out) - {one.name for one in drawn}:
        (out / name).unlink(missing_ok=True)
    write_whole(out / PAGE, page(drawn).encode())
    return [out / PAGE, *(out / one.name for one in drawn)]


def _figures_before(out: Path) -> set[str]:
    """The figures of the page that is replaced, by file name."""
    page = out / PAGE
    text = page.read_text("utf-8", errors="replace") if page.is_file() else ""
    return set(re.findall(r"\(([\w.-]+\.png)\)</figcaption>", text))
