"""The server's loop, the same for every method: sample nodes, let them solve, combine their answers, step.

A method is a few pure functions on arrays (`Method`); callers of the generator
`run_rounds` do the stopping, logging and checkpoints. Node results are combined in node order and every
random number depends on (purpose, round, node), so neither the number of threads nor the order in which
nodes run changes a bit.

Source: mathematics.md §4 ([MG] Algorithm 1), §10.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl.contracts import LocalSolution, Method, State, Task
from refimpl.errors import DivergenceError, InputError, expect_numbers, shown
from refimpl.kernels import vector
from refimpl.optim.prox.contract import check_alike
from refimpl.rng import SeedTree
from refimpl.threads import share

DIVERGED_FACTOR = 1e3  # a node's loss above this multiple of the first round's mean loss stops the run


def vectors_of(who: str, state: State, *names: str) -> list[np.ndarray]:
    """The named vectors of a state; raises `InputError` unless it has them, of one length and dtype."""
    missing = [name for name in names if name not in state]
    if missing:
        raise InputError(
            f"{who}: expected a state with {', '.join(names)}, got {', '.join(state) or 'nothing'}; "
            "make it with the method's start"
        )
    vectors = {name: state[name] for name in names}
    check_alike(who, **vectors)
    return list(vectors.values())


class RoundRecord(NamedTuple):
    """One round in numbers; floats are means over the round's nodes, counts are sums.

    gradients: evaluations, a Hessian-vector product counting as two; flops: executed;
    gap: surrogate stationarity gap ||G_b(md)|| with the server's g (§7), NaN for methods without one;
    floats_sent: down plus up; floats_sent_sparse: the same without exact zeros.
    """

    round: int
    nodes: tuple[int, ...]
    loss: float
    gap: float
    residual: float
    gradients: int
    flops: float
    closed_share: float
    floats_sent: int
    floats_sent_sparse: int
    seconds: float


@dataclass(frozen=True)
class Participation:
    """per_round: nodes a round (0: all); weighted: mean weighted by |D_i| instead of uniform."""

    per_round: int = 0
    weighted: bool = False

    def __post_init__(self) -> None:
        expect_numbers("Participation", whole=True, per_round=self.per_round)

    def sample(self, count: int, round_: int, seeds: SeedTree) -> list[int]:
        """The nodes of a round, ascending."""
        if self.per_round > count:
            raise InputError(f"Participation: cannot draw {self.per_round} of {count} nodes; use 0 for all")
        if self.per_round in (0, count):
            return list(range(count))
        rng = seeds.generator("participation", round_)
        return sorted(int(i) for i in rng.choice(count, self.per_round, replace=False))

    def weights(self, tasks: Sequence[Task], nodes: Sequence[int]) -> np.ndarray:
        """Weights of the nodes' answers, summing to one."""
        sizes = np.array([tasks[i].size if self.weighted else 1 for i in nodes], dtype=np.float64)
        if not (sizes.min() >= 0 and 0 < sizes.sum() < math.inf):
            raise InputError(
                f"Participation: tasks cannot be weighted by their sizes, {shown(sizes.tolist())}"
            )
        return sizes / sizes.sum()


def run_rounds(
    method: Method,
    tasks: Sequence[Task],
    state: State,
    rounds: range,
    participation: Participation,
    seeds: SeedTree,
    threads: int = 1,
    first_loss: float = math.nan,
) -> Iterator[tuple[State, RoundRecord]]:
    """Run the 1-based `rounds` from `state`; yields the state and record after each.

    first_loss: mean loss of round 1, needed when resuming (losses are compared with it to detect divergence).

    Raises `DivergenceError` as soon as a loss or a parameter is not finite or the loss explodes; the
    last yielded state is then the last good one.
    """
    expect_numbers("run_rounds", whole=True, threads=threads)
    if not tasks:
        raise InputError("run_rounds: expected at least one task, got none")
    for round_ in rounds:
        expect_numbers("run_rounds", positive=True, whole=True, round=round_)
        started = time.perf_counter()
        nodes = participation.sample(len(tasks), round_, seeds)
        point = method.broadcast(state, round_)
        streams = [seeds.generator("local", round_, node) for node in nodes]
        answers = _solve(method, [tasks[node] for node in nodes], point, streams, threads)
        check_answers(answers, nodes, round_, first_loss)
        for answer in answers:
            check_alike(f"run_rounds: {method.name}", point=point, answer=answer.w)
        mean = np.empty_like(point)
        rows = np.stack([answer.w for answer in answers])
        vector.mean_of_rows(rows, participation.weights(tasks, nodes), mean)
        with np.errstate(all="ignore"):  # `check_state` reports overflow
            state, gap = method.server(state, round_, point, mean)
        check_state(state, round_)
        record = _record(round_, nodes, answers, point, gap, time.perf_counter() - started)
        first_loss = record.loss if math.isnan(first_loss) else first_loss
        yield state, record


def _solve(
    method: Method,
    tasks: Sequence[Task],
    point: np.ndarray,
    streams: Sequence[np.random.Generator],
    threads: int,
) -> list[LocalSolution]:
    """The nodes' answers, in order."""
    return share(lambda node: method.local(tasks[node], point, streams[node]), len(tasks), threads)


def check_answers(
    answers: Sequence[LocalSolution], nodes: Sequence[int], round_: int, first_loss: float
) -> None:
    """Raise `DivergenceError` naming round and node if an answer is not finite or a loss explodes."""
    hint = "try a smaller eta or beta"
    for node, answer in zip(nodes, answers, strict=True):
        if not (math.isfinite(answer.loss) and np.isfinite(answer.w).all()):
            raise DivergenceError(f"training diverged in round {round_} at node {node} (not finite); {hint}")
        if answer.loss > DIVERGED_FACTOR * max(first_loss, 1.0):
            raise DivergenceError(
                f"training diverged in round {round_} at node {node}: loss {answer.loss:.3g}, "
                f"{first_loss:.3g} in the first round; {hint}"
            )


def check_state(state: State, round_: int) -> None:
    """Raise `DivergenceError` naming the round if the server's state is not finite."""
    if not all(np.isfinite(array).all() for array in state.values()):
        raise DivergenceError(
            f"training diverged in round {round_} at the server (not finite); try a smaller mix, eta or beta"
        )


def _record(
    round_: int,
    nodes: Sequence[int],
    answers: Sequence[LocalSolution],
    point: np.ndarray,
    gap: float,
    seconds: float,
) -> RoundRecord:
    def mean(name: str) -> float:
        return math.fsum(getattr(answer, name) for answer in answers) / len(answers)

    down = _nonzero(point) * len(nodes)
    up = sum(_nonzero(answer.w) for answer in answers)
    return RoundRecord(
        round=round_,
        nodes=tuple(nodes),
        loss=mean("loss"),
        gap=gap,
        residual=mean("residual"),
        gradients=sum(answer.gradients for answer in answers),
        flops=math.fsum(answer.flops for answer in answers),
        closed_share=mean("closed_share"),
        floats_sent=2 * point.size * len(nodes),
        floats_sent_sparse=down + up,
        seconds=seconds,
    )


def _nonzero(x: np.ndarray) -> int:
    """Number of entries that are not zero (NumPy counts booleans six times as fast as floats)."""
    return int(np.count_nonzero(x != 0))
