"""A ticket on disk: its mask, the weights that training starts from, how it was found and what that cost.

A folder has `ticket.toml` and `data.json`, which says on which data the ticket is found, from the beginning;
`ticket.json` comes last and says that the ticket is complete.

Source: mathematics.md §14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.data.identity import Identity
from refimpl.errors import DataError, RunError
from refimpl.experiments.config import read_toml
from refimpl.experiments.record import DATA, check_free, kind_at
from refimpl.fewshot.config import FewShotConfig, from_table
from refimpl.fewshot.tickets.masks import Mask, load_mask
from refimpl.files.folders import building, move_into_place
from refimpl.files.storage import (
    check_like,
    json_text,
    make_folder,
    npz_bytes,
    read_entries,
    read_npz,
    toml_text,
    write_whole,
)
from refimpl.nn.layout import Layout
from refimpl.registry import FINDERS, check_keys, key, keys_of

SETTINGS, FACTS, MASK, START = "ticket.toml", "ticket.json", "mask.npz", "start.npz"
DENSE, TRAINED, TRACE, LOCK = "dense", "trained", "masks", ".lock"
OWN_FILES = frozenset({SETTINGS, FACTS, DATA, MASK, START, DENSE, TRAINED, TRACE, "rounds", "report", LOCK})


@dataclass(frozen=True)
class TicketConfig:
    """What is to be found, besides the settings of the few-shot run and those of the finder."""

    finder: str = key("pmt", "how the ticket is found", choices=FINDERS)
    pruned: float = key(0.8, "share of the convolution weights that is pruned", at_least=0.0, below=1.0)
    every: int = key(0, "iterations of dense training between masks for `patterns` (0: none)", at_least=0)
    dense: str = key("", "finished dense run of refimpl fewshot train, which saves training it again")

    def __post_init__(self) -> None:
        check_keys("config", self)


class Settings(NamedTuple):
    """Everything that determines a ticket: the dense run, what is to be found, and the finder."""

    run: FewShotConfig
    ticket: TicketConfig
    finder: Any

    def table(self) -> dict[str, Any]:
        """The settings as one flat table."""
        parts = (self.ticket, self.finder)
        return self.run.table() | {name: getattr(part, name) for part in parts for name in keys_of(part)}


def settings_from(table: Mapping[str, Any], source: str) -> Settings:
    """The settings in a flat table, which messages call `source`; keys of other finders are left out."""
    ticket = TicketConfig(**{one.name: table[one.name] for one in fields(TicketConfig) if one.name in table})
    finder = FINDERS.make(ticket.finder, table)
    check_keys("config", finder)
    others = {*keys_of(TicketConfig), *FINDERS.keys()}
    run = from_table({name: value for name, value in table.items() if name not in others}, source)
    return Settings(run, ticket, finder)


class Ticket(NamedTuple):
    """A mask, and the weights w (d,) that training under it starts from; they are not masked."""

    mask: Mask
    start: np.ndarray

    def save(self, folder: Path, layout: Layout, facts: Mapping[str, Any]) -> None:
        """Write the ticket and what is known about it."""
        make_folder(folder)
        self.mask.save(folder / MASK)
        write_whole(folder / START, npz_bytes(layout.to_arrays(self.start)))
        counts = dict(zip(self.mask.layers, self.mask.counts, strict=True))
        sizes = {name: kept.size for name, kept in self.mask.layers.items()}
        content = {**facts, "kept": counts, "weights": sizes}
        write_whole(folder / FACTS, json_text(content).encode())


def load_ticket(folder: Path, layout: Layout, dtype: str) -> Ticket:
    """The finished ticket in a folder, for a network of that layout."""
    facts_of(folder)
    mask, arrays = load_mask(folder / MASK), read_npz(folder / START)
    mask.over(layout)  # says so where the network is another
    check_like(folder / START, arrays, layout.views(np.empty(layout.size, dtype)))
    return Ticket(mask, layout.from_arrays(arrays, dtype))


def facts_of(folder: Path) -> dict[str, Any]:
    """What is known about a finished ticket: counts, FLOPs and seconds of finding, and more."""
    if not (folder / FACTS).is_file():
        begun = (folder / SETTINGS).is_file()
        if begun:
            hint = f"none; finish it with refimpl tickets find --resume --out {folder}"
        else:
            hint = str(kind_at(folder) or "none; give its folder")
        raise RunError(f"{folder}: expected a finished ticket, found {hint}")
    kinds = {"finder": str, "kept": dict, "weights": dict, "flops": float, "seconds": float}
    facts = read_entries(folder / FACTS, "facts of a ticket", **kinds)
    if facts["kept"].keys() != facts["weights"].keys():
        raise DataError(
            f"{folder / FACTS}: expected the same layers in kept and weights; find the ticket anew"
        )
    return facts


def check_new(path: Path, force: bool) -> None:
    """Raise `RunError` unless a ticket may be made at `path`; one that is there is replaced with `force`."""
    check_free(path, force, SETTINGS, OWN_FILES, "a ticket's folder")


def begin(path: Path, settings: Settings, data: Identity, force: bool = False) -> None:
    """Make the folder of a new ticket, found on those data; see `check_new`."""
    check_new(path, force)
    with building(path) as folder:
        write_whole(folder / DATA, json_text(data.table()).encode())
        write_whole(folder / SETTINGS, toml_text(settings.table()).encode())
        move_into_place(folder, path, SETTINGS, [path / LOCK] if force and path.exists() else [])


def settings_of(path: Path) -> Settings:
    """The settings a ticket was begun with."""
    if not (path / SETTINGS).is_file():
        found = kind_at(path) or f"no {SETTINGS}; begin one with refimpl tickets find"
        raise RunError(f"{path}: expected a ticket, found {found}")
    return settings_from(read_toml(path / SETTINGS), str(path / SETTINGS))
