"""What the rooms expect of each other's objects: vectors, objectives, tasks, methods, penalties, schedules.

Any object with the methods of a protocol will do. Nobody inherits from these classes.
Source: mathematics.md §3 (objectives and tasks), §4 (schedules), §5 (penalties), §10 (methods).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

Vector = np.ndarray  # 1-D, C-contiguous, float32 or float64
State = dict[str, np.ndarray]  # what a method's server keeps from round to round; it goes into checkpoints


class Objective(Protocol):
    """A differentiable function: returns its value at w and writes the whole gradient."""

    def __call__(self, w: Vector, grad_out: Vector, /) -> float:
        """Value at w; gradient into grad_out."""


class Measured(Protocol):
    """An objective that can say what its last evaluation cost and how many channels it closed."""

    def measure(self) -> tuple[float, float]:
        """Executed FLOPs of the last evaluation, and the share of gated channels that were off in it."""


@runtime_checkable
class Curved(Protocol):
    """An objective that can also multiply its Hessian by a vector."""

    def hessian_vector(self, w: Vector, v: Vector) -> Vector:
        """The Hessian at w times v (d,)."""


class Task(Protocol):
    """A node's learning problem."""

    @property
    def size(self) -> int:
        """Number of samples, for weighting by |D_i|."""

    def draw(self, rng: np.random.Generator, count: int) -> Iterable[Objective]:
        """The objectives of the next `count` gradients: mini-batches drawn with rng, or the whole data."""


class LocalSolution(NamedTuple):
    """What a node sends back, and what it cost.

    w: approximate solution; loss: objective at the centre (first step); residual: norm of the local
    problem's gradient where it was last evaluated, i.e. before the last step; gradients: evaluations;
    flops: executed; closed_share: gated channels off, mean over the steps.
    """

    w: Vector
    loss: float
    residual: float
    gradients: int
    flops: float
    closed_share: float


class LocalSolutions(NamedTuple):
    """What some nodes send back, in their order, each number as in `LocalSolution`.

    w (nodes, at least `size`): rows that begin with the solutions, which have `size` entries; loss, residual,
    flops, closed_share (nodes,): an entry for each node; gradients: of all nodes together.
    """

    w: np.ndarray
    size: int
    loss: np.ndarray
    residual: np.ndarray
    gradients: int
    flops: np.ndarray
    closed_share: np.ndarray

    @classmethod
    def stacked(cls, answers: Sequence[LocalSolution]) -> "LocalSolutions":
        """The answers of at least one node; raises `ValueError` unless all have as many entries."""
        w, loss, residual, gradients, flops, closed_share = zip(*answers, strict=True)
        rows = np.asarray(w[0])[None] if len(w) == 1 else np.stack(w)
        numbers = (np.array(each, np.float64) for each in (loss, residual, flops, closed_share))
        return cls(rows, rows.shape[-1], next(numbers), next(numbers), sum(gradients), *numbers)

    def of(self, place: int) -> LocalSolution:
        """The answer of the node at this place."""
        w, gradients = self.w[place, : self.size], self.gradients // len(self.w)
        loss, residual, flops, share = (
            float(each[place]) for each in (self.loss, self.residual, self.flops, self.closed_share)
        )
        return LocalSolution(w, loss, residual, gradients, flops, share)


class Method(Protocol):
    """A federated method: what the server broadcasts, what a node does, and how the server uses the mean."""

    @property
    def name(self) -> str:
        """The name on the command line and in tables."""

    def start(self, w0: Vector) -> State:
        """Server state before round 1, as plain arrays (it goes into checkpoints)."""

    def broadcast(self, state: State, round_: int) -> Vector:
        """The point sent to the nodes of round `round_` (1-based)."""

    def local(self, task: Task, point: Vector, rng: np.random.Generator) -> LocalSolution:
        """A node's work."""

    def server(self, state: State, round_: int, point: Vector, mean: Vector) -> tuple[State, float]:
        """The new state from the mean of the nodes' answers, and the surrogate gap (NaN if undefined)."""

    def model(self, state: State) -> Vector:
        """The meta-model."""


class Joining(Protocol):
    """A method that can also do the work of several nodes in one call, with the answers of `local`."""

    def local_each(
        self, tasks: Sequence[Task], point: Vector, rngs: Sequence[np.random.Generator]
    ) -> LocalSolutions:
        """The nodes' work, in their order."""


@runtime_checkable
class Penalty(Protocol):
    """A closed convex function R on vectors, given by its value, its prox and its subdifferential.

    Any object with these three methods is a penalty; arrays are 1-D contiguous float32 or float64.
    """

    def value(self, u: Vector) -> float:
        """R(u); infinite outside the domain."""

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """Write argmin_u step R(u) + ||u - v||^2/2 into `out`; return R(out).

        `out` is v itself or shares no memory with it. Step 0 gives the projection of v on the domain of R.
        """

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """dist(s, dR(u)), Euclidean; infinite where dR(u) is empty. 0 iff s is a subgradient at u."""


class Steps(NamedTuple):
    """The three numbers of one iteration.

    a: weight of x in the middle point; b: step of the aggregated point; l: step of the prox point.
    """

    a: float
    b: float
    l: float


class Schedule(Protocol):
    """Steps as a function of the iteration number."""

    def steps(self, k: int) -> Steps:
        """a_k, b_k, l_k for iteration k = 1, 2, ..."""


class Constant:
    """A function that returns `answer`, whatever it is told. As a default it is shown by its name."""

    def __init__(self, name: str, answer: Any) -> None:
        self.name, self.answer = name, answer

    def __call__(self, *told: object) -> Any:
        """The answer."""
        return self.answer

    def __repr__(self) -> str:
        return self.name


nothing, never = Constant("nothing", None), Constant("never", False)
