"""The kinds of folders that commands write, how each is recognised, and which commands take it."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from refimpl.errors import ConfigError


class Kind(NamedTuple):
    """What a folder holds, and the commands that take it."""

    holds: str
    commands: str

    def __str__(self) -> str:
        return f"{self.holds}; it is for refimpl {self.commands}"


FEDERATED = Kind("a federated run", "adapt, export, report, theory gap or train --resume")
FEWSHOT = Kind("a few-shot run", "fewshot test, fewshot report or fewshot train --resume")
COOPERATIVE = Kind(
    "a run of cooperative learning",
    "cooperative evaluate, cooperative predict, cooperative export or cooperative train --resume, and for "
    "report if all its runs are of this kind",
)
TICKET = Kind("a ticket", "tickets train, tickets patterns or tickets find --resume")
COMPARISON = Kind("a comparison", "report or compare --resume")

BY_SETTING = {"nodes": FEDERATED, "ways": FEWSHOT, "scheme": COOPERATIVE}  # settings of one kind only
BY_FILE = {"ticket.toml": TICKET, "plan.json": COMPARISON}


def kind_of(settings: Collection[str]) -> Kind | None:
    """The kind of run that has settings of these names; None if they do not tell."""
    return next((kind for name, kind in BY_SETTING.items() if name in settings), None)


def expect_kind(wanted: Kind, settings: Collection[str], source: str) -> None:
    """Raise `ConfigError`, which speaks of `source`, if the settings are those of another kind of run."""
    found = kind_of(settings)
    if found not in (None, wanted):
        raise ConfigError(f"{source}: expected {wanted.holds}, found {found}")


def other_kind(path: Path) -> str:
    """What a folder without a run holds, if that is known, as the end of a message that says it has none."""
    found = next((kind for file, kind in BY_FILE.items() if (path / file).is_file()), None)
    return f"it holds {found}" if found else ""
