"""What commands print: aligned tables for people, JSON for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from refimpl.storage import json_text
from refimpl.tables import table

__all__ = ["facts", "print_json", "table"]


def print_json(content: Any) -> None:
    """`content` as JSON on stdout; NaN and infinities become null."""
    click.echo(json_text(content), nl=False)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)
