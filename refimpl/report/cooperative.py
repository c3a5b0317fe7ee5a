"""Figures of cooperative runs: accuracy of every depth against the FLOPs and the time that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from refimpl.report.canvas import legend_below, looks, new_figure, percent_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
