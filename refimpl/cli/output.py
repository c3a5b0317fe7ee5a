"""How commands print: aligned tables for people, and JSON for machines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import click

from refimpl.cli.app import CHECK_FAILED, USED
from refimpl.cli.options import Session
from refimpl.files.storage import json_text
from refimpl.files.tables import table

__all__ = ["command_line", "exit_unless", "facts", "print_json", "say_data", "table"]


def print_json(content: Any) -> None:
    """Print `content` as JSON on stdout; NaN and infinities become null."""
    click.echo(json_text(content), nl=False)


def say_data(note: str) -> None:
    """Print on stderr what there is to say about the data, if anything."""
    if note:
        click.echo(f"data: {note}", err=True)


def exit_unless(passed: bool) -> None:
    """End the command with exit code 1 if a check failed."""
    if not passed:
        click.get_current_context().exit(CHECK_FAILED)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair on each line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


def command_line(*words: object, session: Session, threads: bool = True) -> str:
    """A command to type next: the words with the same `--use`, data folder (and threads) as before."""
    context = click.get_current_context(silent=True)
    files = context.meta.get(USED, ()) if context else ()
    given = [("--data-dir", session.data_dir), ("--threads", session.threads if threads else None)]
    options = [word for option, value in given if value is not None for word in (option, value)]
    used = [word for file in files for word in ("--use", file)]
    return shlex.join(["refimpl", *used, *map(str, words), *map(str, options)])
