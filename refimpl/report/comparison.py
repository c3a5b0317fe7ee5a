"""Figures of a comparison: accuracy by round, and accuracy against work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from refimpl.experiments.compare.summary import Curve, Row, curves, summarise
from refimpl.experiments.compare.work import Outcome
from refimpl.report.canvas import legend_below, looks, new_figure, percent_axis, rounds_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(outcomes: Sequence[Outcome]) -> dict[str, Callable[[], Figure]]:
    """The figures of a comparison that have data: `accuracy` by round, `frontier` if rows skip work."""
    found: dict[str, Callable[[], Figure]] = {}
    if by_round := [curve for curve in curves(outcomes) if np.isfinite(curve.mean).any()]:
        found["accuracy"] = lambda: accuracy_figure(by_round)
    rows = [row for row in summarise(outcomes) if row.diverged < row.seeds]
    if any(row.flops_executed < row.flops_dense for row in rows):
        found["frontier"] = lambda: frontier_figure(rows)
    return found


def accuracy_figure(curves: Sequence[Curve]) -> Figure:
    """Adapted accuracy by round, a line for each row with its spread over seeds. Source: [MG] Figure 4."""
    figure, (axes,) = new_figure(1, 8.4, 4.4)
    for number, curve in enumerate(curves):
        look, mean = looks(number), 100 * np.array(curve.mean)
        spread = 100 * np.nan_to_num(np.array(curve.std))
        label = curve.label + (f" ({curve.left_out} diverged)" if curve.left_out else "")
        axes.plot(curve.rounds, mean, ms=4, lw=1.4, label=label, **look)
        axes.fill_between(curve.rounds, mean - spread, mean + spread, color=look["color"], alpha=0.12, lw=0)
    axes.set(xlabel="round", ylabel="accuracy after adaptation, %", title="Target nodes")
    percent_axis(axes)
    rounds_axis(axes, max(curve.rounds[-1] for curve in curves))
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return figure


TRADED = ("rho=", "snip_keep=")  # settings that trade accuracy for work


def series(point: Row) -> tuple[str, str]:
    """The row's label without the settings that trade accuracy for work, and these settings."""
    words = point.label.split()
    traded = [word for word in words if word.startswith(TRADED)]
    return " ".join(word for word in words if word not in traded), " ".join(traded)


def _values(settings: Sequence[str]) -> str:
    """The settings of the points of a series; a key that all of them have is named once."""
    keys = {setting.partition("=")[0] for setting in settings}
    if len(keys) == 1 and all(setting.count("=") == 1 for setting in settings):
        return f"{keys.pop()}={', '.join(setting.partition('=')[2] for setting in settings)}"
    return ", ".join(filter(None, settings))


def frontier_figure(points: Sequence[Row]) -> Figure:
    """Adapted accuracy against executed FLOPs, a line for each series; the legend names its points."""
    figure, (axes,) = new_figure(1, 8.4, 4.4)
    for number, name in enumerate(dict.fromkeys(series(point)[0] for point in points)):
        own = sorted((p for p in points if series(p)[0] == name), key=lambda p: p.flops_executed)
        x = [100 * p.flops_executed / p.flops_dense for p in own]
        y = [100 * p.accuracy_adapted_last_mean for p in own]
        bars = [100 * p.accuracy_adapted_last_std for p in own]
        traded = _values([series(point)[1] for point in own])
        label = f"{name}; left to right: {traded}" if traded else name
        axes.errorbar(x, y, np.nan_to_num(bars), ms=6, lw=1.2, capsize=2, label=label, **looks(number))
    axes.set(
        xlabel="executed FLOPs, % of the dense network's",
        ylabel="accuracy after adaptation, %",
        title="Accuracy against work",
    )
    percent_axis(axes)
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return figure
