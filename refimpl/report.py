"""Figures, the one place that knows matplotlib, which is needed for nothing else (the extra `plot`).

Colours are those of Okabe and Ito, told apart in every common form of colour blindness; markers and line
styles say the same once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from refimpl.errors import InputError, RefimplError, one_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW), ("o", "s", "^", "D", "v")
FAMILIES = {"attained+": r"$L_i=+\frac{L}{2}\|w\|^2$", "attained-": r"$L_i=-\frac{L}{2}\|w\|^2$"}
CURVATURE_TICKS = (1, 2, 3, 5, 10, 30), (0.2, 0.5, 1, 2, 5, 10, 20)
FEW_DECADES = 1e3  # axes that span less have ticks at 1, 2 and 5
STYLE = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 120,
}


def has_matplotlib() -> bool:
    """Whether figures can be drawn."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise `InputError` unless figures can be drawn."""
    if not has_matplotlib():
        raise InputError("figures need matplotlib, which is not installed; pip install 'refimpl[plot]'")


def _figure(columns: int, width: float = 5.2, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels side by side, drawn without any display."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(columns * width, height), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def _save(path: Path, draw: Callable[[], Figure]) -> Path:
    """Draw in our style and write the figure as PNG."""
    require_matplotlib()
    from matplotlib import rc_context

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with rc_context(STYLE):
            draw().savefig(path)
    except OSError as error:
        raise RefimplError(f"{path}: cannot write the figure: {error.strerror or error}") from None
    return path


def _minus(text: str) -> str:
    """Numbers with a proper minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


# --- a run ------------------------------------------------------------------------------------------


class RunGap(Protocol):
    """What is drawn of a point whose true gap is known (`stationarity.GapRow`)."""

    @property
    def round(self) -> int:
        """The round."""

    @property
    def point(self) -> str:
        """Which point of it: its "centre", or the "model" after it."""

    @property
    def true_gap(self) -> float:
        """The true gap."""

    @property
    def spread(self) -> float:
        """Its change with other starting points of the local problems; NaN if not measured."""


def draw_run_gap(path: Path, metrics: Sequence[Mapping[str, Any]], rows: Sequence[RunGap]) -> Path:
    """The server's gap by round, and the true gap where it is known, log-log; returns the path."""
    return _save(path, lambda: _draw_run_gap(metrics, rows))


def _draw_run_gap(metrics: Sequence[Mapping[str, Any]], rows: Sequence[RunGap]) -> Figure:
    figure, (axes,) = _figure(1, 6.4, 4.2)
    rounds = [entry["round"] for entry in metrics]
    server = [np.nan if entry["gap"] is None else entry["gap"] for entry in metrics]
    axes.loglog(rounds, server, color=BLUE, lw=1.2, label="server's gap (mini-batches, local steps)")
    for kind, marker, where in (("centre", "o", "at the same point"), ("model", "D", "at the meta-model")):
        chosen = [row for row in rows if row.point == kind]
        if chosen:
            x, y, bar = np.array([(row.round, row.true_gap, row.spread) for row in chosen]).T
            axes.loglog(x, y, marker, color=ORANGE, ms=6, label=f"true gap {where} (bar: other starts)")
            axes.vlines(x, np.maximum(y - bar, 0.5 * y), y + bar, color=ORANGE, lw=1.5)
    axes.set(xlabel="round k", ylabel="norm of the gradient mapping", title="Stationarity gap of the run")
    axes.legend()
    _plain_ticks(axes.xaxis)
    low, high = axes.get_ylim()
    if high < FEW_DECADES * low:
        _plain_ticks(axes.yaxis)
    return figure


def _plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


# --- a comparison -----------------------------------------------------------------------------------


class AccuracyByRound(Protocol):
    """What is drawn of a row whose accuracy was measured by round (`comparison.summary.Curve`)."""

    @property
    def label(self) -> str:
        """The row's name."""

    @property
    def rounds(self) -> Sequence[int]:
        """Where it was measured."""

    @property
    def mean(self) -> Sequence[float]:
        """Mean over seeds, a share."""

    @property
    def std(self) -> Sequence[float]:
        """Standard deviation over seeds; NaN for one seed."""


class Point(Protocol):
    """What is drawn of a row between accuracy and work (`comparison.summary.Row`)."""

    @property
    def label(self) -> str:
        """The row's name."""

    @property
    def method(self) -> str:
        """The method, whose rows are joined."""

    @property
    def flops_dense(self) -> float:
        """Of one sample, without gates."""

    @property
    def flops_executed(self) -> float:
        """Of one sample, as it was computed."""

    @property
    def accuracy_adapted_last_mean(self) -> float:
        """Mean over seeds, a share."""

    @property
    def accuracy_adapted_last_std(self) -> float:
        """Standard deviation over seeds; NaN for one seed."""


def _looks(number: int) -> dict[str, Any]:
    """Colour, marker and line of the numbered series; no two of 25 have both colour and marker in common."""
    lines = ("-", "--", ":", "-.")
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + turn) % len(MARKERS)],
        "ls": lines[turn % len(lines)],
    }


def draw_accuracy(path: Path, curves: Sequence[AccuracyByRound]) -> Path:
    """Adapted accuracy by round, a line for each row with its spread over seeds; returns the path.

    Source: [MG] Figure 4.
    """
    return _save(path, lambda: _draw_accuracy(curves))


