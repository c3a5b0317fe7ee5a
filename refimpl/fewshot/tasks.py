"""Episodes as learning problems: the tasks of a round, each drawn when its turn comes.

Source: mathematics.md §13.1 (episodes); Vinyals et al. 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refimpl.contracts import Objective
from refimpl.data.episodes import Episodes
from refimpl.data.node import Node, Samples
from refimpl.nn.network import Network
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree


@dataclass(frozen=True, eq=False)
class EpisodeTask:
    """The episode that the seed tree has for (purpose, round, number), and a network to learn it with.

    It is drawn when it is first used, by the thread that uses it.
    """

    network: Network
    episodes: Episodes
    seeds: SeedTree
    purpose: str
    round: int
    number: int
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of samples to learn from."""
        return self.episodes.ways * (self.episodes.shots + self.episodes.queries)

    @cached_property
    def node(self) -> Node:
        """The samples: support and query, or support and test."""
        rng = self.seeds.generator(self.purpose, self.round, self.number)
        return self.episodes.draw(rng, self.dtype, f"{self.purpose} {self.round}.{self.number}")

    def draw(self, rng: np.random.Generator, count: int) -> Sequence[Objective]:
        """The loss of all support samples for `count` - 1 inner steps, then that of all query samples."""
        return [*self._losses(self.node.support, rng, count - 1), *self._losses(self.node.query, rng, 1)]

    def mixed(self, rng: np.random.Generator, count: int, batch_size: int) -> Sequence[Objective]:
        """Losses of `count` batches of support and query samples together (of all of them for size 0)."""
        return self._losses(self.node.train, rng, count, batch_size)

    def support(self, count: int) -> Sequence[Objective]:
        """The loss of all support samples, `count` times."""
        return self._losses(self.node.support, np.random.default_rng(0), count)

    def _losses(
        self, samples: Samples, rng: np.random.Generator, count: int, batch_size: int = 0
    ) -> Sequence[Objective]:
        task = NetworkTask(self.network, *samples, train=("theta",), batch_size=batch_size)
        return list(task.draw(rng, count))
