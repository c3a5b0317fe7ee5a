"""Figures of single results, which a result's own method `figure` draws.

Source: mathematics.md §7 and §8.4 (gap and theorem by round).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.report.canvas import BLUE, GREY, ORANGE, SKY, new_figure, plain_ticks, save
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


FIGURES = {Following: follow_figure}  # what draws the results of each class


def draw(result: Any, path: Path) -> Path:
    """Draw the figure of a result into a file; returns its path."""
    return save(path, lambda: FIGURES[type(result)](result))
