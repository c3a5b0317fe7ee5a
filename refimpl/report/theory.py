"""Figures of the theory: what its statements say, on problems whose constants are known.

Source: mathematics.md §8; the numbers are those of `theory.rates` and `theory.sweeps`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refimpl.errors import one_of
from refimpl.report.canvas import BLUE, COLOURS, MARKERS, ORANGE, SKY, minus, new_figure, plain_ticks, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILIES = {"attained+": r"$L_i=+\frac{L}{2}\|w\|^2$", "attained-": r"$L_i=-\frac{L}{2}\|w\|^2$"}
CURVATURE_TICKS = (1, 2, 3, 5, 10, 30), (0.2, 0.5, 1, 2, 5, 10, 20)


def _draw_gaps(seed: int) -> Figure:
    """Draw min ||G_j||^2 by round, with the bound of Theorem 1 and the fitted power law."""
    from refimpl.theory import rates

    slow = rates.slow_problems(seed)[::-1]
    curves = [rates.gap_curve(problem, lam, w0, rates.ROUNDS) for problem, lam, w0 in slow]
    figure, panels = new_figure(len(curves))
    for axes, curve in zip(panels, curves, strict=True):
        axes.loglog(curve.rounds, curve.bound, color=ORANGE, ls="--", lw=1.5, label="bound of Theorem 1")
        axes.loglog(curve.rounds, curve.squared, color=SKY, lw=0.8, label=r"$\|G_k\|^2$")
        axes.loglog(curve.rounds, curve.best, color=BLUE, lw=1.8, label=r"$\min_{j\leq k}\|G_j\|^2$")
        k = curve.rounds[curve.fitted]
        label = minus(f"slope {curve.fit.slope:.2f} (95 %: {curve.fit.low:.2f} to {curve.fit.high:.2f})")
        axes.loglog(k, curve.level * k**curve.fit.slope, color="black", ls=":", lw=1.5, label=label)
        axes.set(title=f"{curve.name}, exact local solutions", xlabel="round k", ylabel="squared gap")
        axes.legend(loc="lower left")
    return figure


def _draw_floors(seed: int) -> Figure:
    """Draw floors against local steps, one colour for each lam/L, with the predicted contraction."""
    from refimpl.theory.sweeps import floor_curves

    figure, (axes,) = new_figure(1, 6.4, 4.4)
    for curve, colour, marker in zip(floor_curves(seed), COLOURS, MARKERS, strict=False):
        name = f"$\\lambda = {curve.ratio:g}\\,L$"
        axes.semilogy(curve.steps, curve.floor, marker, color=colour, ms=6, label=name)
        axes.semilogy(curve.steps, curve.predicted, color=colour, lw=1.0)
        line = curve.predicted[-1] * curve.ratio ** (-2.0 * (curve.steps - curve.steps[-1]))
        axes.semilogy(curve.steps, line, color=colour, lw=1.0, ls=":")
    axes.plot([], [], color="black", lw=1.0, label="closed form")
    axes.plot([], [], color="black", lw=1.0, ls=":", label=r"$\propto (L/\lambda)^{2s}$")
    axes.set(
        title="Where the gap stops: quadratic nodes", xlabel="local steps s", ylabel=r"floor of $\|G\|^2$"
    )
    axes.legend(ncols=2)
    return figure


def _draw_curvature(seed: int) -> Figure:
    """Draw the sampled curvature of F over lam/L, with both constants of Lemma 1."""
    from refimpl.theory.sweeps import curvature_curves

    figure, panels = new_figure(2)
    ratio, curves = np.geomspace(1.04, 32.0, 400), curvature_curves(seed)
    printed, other = r"$\lambda L/(\lambda+L)$, printed", r"$\lambda L/(\lambda-L)$"
    for axes, side in zip(panels, ("high", "low"), strict=True):
        axes.loglog(ratio, ratio / (ratio + 1), color="black", lw=1.5, label=printed)
        axes.loglog(ratio, ratio / (ratio - 1), color="black", ls="--", lw=1.5, label=other)
        for (family, samples), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
            x = np.array([sample.ratio for sample in samples])
            y = np.array([sample.high if side == "high" else -sample.low for sample in samples])
            if np.any(y > 0):
                name = FAMILIES.get(family, family)
                axes.loglog(x[y > 0], y[y > 0], marker, color=colour, ms=6, mfc="none", mew=1.5, label=name)
        axes.set(xlabel=r"$\lambda/L$", xlim=(1.0, 35.0), ylim=(0.2, 40.0))
        axes.set_xticks(CURVATURE_TICKS[0], map(str, CURVATURE_TICKS[0]))
        axes.set_yticks(CURVATURE_TICKS[1], map(str, CURVATURE_TICKS[1]))
        axes.minorticks_off()
        axes.legend(loc="upper right")
    panels[0].set(title="Upward: the printed constant holds", ylabel="upward curvature of F, units of L")
    panels[1].set(
        title="Downward: it holds for convex losses only", ylabel="downward curvature of F, units of L"
    )
    return figure


def _draw_spread(seed: int) -> Figure:
    """Draw the floor of one local step against how much the nodes differ."""
    from refimpl.theory.sweeps import spread_sweep

    samples = [sample for sample in spread_sweep(seed) if sample.spread > 0]
    spread, floor = np.array([s.spread for s in samples]), np.array([s.floor for s in samples])
    figure, (axes,) = new_figure(1, 6.4, 4.2)
    axes.loglog(spread, floor, "o", color=BLUE, ms=7, label="measured, one local step")
    axes.loglog(spread, [s.predicted for s in samples], color=BLUE, lw=1.0, label="closed form")
    line = floor[0] * (spread / spread[0]) ** 4
    axes.loglog(spread, line, color=ORANGE, ls="--", lw=1.5, label="fourth power")
    axes.set(
        title=r"Heterogeneity: quadratic nodes, $\lambda = 3L$",
        xlabel="spread of the nodes",
        ylabel=r"floor of $\|G\|^2$",
        ylim=(floor.min() / 5, floor.max() * 50),
    )
    axes.legend()
    return figure


def _draw_arrivals(seed: int) -> Figure:
    """Draw the rounds to a small gap over lam/L, with those that Theorem 1 allows."""
    from refimpl.theory.sweeps import TARGET, arrival_curve

    ratio, rounds, allowed = np.array(arrival_curve(seed)).T
    figure, (axes,) = new_figure(1, 6.4, 4.2)
    axes.loglog(ratio, allowed, color=ORANGE, ls="--", lw=1.5, label="allowed by Theorem 1")
    axes.loglog(ratio, rounds, "o-", color=BLUE, ms=6, lw=1.0, label="measured, exact local solutions")
    exponent = f"10^{{{np.log10(TARGET):.0f}}}"
    axes.set(
        title=f"Rounds to $\\|G\\|^2 \\leq {exponent}$: quadratic nodes",
        xlabel=r"$\lambda/L$",
        ylabel="rounds",
    )
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.legend()
    return figure


THEORY_FIGURES: dict[str, Callable[[int], Figure]] = {
    "gap-by-round": _draw_gaps,
    "floor-by-local-steps": _draw_floors,
    "curvature-of-the-envelope": _draw_curvature,
    "floor-by-heterogeneity": _draw_spread,
    "rounds-by-lambda": _draw_arrivals,
}


def theory_figure(name: str, folder: Path, seed: int = 0) -> Path:
    """Draw one of `THEORY_FIGURES` into `folder`; returns its path."""
    one_of("theory_figure", "figure", name, tuple(THEORY_FIGURES))
    return save(folder / f"{name}.png", lambda: THEORY_FIGURES[name](seed))
