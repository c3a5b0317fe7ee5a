"""The server's rounds with nodes elsewhere: who is asked, which answers count, what happens without them.

Nodes are sampled from the same stream of random numbers as in `federated.rounds.run_rounds`. The answers that
are received are added up in the order of the nodes by the same code (`Sums`), and every node draws from the
stream of (seed, round, node). So the result has the bytes of a run in one process as long as the same nodes
answer.

Source: mathematics.md §4 ([MG] Algorithm 1), §10.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from refimpl.contracts import LocalSolution, LocalSolutions, State
from refimpl.engine.messages import Question, Sealed, brief, checked
from refimpl.errors import InputError, RunError
from refimpl.experiments.experiment import Experiment
from refimpl.federated.rounds import Participation, RoundRecord, Sums
from refimpl.registry import check_keys, key

POLICIES = ("wait", "skip", "fail")
Reply = Sealed | str  # a node's answer, or why there is none


@dataclass(frozen=True)
class Patience:
    """What is done about nodes that do not answer.

    wait: they are asked again. skip: the round goes on without them. fail: the run ends. Where a run ends,
    the rounds before are saved, and it can be resumed.
    """

    policy: str = key(
        "wait", "without a node's answer: ask again, go on without it, or end", choices=POLICIES
    )
    deadline: float = key(600.0, "seconds that nodes have for an answer", above=0.0)
    attempts: int = key(10, "how often a node is asked in a round before the run ends", at_least=1)
    fewest: int = key(1, "answers that a round needs with the policy skip", at_least=1)

    def __post_init__(self) -> None:
        check_keys("engine", self)


class Link(Protocol):
    """The way to the nodes."""

    @property
    def sizes(self) -> Mapping[int, int]:
        """The numbers of training samples of the nodes that have introduced themselves."""

    def meet(self, count: int, seconds: float, fewest: int) -> None:
        """Wait so long for the nodes 0 to count - 1; `RunError` if fewer than `fewest` have come by then."""

    def ask(
        self, questions: Sequence[Question], seconds: float, patient: bool
    ) -> Iterator[tuple[int, Reply]]:
        """Each node's number with its answer as it comes, or with why there is none.

        patient: a node that is not connected has until the deadline to come back.
        """


class FederatedRecord(RoundRecord):
    """A `RoundRecord` over the nodes that answered; `faults` says, by node, what went wrong there."""

    faults: dict[str, list[str]]

    def _asdict(self) -> dict[str, Any]:
        return {**super()._asdict(), "faults": self.faults}


class Gathering:
    """The answers to the questions of one round: the first good one of each node counts."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self.questions = {question.node: question for question in questions}
        self.answers: dict[int, LocalSolution] = {}
        self.faults: dict[int, list[str]] = {}

    def take(self, node: int, reply: Reply) -> None:
        """Keep a node's answer if it is its first and passes the checks; otherwise note what is wrong."""
        if node not in self.questions or node in self.answers:
            why = "answered twice" if node in self.answers else "was not asked"
            self.faults.setdefault(node, []).append(why)
            return
        try:
            if isinstance(reply, str):
                raise InputError(reply)
            self.answers[node] = checked(self.questions[node], reply)
        except InputError as error:
            self.faults.setdefault(node, []).append(brief(error))

    @property
    def missing(self) -> list[Question]:
        """The questions without an answer, in the order of the nodes."""
        return [self.questions[node] for node in sorted(self.questions) if node not in self.answers]

    def why(self) -> str:
        """The nodes without an answer, each with the last thing that went wrong."""
        last = {q.node: self.faults.get(q.node, ["no answer"])[-1] for q in self.missing}
        return "; ".join(f"node {node}: {fault}" for node, fault in last.items())[:600]


def gather(
    link: Link,
    questions: Sequence[Question],
    patience: Patience,
    sleep: Callable[[float], None] = time.sleep,
) -> Gathering:
    """Ask the nodes until enough of them have answered; `RunError` where the policy or patience ends."""
    found = Gathering(questions)
    for attempt in range(patience.attempts):
        if attempt:
            sleep(min(2.0 ** (attempt - 1), patience.deadline))
        for node, reply in link.ask(found.missing, patience.deadline, patience.policy != "skip"):
            found.take(node, reply)
        if not found.missing:
            return found
        if patience.policy == "skip" and len(found.answers) >= min(patience.fewest, len(questions)):
            return found
        if patience.policy == "fail":
            break
    raise RunError(
        f"round {questions[0].round}: expected answers of {len(questions)} nodes, got {len(found.answers)} "
        f"({found.why()}); the rounds before are saved, resume the run when the nodes are back"
    )


@dataclass(frozen=True)
class FederatedExperiment(Experiment):
    """An experiment whose training nodes are elsewhere; `train` runs, records and resumes it as any other."""

    link: Link = field(kw_only=True)
    patience: Patience = field(kw_only=True)

    def rounds(
        self, state: State, rounds: range, threads: int | None = None, first_loss: float = math.nan
    ) -> Iterator[tuple[State, FederatedRecord]]:
        """Run `rounds` from `state`; see `Experiment.rounds`. Threads are the nodes' own matter."""
        config, patience = self.config, self.patience
        sampled = Participation(config.per_round, config.weighted)
        skips = patience.policy == "skip"
        wait = patience.deadline * (patience.attempts if patience.policy == "wait" else 1)
        self.link.meet(config.nodes, wait, patience.fewest if skips else config.nodes)
        for round_ in rounds:
            started = time.perf_counter()
            nodes = sampled.sample(config.nodes, round_, self.seeds)
            point = self.method.broadcast(state, round_)
            found = gather(self.link, [Question(round_, node, point) for node in nodes], patience)
            answered = sorted(found.answers)
            weights = sampled.weights(answered, lambda node: self.link.sizes.get(node, 0))
            sums = Sums(self.method, point, round_, answered, weights, first_loss)
            for place, node in enumerate(answered):
                sums.add(place, LocalSolutions.stacked([found.answers[node]]))
            state, record = sums.step(state, started)
            first_loss = record.loss if math.isnan(first_loss) else first_loss
            told = FederatedRecord(*record)
            told.faults = {str(node): found.faults[node] for node in sorted(found.faults)}
            yield state, told