def _draw_accuracy(curves: Sequence[AccuracyByRound]) -> Figure:
    figure, (axes,) = _figure(1, 6.4, 4.4)
    for number, curve in enumerate(curves):
        looks, mean = _looks(number), 100 * np.array(curve.mean)
        spread = 100 * np.nan_to_num(np.array(curve.std))
        axes.plot(curve.rounds, mean, ms=4, lw=1.4, label=curve.label, **looks)
        axes.fill_between(curve.rounds, mean - spread, mean + spread, color=looks["color"], alpha=0.12, lw=0)
    axes.set(xlabel="round", ylabel="accuracy after adaptation, %", title="Target nodes")
    axes.legend()
    return figure


def draw_frontier(path: Path, points: Sequence[Point]) -> Path:
    """Adapted accuracy against executed FLOPs, the rows of a method joined; returns the path."""
    return _save(path, lambda: _draw_frontier(points))


def _draw_frontier(points: Sequence[Point]) -> Figure:
    figure, (axes,) = _figure(1, 6.4, 4.4)
    for number, method in enumerate(dict.fromkeys(point.method for point in points)):
        own = sorted((p for p in points if p.method == method), key=lambda p: p.flops_executed)
        x = [100 * p.flops_executed / p.flops_dense for p in own]
        y = [100 * p.accuracy_adapted_last_mean for p in own]
        bars = [100 * p.accuracy_adapted_last_std for p in own]
        axes.errorbar(x, y, np.nan_to_num(bars), ms=6, lw=1.2, capsize=2, label=method, **_looks(number))
        for point, left, up in zip(own, x, y, strict=True):
            setting = point.label.removeprefix(method).strip()
            axes.annotate(setting, (left, up), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(
        xlabel="executed FLOPs, % of the dense network's",
        ylabel="accuracy after adaptation, %",
        title="Accuracy against work",
    )
    axes.legend()
    return figure


# --- the theory -------------------------------------------------------------------------------------


def _draw_gaps(seed: int) -> Figure:
    """min ||G_j||^2 by round, with the bound of Theorem 1 and the fitted power law."""
    from refimpl.theory.curves import gap_curves

    curves = gap_curves(seed)
    figure, panels = _figure(len(curves))
    for axes, curve in zip(panels, curves, strict=True):
        axes.loglog(curve.rounds, curve.bound, color=ORANGE, ls="--", lw=1.5, label="bound of Theorem 1")
        axes.loglog(curve.rounds, curve.squared, color=SKY, lw=0.8, label=r"$\|G_k\|^2$")
        axes.loglog(curve.rounds, curve.best, color=BLUE, lw=1.8, label=r"$\min_{j\leq k}\|G_j\|^2$")
        k = curve.rounds[curve.fitted]
        label = _minus(f"slope {curve.fit.slope:.2f} (95 %: {curve.fit.low:.2f} to {curve.fit.high:.2f})")
        axes.loglog(k, curve.level * k**curve.fit.slope, color="black", ls=":", lw=1.5, label=label)
        axes.set(title=f"{curve.name}, exact local solutions", xlabel="round k", ylabel="squared gap")
        axes.legend(loc="lower left")
    return figure


def _draw_floors(seed: int) -> Figure:
    """Floors against local steps, one colour for each lam/L, with the predicted contraction."""
    from refimpl.theory.curves import floor_curves

    figure, (axes,) = _figure(1, 6.4, 4.4)
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
    """Sampled curvature of F over lam/L, with both constants of Lemma 1."""
    from refimpl.theory.curves import curvature_curves

    figure, panels = _figure(2)
    ratio, curves = np.geomspace(1.04, 32.0, 400), curvature_curves(seed)
    printed, other = r"$\lambda L/(\lambda+L)$, printed", r"$\lambda L/(\lambda-L)$"
    for axes, side in zip(panels, ("high", "low"), strict=True):
        axes.loglog(ratio, ratio / (ratio + 1), color="black", lw=1.5, label=printed)
        axes.loglog(ratio, ratio / (ratio - 1), color="black", ls="--", lw=1.5, label=other)
        for curve, colour, marker in zip(curves, COLOURS, MARKERS, strict=False):
            x = np.array([sample.ratio for sample in curve.samples])
            y = np.array([sample.high if side == "high" else -sample.low for sample in curve.samples])
            if np.any(y > 0):
                name = FAMILIES.get(curve.name, curve.name)
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
    """The floor of one local step against how much the nodes differ."""
    from refimpl.theory.sweeps import spread_sweep

    samples = [sample for sample in spread_sweep(seed) if sample.spread > 0]
    spread, floor = np.array([s.spread for s in samples]), np.array([s.floor for s in samples])
    figure, (axes,) = _figure(1, 6.4, 4.2)
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
    """Rounds to a small gap over lam/L, against what Theorem 1 allows."""
    from refimpl.theory.curves import arrival_curve
    from refimpl.theory.sweeps import TARGET

    ratio, rounds, allowed = np.array(arrival_curve(seed)).T
    figure, (axes,) = _figure(1, 6.4, 4.2)
    axes.loglog(ratio, allowed, color=ORANGE, ls="--", lw=1.5, label="allowed by Theorem 1")
    axes.loglog(ratio, rounds, "o-", color=BLUE, ms=6, lw=1.0, label="measured, exact local solutions")
    exponent = f"10^{{{np.log10(TARGET):.0f}}}"
    axes.set(
        title=f"Rounds to $\\|G\\|^2 \\leq {exponent}$: quadratic nodes",
        xlabel=r"$\lambda/L$",
        ylabel="rounds",
    )
    _plain_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
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
    return _save(folder / f"{name}.png", lambda: THEORY_FIGURES[name](seed))
