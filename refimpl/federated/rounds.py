"""The server's loop, the same for every method: sample nodes, let them solve, combine their answers, step.

A method is a few pure functions on arrays (`Method`); callers of the generator
`run_rounds` do the stopping, logging and checkpoints. Answers are added up in node order as they come, and
every random number depends on (purpose, round, node), so neither the number of threads nor the order in which
nodes run changes a bit. No answer is kept: memory does not grow with the number of nodes in a round.

Source: mathematics.md §4 ([MG] Algorithm 1), §10.
"""

import math
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from refimpl.contracts import Joining, LocalSolutions, Method, State, Task
from refimpl.errors import DivergenceError, InputError, expect_numbers, shown
from refimpl.kernels import vector
from refimpl.kernels.arrays import tidy
from refimpl.optim.prox.contract import check_alike
from refimpl.rng import NodeStreams, SeedTree
from refimpl.threads import in_turn

DIVERGED_FACTOR = 1e3  # a node's loss above this multiple of the first round's mean loss stops the run
TOGETHER = 32  # nodes that are solved in one call, at most
TOGETHER_BYTES = 16 << 20  # of their answers, at most
CALLS = 8  # for each of several threads, at least


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

    round: its number, from 1; nodes: those that took part; loss: of the nodes at the point that they were
    sent; gap: surrogate stationarity gap ||G_b(md)|| with the server's g (§7), NaN for methods without one;
    residual: norm of the local problem's gradient where a node stopped; gradients: evaluations, a
    Hessian-vector product counting as two; flops: executed; closed_share: share of gated channels off;
    floats_sent: down plus up; floats_sent_sparse: the same without exact zeros; seconds: how long the round
    took.
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
        drawn: list[int] = np.sort(rng.choice(count, self.per_round, replace=False)).tolist()
        return drawn

    def weights(self, nodes: Sequence[int], samples: Callable[[int], int]) -> np.ndarray:
        """Weights of the nodes' answers, summing to one; `samples` says how many samples a node has."""
        sizes = np.array([samples(node) if self.weighted else 1 for node in nodes], dtype=np.float64)
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
        state, record = _run_round(method, tasks, state, round_, participation, seeds, threads, first_loss)
        first_loss = record.loss if math.isnan(first_loss) else first_loss
        yield state, record


def _run_round(
    method: Method,
    tasks: Sequence[Task],
    state: State,
    round_: int,
    participation: Participation,
    seeds: SeedTree,
    threads: int,
    first_loss: float,
) -> tuple[State, RoundRecord]:
    """The state and the record after one round from `state`."""
    started = time.perf_counter()
    nodes = participation.sample(len(tasks), round_, seeds)
    point = method.broadcast(state, round_)
    weights = participation.weights(nodes, lambda node: tasks[node].size)
    sums = Sums(method, point, round_, nodes, weights, first_loss)
    each = _each(method)
    together = 1 if each is None else _together(tasks, nodes, point.nbytes, threads)
    pieces = [nodes[first : first + together] for first in range(0, len(nodes), together)]

    def solve(piece: int) -> LocalSolutions:
        some = pieces[piece]
        rngs = NodeStreams(seeds, "local", round_, some)
        if each is not None:
            return each([tasks[i] for i in some], point, rngs)
        return LocalSolutions.stacked([method.local(tasks[some[0]], point, rngs[0])])

    def add(piece: int, answers: LocalSolutions) -> None:
        sums.add(piece * together, answers)

    in_turn(solve, len(pieces), threads, add)
    return sums.step(state, started)


