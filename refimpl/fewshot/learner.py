"""The few-shot methods: what the inner loop moves, and what gradient a task sends back.

They run on the rounds of the federated methods. The nodes of a round are fresh episodes, each of which
answers with its meta-gradient at w, and the server takes one step of its optimiser along their mean.

Source: mathematics.md §13.2; Finn et al. 2017 (MAML, first-order MAML), Nichol et al. 2018 (Reptile), Raghu
et al. 2020 (ANIL), Oh et al. 2021 (BOIL).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from refimpl.contracts import LocalSolution, Objective, State, Task
from refimpl.federated.local import Tally
from refimpl.federated.methods.averaging import OneModel
from refimpl.federated.methods.maml import carry_back
from refimpl.federated.methods.meta import gradient_at, look_ahead
from refimpl.fewshot.outer import Outer
from refimpl.fewshot.tasks import EpisodeTask
from refimpl.kernels import vector
from refimpl.nn.layout import Layout


class Kind(NamedTuple):
    """What distinguishes a method: which layers its inner loop moves, and how it looks at the inner steps.

    moves: `all`, the `head` (the last layer), or the `body` (all others); exact: whether the derivatives go
    back through the inner steps; follows: whether it steps towards where the inner loop ended instead.
    """

    moves: str = "all"
    exact: bool = False
    follows: bool = False


KINDS = {
    "maml": Kind(exact=True),
    "fomaml": Kind(),
    "reptile": Kind(follows=True),
    "anil": Kind("head", exact=True),
    "boil": Kind("body", exact=True),
}


def movable(layout: Layout, moves: str, mask: np.ndarray | None = None) -> np.ndarray | None:
    """Where the inner loop moves w, as booleans (d,); None where it moves all of it.

    mask (d,): where w may be other than zero, if a ticket says so.
    """
    if moves == "all":
        return mask
    head = layout.slots[-1].name.rpartition(".")[0]
    inside = np.zeros(layout.size, dtype=bool)
    for slot in layout.slots:
        inside[slot.start : slot.stop] = (slot.name.rpartition(".")[0] == head) == (moves == "head")
    return inside if mask is None else inside & mask


@dataclass(frozen=True, kw_only=True)
class Learner(OneModel):
    """A few-shot method with its settings, as a federated `Method`.

    alpha, inner_steps: of the inner loop; batch_size: samples of an inner step of reptile (0: all); moves,
    mask: booleans (d,), where the inner loop moves w and where w may be other than zero (None: everywhere).
    """

    name: str
    outer: Outer
    alpha: float
    inner_steps: int
    exact: bool = False
    follows: bool = False
    batch_size: int = 0
    moves: np.ndarray | None = None
    mask: np.ndarray | None = None

    def start(self, w0: np.ndarray) -> State:
        """The model and the vectors of the optimiser."""
        w = w0.copy() if self.mask is None else self.mask * w0
        return {"w": w, **self.outer.start(w)}

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """The task's meta-gradient at `point` (d,), in place of a solution.

        The loss is that of the query samples after the inner steps; for reptile, of the first inner step.
        """
        tally, episode = Tally(), cast(EpisodeTask, task)
        if self.follows:
            loss, d = self._towards_end(point, episode.mixed(rng, self.inner_steps, self.batch_size), tally)
        else:
            *inners, outer = episode.draw(rng, self.inner_steps + 1)
            points = look_ahead(point, inners, self.alpha, tally, self.moves)
            loss, d = gradient_at(outer, points.pop(), tally)
            if self.exact:
                d = carry_back(d, inners, points, self.alpha, tally, self.moves)
        d = d if self.mask is None else self.mask * d
        return tally.solution(d, loss, float(vector.norm(d)))

    def _towards_end(
        self, w: np.ndarray, batches: Sequence[Objective], tally: Tally
    ) -> tuple[float, np.ndarray]:
        """The loss of the first batch, and w minus the end of one step on each of them."""
        first, end = math.nan, w
        for batch in batches:
            loss, gradient = gradient_at(batch, end, tally)
            first = loss if math.isnan(first) else first
            end = end - w.dtype.type(self.alpha) * (gradient if self.moves is None else self.moves * gradient)
        return first, w - end

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """One step of the optimiser along the mean of the gradients; there is no gradient mapping."""
        return self.outer.step(state, round_, point, mean), math.nan

    def adapt(self, w: np.ndarray, support: Sequence[Objective]) -> np.ndarray:
        """The parameters after one inner step on each of the objectives, as at a test."""
        return look_ahead(w, support, self.alpha, Tally(), self.moves)[-1]
