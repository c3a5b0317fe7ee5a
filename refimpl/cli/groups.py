"""Suggestions for misspelt words: the nearest command, option or choice."""

import re
from collections.abc import Mapping
from typing import ClassVar

import click

from refimpl.errors import nearest


class SuggestingGroup(click.Group):
    """A group of commands that answers an unknown name with the nearest one."""

    OTHERWISE: ClassVar[Mapping[str, str]] = {"help": "--help"}  # what to use for names that people expect

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command named by args[0]; for an unknown name, suggest the nearest or list all."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            near = f"did you mean {self.OTHERWISE[name]}?" if name in self.OTHERWISE else nearest(name, known)
            hint = near or f"choose one of {', '.join(known)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


def said(error: click.UsageError) -> str:
    """The error's message, followed by the nearest options or the nearest choice if there are any."""
    if isinstance(error, click.NoSuchOption) and error.possibilities:  # nearest first
        return f"{error.message} Did you mean {' or '.join(error.possibilities[:2])}?"
    if isinstance(error, click.BadParameter) and error.param and isinstance(error.param.type, click.Choice):
        typed = re.match("'(.*?)'", error.message)  # the message begins with these words
        near = nearest(typed[1], error.param.type.choices) if typed else ""
        return error.format_message().replace(error.message, near + error.message)
    return error.format_message()
