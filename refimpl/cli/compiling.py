"""The notice a first run shows while kernels are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from refimpl.cli.progress import Progress

EVERY = 20  # functions between two plain lines


@contextmanager
def notice(progress: Progress) -> Iterator[list[str]]:
    """Within the context, show that kernels are being compiled if they are; yields the names so far."""
    from refimpl.kernels.compiling import watch

    names: list[str] = []

    def told(name: str) -> None:
        names.append(name)
        if len(names) == 1:
            progress.say("compiling kernels for this machine, once; this takes about a minute")
        elif len(names) % EVERY == 0:
            progress.say(f"compiling kernels: {len(names)} functions so far")

    with watch(told):
        yield names
