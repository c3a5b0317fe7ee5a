"""What a command has put into the README stands between marks that name the command."""

from __future__ import annotations

END = "<!-- end -->"


def inside(text: str, command: str) -> str:
    """What stands between the marks of a command."""
    return text.split(_start(command))[1].split(END)[0].strip()


def put_into(text: str, command: str, content: str) -> str:
    """The text with `content` between the marks of a command."""
    before, rest = text.split(_start(command))
    return f"{before}{_start(command)}\n{content}\n{END}{rest.split(END, 1)[1]}"


def _start(command: str) -> str:
    return f"<!-- {command} -->"