def _together(tasks: Sequence[Task], nodes: Sequence[int], answer_bytes: int, threads: int) -> int:
    """How many nodes of a round to solve in one call: several small ones.

    With several threads this leaves many calls for each, because the last may end alone.
    """
    if not getattr(tasks[nodes[0]], "small", False):
        return 1
    most = min(TOGETHER, TOGETHER_BYTES // max(1, answer_bytes))
    return max(1, most if threads == 1 else min(most, len(nodes) // (CALLS * threads)))


def _each(method: Method) -> Callable[..., LocalSolutions] | None:
    """The method's `local_each`, if it has one that says the same as its `local`.

    A class that inherits both and replaces `local` alone has none.
    """
    owner = next((each for each in type(method).__mro__ if "local" in vars(each)), None)
    return None if owner is None or "local_each" not in vars(owner) else cast(Joining, method).local_each


@dataclass(eq=False)
class Sums:
    """What a round needs of its nodes' answers, added up in node order; of each, four numbers are kept.

    point: what the nodes were sent; weights: of the answers, summing to one; first_loss: see `run_rounds`.
    """

    method: Method
    point: np.ndarray
    round: int
    nodes: Sequence[int]
    weights: np.ndarray
    first_loss: float

    def __post_init__(self) -> None:
        self.total = np.zeros(self.point.shape)
        self.numbers = {name: array("d") for name in ("loss", "residual", "flops", "closed_share")}
        self.gradients, self.sent = 0, 0

    def add(self, first: int, answers: LocalSolutions) -> None:
        """Check the answers of the nodes from place `first` on, whose turn it is, and add them up."""
        check_alike(f"run_rounds: {self.method.name}", point=self.point, answer=answers.w[0, : answers.size])
        places = slice(first, first + len(answers.w))
        nonzero, finite = vector.add_weighted.kernel(tidy(answers.w), self.weights[places], self.total)
        self._check_losses(answers.loss, finite, self.nodes[places])
        for name, values in self.numbers.items():
            values.extend(getattr(answers, name).tolist())
        self.gradients += answers.gradients
        self.sent += int(nonzero.sum())

    def _check_losses(self, losses: np.ndarray, finite: np.ndarray, nodes: Sequence[int]) -> None:
        """Raise `DivergenceError` naming round and node if an answer is not finite or its loss explodes."""
        limit, hint = DIVERGED_FACTOR * max(self.first_loss, 1.0), "try a smaller eta or beta"
        for loss, good, node in zip(losses.tolist(), finite, nodes, strict=True):
            who = f"training diverged in round {self.round} at node {node}"
            if not (good and math.isfinite(loss)):
                raise DivergenceError(f"{who} (not finite); {hint}")
            if loss > limit:
                first = f"{self.first_loss:.3g} in the first round"
                raise DivergenceError(f"{who}: loss {loss:.3g}, {first}; {hint}")

    def step(self, state: State, started: float) -> tuple[State, RoundRecord]:
        """The state after the server's step, and the record of the round, which began at `started`."""
        mean = self.total.astype(self.point.dtype)
        with np.errstate(all="ignore"):  # `check_state` reports overflow
            state, gap = self.method.server(state, self.round, self.point, mean)
        check_state(state, self.round)
        return state, self._record(gap, time.perf_counter() - started)

    def _record(self, gap: float, seconds: float) -> RoundRecord:
        """The round in numbers."""
        means = {name: math.fsum(values) / len(self.nodes) for name, values in self.numbers.items()}
        return RoundRecord(
            round=self.round,
            nodes=tuple(self.nodes),
            loss=means["loss"],
            gap=gap,
            residual=means["residual"],
            gradients=self.gradients,
            flops=math.fsum(self.numbers["flops"]),
            closed_share=means["closed_share"],
            floats_sent=2 * self.point.size * len(self.nodes),
            floats_sent_sparse=int(np.count_nonzero(self.point != 0)) * len(self.nodes) + self.sent,
            seconds=seconds,
        )


def check_state(state: State, round_: int) -> None:
    """Raise `DivergenceError` naming the round if the server's state is not finite."""
    if not all(np.isfinite(array).all() for array in state.values()):
        raise DivergenceError(
            f"training diverged in round {round_} at the server (not finite); try a smaller mix, eta or beta"
        )
