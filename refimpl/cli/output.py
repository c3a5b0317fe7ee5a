"""What commands print: aligned tables for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from refimpl.storage import json_text


def print_json(content: Any) -> None:
    """`content` as JSON on stdout; NaN and infinities become null."""
    click.echo(json_text(content), nl=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Header and rows as aligned text: first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([first, *rest]).rstrip()


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)
