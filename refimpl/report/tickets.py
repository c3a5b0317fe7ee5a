"""Figures of tickets: shares by layer, what tickets share, and how masks change in dense training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.report.canvas import legend_below, looks, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tickets_figure(found: Mapping[str, Any]) -> Figure:
    """By layer: the share that each ticket prunes, and the share that the first g of them keep in common."""
    layers = [*found["pruned"]]
    figure, panels = new_figure(2, 6.0, 4.2)
    for axes, rows, label in (
        (panels[0], np.array([*found["pruned"].values()]).T, found["tickets"]),
        (panels[1], np.array([*found["overlap"].values()]).T, None),
    ):
        for number, row in enumerate(rows):
            name = label[number] if label else f"{number + 1}"
            axes.plot(range(len(layers)), 100 * row, ms=4, lw=1.2, label=name, **looks(number))
        axes.set(xlabel="layer", xticks=range(len(layers)))
        axes.set_xticklabels([name.removesuffix(".weight") for name in layers], rotation=45, ha="right")
    panels[0].set(ylabel="% pruned", title="Pruned weights")
    panels[1].set(ylabel="% of kept weights", title="Kept by all of the first g tickets", ylim=(0, 105))
    legend_below(figure, panels[0].get_lines())
    return figure


def training_figure(found: Mapping[str, Any]) -> Figure:
    """Occurrence of the last mask by iteration, and the distances of the first and of the last layer."""
    layers, at = [*found["occurrence"]], found["iterations"]
    figure, panels = new_figure(3, 5.0, 4.2)
    for number, name in enumerate(layers):
        shares = 100 * np.array(found["occurrence"][name])
        panels[0].plot(at, shares, ms=4, lw=1.2, label=name.removesuffix(".weight"), **looks(number))
    panels[0].set(xlabel="iteration", ylabel="% of the last mask", title="Occurrence", ylim=(0, 105))
    for axes, name in zip(panels[1:], (layers[0], layers[-1]), strict=True):
        half = (at[-1] - at[0]) / (2 * max(1, len(at) - 1)) or 0.5  # of the width of a cell
        span = (at[0] - half, at[-1] + half)
        image = axes.imshow(found["hamming"][name], origin="lower", extent=(*span, *span), cmap="viridis")
        axes.grid(False)
        axes.set(title=f"Hamming distance, {name.removesuffix('.weight')}", xlabel="iteration")
        figure.colorbar(image, ax=axes, shrink=0.8)
    legend_below(figure, panels[0].get_lines())
    return figure


def comparison_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy of each finder's tickets by the share pruned, its spread over seeds, and the dense network.

    rows: of `comparison.json`.
    """
    figure, (axes,) = new_figure(1, 6.0, 4.2)
    dense, *others = rows
    if dense["accuracy"] is not None:
        axes.axhline(100 * dense["accuracy"], color="0.4", lw=1.2, ls="--", label="dense")
    for number, name in enumerate(dict.fromkeys(row["network"] for row in others)):
        own = [row for row in others if row["network"] == name]
        at, mean, spread = (
            100 * np.array([row[what] for row in own], dtype=float)
            for what in ("pruned", "accuracy", "spread")
        )
        aside, spread = at + 0.4 * number, np.nan_to_num(spread)  # bars of several finders stand apart
        axes.errorbar(aside, mean, spread, ms=4, lw=1.2, capsize=2, label=name, **looks(number))
    axes.set(xlabel="% of the convolution weights pruned", ylabel="accuracy %, mean +- deviation over seeds")
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return figure
