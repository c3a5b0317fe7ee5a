"""Episodes as learning problems: the tasks of a round, each drawn when its turn comes.

Source: mathematics.md §13.1 (episodes); Vinyals et al. 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.contracts import Objective
from refimpl.data.episodes import Episodes
from refimpl.data.node import Node, Samples
from refimpl.nn.network import Network
from refimpl.nn.task import NetworkTask
from refimpl.nn.weightmask import WeightMask
from refimpl.rng import SeedTree


@dataclass(frozen=True, eq=False)
class EpisodeTask:
    """The episode that the seed tree has for (purpose, round, number), and a network to learn it with.

    It is drawn when it is used, by the thread that uses it, and not kept: a test has many.
    weights: those that a ticket keeps.
    """

    network: Network
    episodes: Episodes
    seeds: SeedTree
    purpose: str
    round: int
    number: int
    dtype: str = "float32"
    weights: WeightMask | None = None

    @property
    def size(self) -> int:
        """Number of samples to learn from."""
        return self.episodes.ways * (self.episodes.shots + self.episodes.queries)

    @property
    def node(self) -> Node:
        """The samples, drawn anew: support and query, or support and test."""
        rng = self.seeds.generator(self.purpose, self.round, self.number)
        return self.episodes.draw(rng, self.dtype, f"{self.purpose} {self.round}.{self.number}")

    def draw(self, rng: np.random.Generator, count: int) -> Sequence[Objective]:
        """The loss of all support samples for `count` - 1 inner steps, then that of all query samples."""
        node, network, weights = self.node, self.network, self.weights
        inner = losses(network, node.support, count - 1, weights)
        return [*inner, *losses(network, node.query, 1, weights)]

    def mixed(self, rng: np.random.Generator, count: int, batch_size: int) -> Sequence[Objective]:
        """Losses of `count` batches of support and query samples together (of all of them for size 0)."""
        task = NetworkTask(
            self.network, *self.node.train, train=("theta",), batch_size=batch_size, weights=self.weights
        )
        return list(task.draw(rng, count))


def losses(
    network: Network, samples: Samples, count: int, weights: WeightMask | None = None
) -> Sequence[Objective]:
    """The network's loss on all the samples, `count` times; weights: those that a ticket keeps."""
    task = NetworkTask(network, *samples, train=("theta",), weights=weights)
    return list(task.draw(np.random.default_rng(0), count))
