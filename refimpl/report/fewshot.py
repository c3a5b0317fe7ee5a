"""Figures of few-shot runs: loss and validation accuracy by iteration, and accuracy in the test episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refimpl.errors import DataError
from refimpl.files.storage import read_entries
from refimpl.report.canvas import (
    legend_below,
    looks,
    new_figure,
    percent_axis,
    rounds_axis,
    ticks_of_few_decades,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 100  # of a curve of loss, each the mean over a stretch of iterations
MARKS = 12  # markers on such a curve


class Trained(NamedTuple):
    """A run: its name, its records by iteration, and its last test (none: empty)."""

    label: str
    records: Sequence[Mapping[str, Any]]
    test: Mapping[str, Any]


def read_test(path: Path) -> dict[str, Any]:
    """A run's last test from a file; empty if there is none."""
    if not path.is_file():
        return {}
    numbers = (int, float, type(None))
    found = read_entries(path, "a few-shot test", accuracy=numbers, half=numbers, accuracies=list)
    if not all(isinstance(value, numbers) for value in found["accuracies"]):
        raise DataError(f"{path}: expected accuracies as numbers, found something else; test the run again")
    return found


def training_figure(runs: Sequence[Trained]) -> Figure:
    """Loss by iteration, mean over stretches of iterations, and validation accuracy if there is any."""
    checked = [[r for r in run.records if r.get("validation") is not None] for run in runs]
    figure, panels = new_figure(2 if any(checked) else 1, 6.0, 4.2)
    for number, (run, points) in enumerate(zip(runs, checked, strict=True)):
        stretches = np.array_split(np.arange(len(run.records)), min(POINTS, len(run.records)))
        loss = [np.mean([run.records[i]["loss"] for i in stretch]) for stretch in stretches]
        last = [stretch[-1] + 1 for stretch in stretches]
        every = max(1, len(last) // MARKS)
        panels[0].plot(last, loss, ms=4, lw=1.2, markevery=every, label=run.label, **looks(number))
        if points:
            accuracy = [100 * r["validation"] for r in points]
            panels[1].plot([r["round"] for r in points], accuracy, ms=4, lw=1.2, **looks(number))
    panels[0].set(xlabel="iteration", ylabel="loss after the inner steps", title="Training", yscale="log")
    ticks_of_few_decades(panels[0].yaxis)
    for axes in panels[1:]:
        axes.set(xlabel="iteration", ylabel="accuracy %", title="Validation episodes")
        percent_axis(axes)
    for axes in panels:
        rounds_axis(axes, max(len(run.records) for run in runs))
    legend_below(figure, panels[0].get_lines())
    return figure


def accuracy_figure(runs: Sequence[Trained]) -> Figure:
    """Accuracy of each run with its 95 % interval, and in how many episodes it was how high."""
    figure, (means, spread) = new_figure(2, 6.0, 4.2)
    for number, run in enumerate(runs):
        look = {**looks(number), "ls": ""}
        mean, half = 100 * np.array([run.test["accuracy"], run.test["half"]], dtype=float)
        means.errorbar([mean], [number], xerr=[half], ms=6, capsize=4, label=run.label, **look)
        # Sorting puts NaN, which stands for an episode that diverged, last.
        values = 100 * np.sort(np.array(run.test["accuracies"], dtype=float))
        share = 100 * np.arange(1, len(values) + 1) / len(values)
        spread.step(values, share, where="post", lw=1.4, color=look["color"], ls=looks(number)["ls"])
    means.set(xlabel="accuracy %", title="Mean over test episodes, 95 % interval", yticks=[])
    means.margins(y=0.3)
    spread.set(xlabel="accuracy % in an episode", ylabel="% of episodes at most so high", title="Episodes")
    legend_below(figure, means.get_legend_handles_labels()[0])
    return figure
