"""Figures in which all runs share the axes: training, sparsity over nodes, and work against time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refimpl.report.canvas import (
    GREY,
    legend_below,
    looks,
    new_figure,
    percent_axis,
    plain_ticks,
    rounds_axis,
    say,
    ticks_of_few_decades,
)
from refimpl.report.gather import View, trainings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The speeds in GFLOP/s for which lines are drawn behind work against time.
SPEEDS = tuple(step * 10.0**power for power in range(-3, 4) for step in (1, 2, 5))
ROOM_ACROSS, ROOM_UP = 0.25, 0.06  # share of a panel's width and height that the name of a speed takes
FLOP_UNITS = ((1.0, "FLOP"), (1e3, "kFLOP"), (1e6, "MFLOP"), (1e9, "GFLOP"), (1e12, "TFLOP"))
TIME_UNITS = ((1e-6, "\N{MICRO SIGN}s"), (1e-3, "ms"), (1.0, "s"))
MARKS = 12  # markers on a curve of many rounds


def training_figure(views: Sequence[View]) -> Figure:
    """Loss by round, and accuracy at the target nodes after adaptation by round."""
    figure, panels = new_figure(2 if any(map(_accuracy, views)) else 1, 6.0, 4.2)
    last = max(len(view.records) for view in views)
    for number, label, view in trainings(views):
        rounds = [record.round for record in view.records]
        every = max(1, len(rounds) // MARKS)
        loss = [record.loss for record in view.records]
        panels[0].plot(rounds, loss, ms=4, lw=1.2, markevery=every, label=label, **looks(number))
    panels[0].set(xlabel="round", ylabel="loss, mean over nodes", title="Meta-training", yscale="log")
    ticks_of_few_decades(panels[0].yaxis)
    for axes in panels[1:]:
        _draw_accuracy(axes, views)
    for axes in panels:
        rounds_axis(axes, last)
    legend_below(figure, _handles(views))
    return figure


def _handles(views: Sequence[View], **more: Any) -> list[Any]:
    """The legend's entries for the runs, in their order."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], ms=5, label=view.label, **{**looks(number), **more})
        for number, view in enumerate(views)
    ]


def _accuracy(view: View) -> Sequence[tuple[int, float]]:
    """Accuracy by round if measured, otherwise of the last round; empty if adaptation always diverged."""
    points = view.accuracy_by_round
    if not points and view.reports:
        points = ((len(view.records), float(np.mean([r.accuracy_after for r in view.reports]))),)
    return points if np.isfinite([share for _, share in points]).any() else ()


def _draw_accuracy(axes: Axes, views: Sequence[View]) -> None:
    """Draw accuracy by round; a line is interrupted where adaptation diverged at some node."""
    by_round = False
    for number, view in enumerate(views):
        points = _accuracy(view)
        if points:
            x, y = np.array(points).T
            axes.plot(x, 100 * y, ms=5, lw=1.4, label=view.label, **looks(number))
            by_round |= len(points) > 1
    title = "Target nodes, mean" if by_round else "Target nodes, mean; the last round alone"
    axes.set(xlabel="round", ylabel="accuracy after adaptation, %", title=title)
    percent_axis(axes)


def sparsity_figure(views: Sequence[View]) -> Figure:
    """The share of channels off at every target node, with its spread over test samples, and the mean."""
    shown = [(number, view) for number, view in enumerate(views) if closes_channels(view)]
    figure, (axes,) = new_figure(1, 7.2, 4.2)
    bars = []
    for place, (number, view) in enumerate(shown):
        look = {**looks(number), "ls": ""}
        mean = 100 * np.array([report.sparsity_mean for report in view.reports])
        spread = 100 * np.array([report.sparsity_spread for report in view.reports])
        shift = 0.6 * ((place + 0.5) / len(shown) - 0.5)
        x = np.arange(len(mean)) + shift
        over_nodes = np.nanmean(mean), np.nanstd(mean)  # nodes whose adaptation diverged are left out
        label = "{}: {:.1f} \N{PLUS-MINUS SIGN} {:.1f} over nodes".format(view.label, *over_nodes)
        bars.append(axes.errorbar(x, mean, spread, ms=6, capsize=2, lw=1.2, label=label, **look))
        axes.axhline(over_nodes[0], color=look["color"], lw=1.0, ls=looks(number)["ls"], alpha=0.7)
    names = max((view.reports for _, view in shown), key=len)
    axes.set_xticks(range(len(names)), [report.node.split("-")[-1] for report in names])
    axes.set(xlabel="target node", ylabel="gated channels off, %", title="Sparsity after adaptation")
    percent_axis(axes)
    legend_below(figure, bars)
    return figure


def closes_channels(view: View) -> bool:
    """Whether the run has adapted nodes whose channels may be off."""
    return any(report.sparsity_mean > 0 for report in view.reports) or bool(view.openings)


