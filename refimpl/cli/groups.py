"""Groups of commands that say what was probably meant."""

from __future__ import annotations

import difflib

import click


class SuggestingGroup(click.Group):
    """A group that suggests the nearest of its commands for a name it does not have."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command named by args[0]; for an unknown name, suggest the nearest, or list all."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)
