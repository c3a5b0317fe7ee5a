"""How commands print: aligned tables for people, and JSON for machines."""

import shlex
from collections.abc import Sequence
from typing import Any

import click

from refimpl.cli.app import CHECK_FAILED
from refimpl.cli.options import Session
from refimpl.files.storage import json_text
from refimpl.files.tables import table

__all__ = ["answer", "command_line", "exit_if", "exit_unless", "facts", "print_json", "say_data", "table"]


def print_json(content: Any) -> None:
    """Print `content` as JSON on stdout; NaN and infinities become null."""
    click.echo(json_text(content), nl=False)


def answer(session: Session, content: Any, text: str) -> None:
    """Print the result of a command: `content` as JSON with --json, otherwise `text`."""
    if session.as_json:
        print_json(content)
    else:
        click.echo(text)


def say_data(note: str) -> None:
    """Print a note about the data on stderr, unless it is empty or this command has printed it already."""
    said = click.get_current_context().meta.setdefault(f"{__name__}.data", set())
    if note and note not in said:
        said.add(note)
        click.echo(f"data: {note}", err=True)


def exit_unless(passed: bool) -> None:
    """End the command with exit code 1 if a check failed."""
    if not passed:
        click.get_current_context().exit(CHECK_FAILED)


def exit_if(failure: str) -> None:
    """End the command with exit code 1 and a line that says what failed, unless nothing did."""
    if failure:
        click.echo(f"refimpl: {failure}", err=True)
    exit_unless(not failure)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair on each line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


def command_line(*words: object, session: Session, threads: bool = True) -> str:
    """A command to type next: `refimpl`, the words, and the same data folder (and threads) as before."""
    given = [("--data-dir", session.data_dir), ("--threads", session.threads if threads else None)]
    options = [word for option, value in given if value is not None for word in (option, value)]
    return shlex.join(["refimpl", *map(str, words), *map(str, options)])
