"""The stationarity gap by round: the server's gap, the true gap if known, and the rate of the theory.

Source: mathematics.md §7 and §8.4; [MG] Theorem 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refimpl.report.canvas import GREY, legend_below, looks, new_figure, plain_ticks, ticks_of_few_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refimpl.theory.stationarity import GapRow

POINTS = {"centre": "none", "model": "full"}  # how the marker of a true gap is filled


class GapSeries(NamedTuple):
    """A run's gaps: (round, the server's gap, NaN for none) and the points whose true gap is known.

    number: of its colour, line and marker, the same in all figures of a report.
    """

    label: str
    server: Sequence[tuple[int, float]]
    rows: Sequence[GapRow]
    number: int = 0


def gap_figure(series: Sequence[GapSeries]) -> Figure:
    """Squared gaps by round on logarithmic axes, with the theorem's slope.

    A thin line is the server's gap, a thick line its minimum so far; points are true gaps.
    """
    figure, (axes,) = new_figure(1, 7.2, 4.2)
    for one in series:
        _draw_server(axes, one)
        _draw_true(axes, one)
    _draw_slope(axes, series)
    axes.set(xlabel="round k", ylabel=r"squared gap $\|G\|^2$", title="Stationarity gap")
    _legend(figure, axes, series)
    plain_ticks(axes.xaxis)
    ticks_of_few_decades(axes.yaxis)
    return figure


def _squared(server: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Rounds and the server's squared gap; NaN where it is missing or zero, which no logarithm shows."""
    rounds, gaps = np.array(server, dtype=np.float64).reshape(-1, 2).T
    return rounds, np.where(gaps > 0, gaps**2, np.nan)


def _draw_server(axes: Axes, one: GapSeries) -> None:
    rounds, squared = _squared(one.server)
    look = {**looks(one.number), "marker": ""}
    axes.loglog(rounds, squared, **{**look, "ls": "-"}, lw=0.8, alpha=0.35)
    axes.loglog(rounds, np.fmin.accumulate(squared), **look, lw=1.8, label=one.label)


def _draw_true(axes: Axes, one: GapSeries) -> None:
    """Draw true gaps; bars reach from (gap - spread)^2, but at least gap^2/4, to (gap + spread)^2."""
    look = looks(one.number)
    for kind, fill in POINTS.items():
        chosen = [(row.round, row.true_gap, row.spread) for row in one.rows if row.point == kind]
        if chosen:
            x, y, bar = np.array(chosen).T
            axes.loglog(x, y**2, look["marker"], color=look["color"], ms=7, mew=1.5, fillstyle=fill, zorder=3)
            axes.vlines(x, np.maximum(y - bar, 0.5 * y) ** 2, (y + bar) ** 2, color=look["color"], lw=1.5)


def _draw_slope(axes: Axes, series: Sequence[GapSeries]) -> None:
    """Draw a line that falls as 1/k, through the largest first gap."""
    firsts = [squared[np.isfinite(squared)][:1] for _, squared in (_squared(one.server) for one in series)]
    first, last = np.concatenate(firsts), max(len(one.server) for one in series)
    if first.size and last > 1:
        k = np.array([1.0, last])
        axes.loglog(k, first.max() / k, color=GREY, ls=(0, (1, 1.5)), lw=1.5)


def _legend(figure: Figure, axes: Axes, series: Sequence[GapSeries]) -> None:
    """The runs by name, then what thin lines, points and the dotted line are."""
    from matplotlib.lines import Line2D

    handles, _ = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color=GREY, lw=0.8, alpha=0.6, label="thin: the server's gap of the round"))
    kinds = {row.point for one in series for row in one.rows}
    names = {"centre": "true gap at the round's centre", "model": "true gap at the meta-model"}
    for kind, fill in POINTS.items():
        if kind in kinds:
            look: dict[str, Any] = {"color": GREY, "marker": "o", "ls": "", "fillstyle": fill}
            handles.append(Line2D([], [], **look, ms=7, mew=1.5, label=f"{names[kind]} (bar: other starts)"))
    slope = "1/k, the slope of Theorem 1; not a bound of these runs"
    handles.append(Line2D([], [], color=GREY, ls=(0, (1, 1.5)), lw=1.5, label=slope))
    title = "server's gap, smallest so far (mini-batches, local steps)"
    legend_below(figure, handles, most=1, title=title)
