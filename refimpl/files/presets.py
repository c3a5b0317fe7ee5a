"""The settings that a room ships: TOML files in its folder `presets`, chosen by name."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from refimpl.errors import one_of


@dataclass(frozen=True)
class Presets:
    """The presets of one room, such as `refimpl.fewshot`."""

    room: str

    def names(self) -> tuple[str, ...]:
        """The names of the presets, in alphabetical order."""
        files = (resources.files(self.room) / "presets").iterdir()
        return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))

    def read(self, name: str) -> dict[str, Any]:
        """The settings of that name, with their sections; `InputError` for an unknown name."""
        one_of("config", "preset", name, self.names())
        file = resources.files(self.room) / "presets" / f"{name}.toml"
        return tomllib.loads(file.read_text(encoding="utf-8"))

    def keys(self) -> frozenset[str]:
        """The keys that some preset sets."""
        return keys_in(self.read(name) for name in self.names())


def keys_in(tables: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The keys of tables of settings and of the sections within them, without the names of sections."""
    entries = [entry for table in tables for entry in table.items()]
    return frozenset(
        key for name, content in entries for key in (content if isinstance(content, Mapping) else (name,))
    )
