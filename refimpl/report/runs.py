"""Figures of runs, all of them in the same axes: training, sparsity over nodes, work against time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from refimpl.report.canvas import FEW_DECADES, GREY, looks, new_figure, plain_ticks
from refimpl.report.gather import View, trainings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPEEDS = tuple(
    step * 10.0**power for power in range(-3, 4) for step in (1, 2, 5)
)  # GFLOP/s of the lines behind work against time
MARKS = 12  # of a curve of many rounds


def training_figure(views: Sequence[View]) -> Figure:
    """Loss by round, and accuracy at the target nodes after adaptation by round."""
    with_accuracy = [view for view in views if view.accuracy or view.reports]
    figure, panels = new_figure(2 if with_accuracy else 1, 6.0, 4.4)
    for number, label, view in trainings(views):
        rounds = [record.round for record in view.records]
        every = max(1, len(rounds) // MARKS)
        loss = [record.loss for record in view.records]
        panels[0].plot(rounds, loss, ms=4, lw=1.2, markevery=every, label=label, **looks(number))
    panels[0].set(xlabel="round", ylabel="loss, mean over nodes", title="Meta-training", yscale="log")
    low, high = panels[0].get_ylim()
    if high < FEW_DECADES * low:
        plain_ticks(panels[0].yaxis)
    panels[0].legend(fontsize=8)
    for axes in panels[1:]:
        _draw_accuracy(axes, views)
    return figure


def _draw_accuracy(axes: Axes, views: Sequence[View]) -> None:
    """The curve where it was measured, else the last round alone."""
    for number, view in enumerate(views):
        points = view.accuracy
        if not points and view.reports:
            points = ((len(view.records), float(np.mean([r.accuracy_after for r in view.reports]))),)
        if points:
            x, y = np.array(points).T
            axes.plot(x, 100 * y, ms=5, lw=1.4, label=view.label, **looks(number))
    axes.set(xlabel="round", ylabel="accuracy after adaptation, %", title="Target nodes, mean")
    axes.legend(fontsize=8)


def sparsity_figure(views: Sequence[View]) -> Figure:
    """Channels off at every target node: mean and spread over its test samples, and the mean over nodes."""
    shown = [(number, view) for number, view in enumerate(views) if closes_channels(view)]
    figure, (axes,) = new_figure(1, 7.2, 4.4)
    for place, (number, view) in enumerate(shown):
        look = {**looks(number), "ls": ""}
        mean = 100 * np.array([report.sparsity_mean for report in view.reports])
        spread = 100 * np.array([report.sparsity_spread for report in view.reports])
        shift = 0.6 * ((place + 0.5) / len(shown) - 0.5)
        x = np.arange(len(mean)) + shift
        label = f"{view.label}: {mean.mean():.1f} \N{PLUS-MINUS SIGN} {mean.std():.1f} over nodes"
        axes.errorbar(x, mean, spread, ms=6, capsize=2, lw=1.2, label=label, **look)
        axes.axhline(mean.mean(), color=look["color"], lw=1.0, ls=looks(number)["ls"], alpha=0.7)
    names = max((view.reports for _, view in shown), key=len)
    axes.set_xticks(range(len(names)), [report.node.split("-")[-1] for report in names])
    axes.set(
        xlabel="target node",
        ylabel="gated channels off, %",
        title="Sparsity after adaptation",
    )
    axes.margins(y=0.25)
    axes.legend(fontsize=8)
    return figure


def closes_channels(view: View) -> bool:
    """Whether the run has adapted nodes whose channels may be off."""
    return any(report.sparsity_mean > 0 for report in view.reports) or bool(view.openings)


def work_figure(views: Sequence[View]) -> Figure:
    """Executed FLOPs against measured seconds: a round, a node's adaptation, a forward pass."""
    figure, panels = new_figure(3, 4.6, 4.7)
    for number, _, view in trainings(views):
        look = {**looks(number), "ls": ""}
        gigaflops = [record.flops / 1e9 for record in view.records]
        panels[0].plot(
            gigaflops, [record.seconds * 1e3 for record in view.records], ms=3.5, alpha=0.5, **look
        )
    for number, view in enumerate(views):
        look = {**looks(number), "ls": "", "label": view.label}
        panels[0].plot([], [], ms=5, **look)
        if view.reports:
            flops = np.array([report.adapt_flops_executed for report in view.reports])
            seconds = np.array([report.seconds_gate + report.seconds_backbone for report in view.reports])
            panels[1].plot(flops / 1e6, seconds * 1e3, ms=5, alpha=0.8, **look)
            passes = np.array([one[1:] for one in view.forward])
            panels[2].plot(passes[:, 0] / 1e3, passes[:, 1] * 1e6, ms=5, alpha=0.8, **look)
            look = {**look, "label": None, "fillstyle": "none"}
            panels[2].plot(passes[:, 2] / 1e3, passes[:, 3] * 1e6, ms=5, alpha=0.8, **look)
    panels[0].set(title="A round of meta-training", xlabel="executed GFLOP", ylabel="time, ms")
    panels[1].set(title="Adaptation of a target node", xlabel="executed MFLOP", ylabel="time, ms")
    panels[2].set(
        title="A test sample (hollow: without gates)", xlabel="executed kFLOP", ylabel="time, \N{MICRO SIGN}s"
    )
    for axes, speed in zip(panels, (1e3, 1.0, 1.0), strict=True):
        _log_axes(axes)
        _draw_speeds(axes, speed)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=9)
    return figure


def _log_axes(axes: Axes) -> None:
    """Logarithmic axes that span at least a factor of four, so that equal work is not blown up."""
    axes.set(xscale="log", yscale="log")
    for get, put in ((axes.get_xlim, axes.set_xlim), (axes.get_ylim, axes.set_ylim)):
        low, high = get()
        middle = np.sqrt(low * high)
        put(min(low, middle / 2), max(high, middle * 2))
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)


def _draw_speeds(axes: Axes, unit: float) -> None:
    """Grey lines of equal speed in GFLOP/s; `unit`: y at x = 1 for 1 GFLOP/s."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for speed in SPEEDS:
        x = np.array([left, right])
        y = x * unit / speed
        if y[1] < low or y[0] > high:
            continue
        axes.plot(x, y, color=GREY, lw=0.7, ls=":", zorder=0)
        at = min(right, high * speed / unit)
        axes.annotate(
            f"{speed:g} GFLOP/s", (at, at * unit / speed), color=GREY, fontsize=7, ha="right", va="top"
        )
    axes.set(xlim=(left, right), ylim=(low, high))
