"""Heat maps of the gates: which classes open which channels, and which channels vary between samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.report.canvas import STEPS, minus, say
from refimpl.report.gather import View
from refimpl.report.measure import Openings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARES, CHANGES = "cividis", "PuOr"  # both colour maps read alike with every form of colour blindness
MANY = 20  # with more classes than this, not every one is numbered


def gates_figure(view: View) -> Figure:
    """Maps for each gated layer: by class before adaptation, after it, and the change; variation by node."""
    from matplotlib.figure import Figure as Canvas

    rows = len(view.openings)
    height = 0.3 + sum(_height(one) for one in view.openings)
    figure = Canvas(figsize=(19.0, height), layout="constrained")
    grid = np.atleast_2d(figure.subplots(rows, 4, height_ratios=[_height(one) for one in view.openings]))
    for panels, one in zip(grid, view.openings, strict=True):
        _draw_layer(figure, panels, one)
    figure.suptitle(view.label)
    return figure


def _height(one: Openings) -> float:
    """The height in inches of a layer with so many classes and nodes."""
    return 1.6 + 0.22 * min(max(len(one.classes), len(one.varied), 6), 30)


def _draw_layer(figure: Figure, panels: np.ndarray, one: Openings) -> None:
    before, after, change, varied = panels
    layer = one.layer.removesuffix(".gate")
    for axes, share, when in ((before, one.before, "before"), (after, one.after, "after")):
        image = _map(axes, one.classes, 100 * share, f"{layer}: {when} adaptation", SHARES, (0, 100))
        if np.all(share == 1):
            say(axes, "every channel is open for every sample", "black")
        elif not share.any():
            say(axes, "no channel is open for any sample", "white")
    figure.colorbar(image, ax=[before, after], label="channel open, % of test samples", pad=0.01)
    change_map = 100 * (one.after - one.before)
    most = max(1.0, float(np.abs(change_map).max()))
    image = _map(change, one.classes, change_map, f"{layer}: change", CHANGES, (-most, most))
    if not change_map.any():
        say(change, "no change")
    bar = figure.colorbar(image, ax=change, label="change, percentage points", pad=0.02)
    bar.ax.yaxis.set_major_formatter(lambda value, _: minus(f"{value:g}"))
    nodes = range(len(one.varied))
    image = _map(
        varied, nodes, 100 * one.varied, f"{layer}: variation between samples", SHARES, (0, 50), "node"
    )
    if not one.varied.any():
        say(varied, "no channel differs between samples of a node", "white")
    figure.colorbar(image, ax=varied, label="samples unlike their node's majority, %", pad=0.02)


def _map(
    axes: Axes,
    rows: Iterable[int],
    values: np.ndarray,
    title: str,
    colours: str,
    limits: tuple[float, float],
    what: str = "class",
) -> Any:
    """Draw one map, with a row for each class or other thing, and a column for each channel."""
    from matplotlib.ticker import MaxNLocator

    image = axes.imshow(
        values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="none"
    )
    axes.grid(False)
    axes.set(title=title, xlabel="channel", ylabel=what)
    labels = [str(row) for row in rows]
    step = 1 if len(labels) <= MANY else 10
    axes.set_yticks(range(0, len(labels), step), labels[::step])
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=STEPS))
    return image
