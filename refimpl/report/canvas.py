"""How figures look, and how they are written. Only figures need matplotlib (the extra `plot`).

The colours are those of Okabe and Ito, which can be told apart with every common form of colour blindness.
Markers and line styles repeat what the colours say.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.errors import InputError
from refimpl.files.storage import make_folder, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW), ("o", "s", "^", "D", "v")
LINES = ("-", "--", ":", "-.")
GREY = "#595959"
MISSING = "figures need matplotlib, which is not installed; pip install 'refimpl[plot]'"
FEW_DECADES = 1e3  # axes that span a smaller factor have plain numbers
TICKS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), tuple(np.arange(1.0, 10.0, 0.2)))
FEWEST_TICKS = 3
LEAST_PERCENT = 20.0  # an axis of percentages spans at least so many points
MARGIN = 2.0  # points beyond 0 and 100, so that markers are whole
STEPS = (1, 2, 5, 10)  # steps between whole numbers on a linear axis
CHARACTERS, LINE_INCHES = 13.0, 0.2  # a legend's characters in an inch, and inches from line to line
HANDLE = 6  # characters that the sample of a line takes in a legend
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
        raise InputError(MISSING)


def _matplotlib() -> Any:
    """Import matplotlib even if MPLBACKEND names a backend that is not installed.

    Processes that Jupyter starts inherit the name of Jupyter's own backend.
    """
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    backend = os.environ.pop("MPLBACKEND", "")
    try:
        found = import_module("matplotlib")
    finally:
        os.environ.update({"MPLBACKEND": backend} if backend else {})
    if backend:
        with suppress(ValueError):  # the backend is needed only for figures that the caller draws
            found.rcParams["backend"] = backend
    return found


def new_figure(columns: int, width: float = 5.2, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels side by side, which needs no display."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(columns * width, height))
    figure.set_layout_engine("constrained", wspace=0.06)
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def png(draw: Callable[[], Figure]) -> bytes:
    """The figure as PNG, drawn in our style; the user's matplotlib settings are ignored and kept."""
    require_matplotlib()
    matplotlib, content = _matplotlib(), io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        draw().savefig(content, format="png", backend="agg")
    return content.getvalue()


def save(path: Path, draw: Callable[[], Figure]) -> Path:
    """Draw the figure as `png` does and write it, completely or not at all."""
    content = png(draw)
    make_folder(path.parent)
    write_whole(path, content)
    return path


def looks(number: int) -> dict[str, Any]:
    """Colour, marker and line of the numbered series; no two of 25 have both colour and marker in common."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + turn) % len(MARKERS)],
        "ls": LINES[number % len(LINES)],
    }


def minus(text: str) -> str:
    """The number with a typographic minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis, whose limits must be set, with three or more round numbers, but not many."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(FixedLocator(round_numbers(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def ticks_of_few_decades(axis: Axis) -> None:
    """Give a logarithmic axis plain numbers if it spans less than `FEW_DECADES`."""
    low, high = axis.get_view_interval()
    if high < FEW_DECADES * low:
        plain_ticks(axis)


def round_numbers(low: float, high: float) -> list[float]:
    """Round numbers from low to high (0 < low): powers of ten, with steps between them if they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in TICKS:
        every = [step * 10.0**power for power in powers for step in steps]
        found = [number for number in every if low <= number <= high]
        if len(found) >= FEWEST_TICKS:
            break
    return found


def rounds_axis(axes: Axes, last: int) -> None:
    """Make the x axis linear, with whole rounds from 0 to the last."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, 1.03 * max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=STEPS))


def percent_axis(axes: Axes) -> None:
    """Make the y axis span at least `LEAST_PERCENT` points, so that small changes look small."""
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max(high - low, LEAST_PERCENT) / 2
    middle = min(max(middle, half - MARGIN), 100 + MARGIN - half) if half < 50 else 50
    axes.set_ylim(max(middle - half, -MARGIN), min(middle + half, 100 + MARGIN))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True, steps=STEPS))


def legend_below(figure: Figure, handles: Sequence[Any], most: int = 5, title: str | None = None) -> None:
    """Put one legend for all panels under them; the figure grows by its height, and panels keep theirs.

    It has as many columns as its longest label admits, and at most `most`. Longer labels are wrapped.
    """
    width = int(figure.get_figwidth() * CHARACTERS) - HANDLE
    labels = [fill(str(handle.get_label()), width) for handle in handles]
    longest = max(len(line) for label in labels for line in label.splitlines())
    columns = max(1, min(most, len(labels), width // (longest + HANDLE)))
    lines = sum(label.count("\n") + 1 for label in labels) / columns + (title is not None)
    figure.set_figheight(figure.get_figheight() + LINE_INCHES * lines)
    look: dict[str, Any] = {"fontsize": 9, "title": title, "title_fontsize": 9, "alignment": "left"}
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, **look)


def say(axes: Axes, text: str, colour: str = GREY) -> None:
    """Write a word into the middle of a panel that needs an explanation."""
    look: dict[str, Any] = {"ha": "center", "va": "center", "color": colour, "fontsize": 11}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, **look)
