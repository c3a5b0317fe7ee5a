"""What the settings of few-shot and of cooperative runs have in common: one flat table of declared keys.

The keys are the same in TOML files, on the command line and in code. Values are taken, each level over the
one before, from: the preset (shipped in the room's `presets/`), a user's file, explicit options. A table may
have sections for methods, whose values come over its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from refimpl.errors import ConfigError, shown
from refimpl.experiments.config import absolute, layer, read_toml
from refimpl.experiments.kinds import Kind, expect_kind
from refimpl.files.presets import Presets
from refimpl.registry import check_keys, keys_of, plain


@dataclass(frozen=True)
class RunSettings:
    """A subclass declares the keys, `dataset` among them, as fields made with `key`.

    kind: of the runs that have these settings; presets: those that are shipped; sections: the methods that a
    table may have sections for, as values of the key `method`.
    """

    kind: ClassVar[Kind]
    presets: ClassVar[Presets]
    sections: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_keys("config", self)

    def table(self) -> dict[str, Any]:
        """The settings as a flat table."""
        return {item.name: plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_table(cls, table: Mapping[str, Any], source: str) -> Self:
        """The settings in a flat table, of which messages speak as `source`; unknown keys are errors."""
        expect_kind(cls.kind, table, source)
        cls._expect_known(table, source)
        return cls(**table)

    @classmethod
    def resolve(cls, file: str | Path | None = None, from_preset: str | None = None, **options: Any) -> Self:
        """The settings from preset, file and explicit options (None: not given)."""
        tables = {
            f"preset {from_preset}": cls.presets.read(from_preset) if from_preset else {},
            str(file): read_toml(file) if file is not None else {},
            "options": {name: value for name, value in options.items() if value is not None},
        }
        defaults = {name: one.default for name, one in keys_of(cls).items()}
        chosen = {name: value for table in (defaults, *tables.values()) for name, value in table.items()}
        values: dict[str, Any] = {}
        for source, table in tables.items():
            values |= cls._layer(table, chosen.get("method"), source)
        whole = cls(**values).table()
        return cls(**{**whole, "dataset": absolute(whole["dataset"])})

    @classmethod
    def _layer(cls, table: Mapping[str, Any], method: Any, source: str) -> dict[str, Any]:
        """What a table says for the method; tables of settings without sections are flat."""
        values = layer(table, cls.sections, method, source) if cls.sections else dict(table)
        cls._expect_known(values, source)
        return values

    @classmethod
    def _expect_known(cls, names: Iterable[str], source: str) -> None:
        for name in names:
            if name not in keys_of(cls):
                raise ConfigError(f"{source}: {shown(name)[1:-1]} is no setting of {cls.kind.holds}")
