"""How figures look, and how they are written; matplotlib is needed for nothing else (the extra `plot`).

Colours are those of Okabe and Ito, told apart in every common form of colour blindness; markers and line
styles say the same once more.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.errors import InputError, RefimplError
from refimpl.storage import reason, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW), ("o", "s", "^", "D", "v")
LINES = ("-", "--", ":", "-.")
GREY = "#595959"
MISSING = "figures need matplotlib, which is not installed; pip install 'refimpl[plot]'"
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
        raise InputError(MISSING)


def new_figure(columns: int, width: float = 5.2, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels side by side, drawn without any display."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(columns * width, height), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def png(draw: Callable[[], Figure]) -> bytes:
    """The figure drawn in our style, as PNG."""
    require_matplotlib()
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context(STYLE):
        draw().savefig(content, format="png")
    return content.getvalue()


def save(path: Path, draw: Callable[[], Figure]) -> Path:
    """Draw in our style and write the figure as PNG, whole or not at all."""
    content = png(draw)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefimplError(f"{path}: cannot write the figure: {reason(error)}") from None
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
    """Numbers with a proper minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
