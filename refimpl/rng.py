"""Randomness as an argument: one seed, a tree of independent streams.

A stream is named by its purpose (a word), the round and the node, never by the order in which
it is asked for; so nodes may run in any order, on any thread, and a resumed run draws the same
numbers as an uninterrupted one.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.errors import InputError


@dataclass(frozen=True)
class SeedTree:
    """Root of all random streams of a run.

    `generator(purpose, round_, node)` is a pure function of (seed, purpose, round_, node).
    Streams are PCG64 generators spawned through `numpy.random.SeedSequence`, whose entropy
    mixing makes them independent for all practical purposes.
    """

    seed: int

    def __post_init__(self) -> None:
        if not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            raise InputError(f"SeedTree: expected a non-negative whole number as seed, got {self.seed!r}")

    def generator(self, purpose: str, round_: int = 0, node: int = 0) -> np.random.Generator:
        """The stream for `purpose` in round `round_` at node `node`."""
        key = (int(self.seed), zlib.crc32(purpose.encode()), round_, node)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class NodeStreams(Sequence[np.random.Generator]):
    """The streams of a purpose in a round at some nodes, each made when it is asked for.

    Making one takes 20 us, which matters for nodes of a few samples: most of them need no random numbers.
    """

    seeds: SeedTree
    purpose: str
    round_: int
    nodes: Sequence[int]

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, place: Any) -> Any:
        return self.seeds.generator(self.purpose, self.round_, self.nodes[place])