class Cloud(NamedTuple):
    """What a panel shows of a run: FLOPs (n,), seconds (n,), and how points look."""

    flops: np.ndarray
    seconds: np.ndarray
    look: dict[str, Any]


def work_figure(views: Sequence[View]) -> Figure:
    """Executed FLOPs against measured seconds, of a round, a node's adaptation and a forward pass."""
    figure, panels = new_figure(3, 4.6, 4.4)
    contents = {
        "A round of meta-training": _rounds(views),
        "Adaptation of a target node": _adaptations(views),
        "A sample (hollow: without gates)": _forward_passes(views),
    }
    for axes, (title, clouds) in zip(panels, contents.items(), strict=True):
        axes.set_title(title)
        _draw_work(axes, clouds)
    legend_below(figure, _handles(views, ls=""))
    return figure


def _cloud(number: int, points: Sequence[tuple[float, float]], **look: Any) -> Cloud:
    """The cloud of the numbered run from its points (FLOPs, seconds)."""
    flops, seconds = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return Cloud(flops, seconds, {**looks(number), "ls": "", **look})


def _rounds(views: Sequence[View]) -> list[Cloud]:
    return [
        _cloud(number, [(record.flops, record.seconds) for record in view.records], ms=3.5, alpha=0.5)
        for number, _, view in trainings(views)
    ]


def _adaptations(views: Sequence[View]) -> list[Cloud]:
    """Work and time of the adaptation of each node; nodes at which it diverged are left out."""
    clouds = []
    for number, view in enumerate(views):
        told = [report for report in view.reports if not report.diverged]
        points = [(one.adapt_flops_executed, one.seconds_gate + one.seconds_backbone) for one in told]
        clouds.append(_cloud(number, points, ms=5, alpha=0.8))
    return clouds


def _forward_passes(views: Sequence[View]) -> list[Cloud]:
    clouds = []
    for number, view in enumerate(views):
        executed = [(one.flops, one.seconds) for one in view.forward]
        dense = [(one.flops_dense, one.seconds_dense) for one in view.forward]
        clouds.append(_cloud(number, executed, ms=5, alpha=0.8))
        if any(one.flops != one.flops_dense for one in view.forward):
            clouds.append(_cloud(number, dense, ms=5, alpha=0.8, fillstyle="none"))
    return clouds


def _draw_work(axes: Axes, clouds: Sequence[Cloud]) -> None:
    """Draw one panel, in units that suit its numbers."""
    if not any(cloud.flops.size for cloud in clouds):
        axes.set_axis_off()
        say(axes, "nothing measured:\nno model was adapted")
        return
    work, work_name = _unit(FLOP_UNITS, np.concatenate([cloud.flops for cloud in clouds]))
    time, time_name = _unit(TIME_UNITS, np.concatenate([cloud.seconds for cloud in clouds]))
    for cloud in clouds:
        axes.plot(cloud.flops / work, cloud.seconds / time, **cloud.look)
    axes.set(xlabel=f"executed {work_name}", ylabel=f"time, {time_name}")
    _log_axes(axes)
    _draw_speeds(axes, work / time / 1e9)


def _unit(units: Sequence[tuple[float, str]], values: np.ndarray) -> tuple[float, str]:
    """The largest unit not above the middle of the values."""
    middle = float(np.sqrt(values.min() * values.max()))
    return max((one for one in units if one[0] <= middle), default=units[0])


def _log_axes(axes: Axes) -> None:
    """Make axes logarithmic; they span at least a factor of four, so that small differences look small."""
    axes.set(xscale="log", yscale="log")
    for get, put in ((axes.get_xlim, axes.set_xlim), (axes.get_ylim, axes.set_ylim)):
        low, high = get()
        middle = np.sqrt(low * high)
        put(min(low, middle / 2), max(high, middle * 2))
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)


def _draw_speeds(axes: Axes, unit: float) -> None:
    """Draw grey lines of equal speed in GFLOP/s; `unit` is y at x = 1 for 1 GFLOP/s.

    A line's name is written where the line leaves the panel, if there is room to the left of it.
    """
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for speed in SPEEDS:
        x = np.array([left, right])
        y = x * unit / speed
        if y[1] < low or y[0] > high:
            continue
        axes.plot(x, y, color=GREY, lw=0.7, ls=":", zorder=0)
        at = min(right, high * speed / unit)
        across, up = np.log(at / left) / np.log(right / left), np.log(y[1] / low) / np.log(high / low)
        if across > ROOM_ACROSS and up > ROOM_UP:
            name = f"{speed:g} GFLOP/s"
            axes.annotate(name, (at, at * unit / speed), color=GREY, fontsize=7, ha="right", va="top")
    axes.set(xlim=(left, right), ylim=(low, high))
