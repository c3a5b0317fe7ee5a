"""Figures of single results, which a result's own method `figure` draws.

Source: mathematics.md §7 and §8.4 (gap and theorem by round), §9 (executed FLOPs).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.bench.candidates import OURS, Row
from refimpl.bench.own import Timings
from refimpl.report.canvas import (
    BLUE,
    GREY,
    MARKERS,
    ORANGE,
    SKY,
    legend_below,
    looks,
    new_figure,
    plain_ticks,
    save,
)
from refimpl.theory.following import Following

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def follow_figure(found: Following) -> Figure:
    """Squared gaps by round with the bar of the true one, and both sides of Theorem 1 after each round."""
    figure, (gaps, sides) = new_figure(2)
    k = np.array([one.round for one in found.rounds])
    true, bar, server, left, right = np.array(
        [(one.true_gap, one.error, one.server_gap, one.left, one.right) for one in found.rounds]
    ).reshape(-1, 5).T  # fmt: skip
    gaps.loglog(k, server**2, color=SKY, lw=1.0, label="the server's gap")
    gaps.loglog(k, true**2, color=BLUE, lw=1.8, label=r"true gap $\|G_k\|^2$")
    gaps.fill_between(k, np.maximum(true - bar, 0) ** 2, (true + bar) ** 2, color=BLUE, alpha=0.25, lw=0)
    gaps.set(title=found.problem.name, xlabel="round k", ylabel="squared gap")
    sides.loglog(k, right, color=ORANGE, ls="--", lw=1.5, label="right side")
    sides.loglog(k, np.where(left > 0, left, np.nan), color=BLUE, lw=1.8, label="left side")
    sides.set(title="Theorem 1 after k rounds", xlabel="round k", ylabel="sides of the bound")
    for one in found.findings:
        gaps.plot([], [], color=GREY, lw=0, label=one.family.rpartition(", ")[2] + ": a finding")
    for axes in (gaps, sides):
        axes.legend(loc="best")
        plain_ticks(axes.xaxis)
    return figure


def timings_figure(found: Timings) -> Figure:
    """Seconds of a sample against its executed FLOPs: a panel per batch, a colour per pass.

    Proportional lines go through the dense points. A point on its line has lost nothing: the FLOPs that are
    saved are the time that is saved. Other candidates, whose markers are hollow, execute all FLOPs of the
    dense layer, whatever is closed.
    """
    series: dict[tuple[int, str, str], list[Row]] = {}
    for row in sorted((row for row in found.rows if "seconds" in row), key=lambda row: row["off"]):
        series.setdefault((row["batch"], row["pass"], row["candidate"]), []).append(row)
    batches, passes, names = (list(dict.fromkeys(column)) for column in zip(*series, strict=True))
    figure, panels = new_figure(len(batches), 5.2 if len(batches) > 1 else 7.2, 4.8)
    handles = {}
    for (batch, pass_, name), rows in series.items():
        axes, mine = panels[batches.index(batch)], name == OURS
        x, y = (np.array([row[key] / batch for row in rows]) for key in ("executed_flops", "seconds"))
        look = looks(passes.index(pass_)) | {"ls": "", "fillstyle": "full" if mine else "none"}
        look["marker"] = MARKERS[names.index(name) % len(MARKERS)]
        (handles[pass_, name],) = axes.loglog(x, y, **look, ms=6, label=f"{pass_}, {name}")
        if mine:
            ends = np.array([x.min(), x.max()])
            axes.loglog(ends, y[0] * ends / x[0], color=look["color"], lw=1.0, ls="--")
        axes.set(title=f"{found.subject}, batch {batch}", xlabel="executed FLOPs of a sample")
    panels[0].set(ylabel="seconds of a sample")
    legend_below(figure, [*handles.values()], most=3, title="dashed: time proportional to FLOPs")
    return figure


# The function that draws the results of each class.
FIGURES: dict[type, Callable[[Any], Figure]] = {Timings: timings_figure, Following: follow_figure}


def draw(result: Any, path: Path) -> Path:
    """Draw the figure of a result into a file; returns its path."""
    return save(path, lambda: FIGURES[type(result)](result))
