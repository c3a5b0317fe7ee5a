"""A network on a node's data, as federated methods and solvers see it: a task that draws batches.

Where the network has a compiled program (`program.py`) the task's gradients and its whole local descent
run in it; with `compiled=False`, or without a program, the layers run. Both give the same bits.

Source: mathematics.md §3 (L_i is the mean cross-entropy over D_i, or over the mini-batch drawn from it).
Derived.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from refimpl.contracts import LocalSolutions
from refimpl.errors import InputError
from refimpl.kernels import vector
from refimpl.kernels.arrays import tidy
from refimpl.kernels.loss import SoftTargets
from refimpl.kernels.operation import NOTHING_KEPT, Activations, Decisions, Kept, Pull
from refimpl.kernels.workspace import rows, scratch_array
from refimpl.nn.context import Context, Gating
from refimpl.nn.course import Course, Handover
from refimpl.nn.lowering import MODES, lower
from refimpl.nn.network import Network, draw_gate_noise
from refimpl.nn.objective import NetworkObjective, checked_samples
from refimpl.nn.program import Program
from refimpl.nn.weightmask import WeightMask
from refimpl.nn.work import leading_table, total_table


def draw_batches(rng: np.random.Generator, samples: int, size: int, count: int) -> np.ndarray:
    """`count` mini-batches of `size` different indices below `samples`, int64 (count, size).

    A size of 0, or one that is not below `samples`, means all samples, in order, without using rng.
    """
    if not 0 < size < samples:
        return np.tile(np.arange(samples), (count, 1))
    picks = rng.integers(0, samples - np.arange(size), size=(count, size))
    batches = np.empty((count, size), dtype=np.int64)
    vector.partial_shuffles.kernel(picks, np.arange(samples), batches)
    return batches


FEW_BYTES = 1 << 18  # of the samples of a task, below which copying them costs less than a call of its own
UNUSED = np.random.default_rng(0)  # of draws that need no random numbers
Drawn = tuple[np.ndarray, list[dict[str, np.ndarray]]]  # batches, and the noise of each


@dataclass(frozen=True)
class NetworkTask:
    """Mini-batches (or all, batch_size 0) of samples x (n, *input_shape), labels y (n,).

    gating: how gates decide; train: the trained parts; the gradient of the others is zero. compiled: use the
    network's program. kept, handover: activations that a descent leaves to that of another task, or finds,
    and the memory in which they lie (`stages.py`); part: samples treated at a time (0: as many as the cache
    holds); threads: how many treat the parts of a large batch at the same time; sums over samples keep their
    order, so results do not depend on it. Where samples depend on each other (batch normalisation,
    batch-shaping) a batch is one part and has one thread.
    soft: what teachers add to the loss (`distillation.py`); weights: which entries of w are kept.
    """

    network: Network
    x: np.ndarray
    y: np.ndarray
    gating: Gating = Gating()
    train: tuple[str, ...] = ("theta", "phi")
    batch_size: int = 0
    compiled: bool = True
    kept: Kept = NOTHING_KEPT
    handover: Handover | None = None
    part: int = 0
    threads: int = 1
    soft: SoftTargets | None = None
    weights: WeightMask | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 0:
            raise InputError(f"NetworkTask: batch_size must be at least 0 (all data), got {self.batch_size}")
        self._take(self.x, self.y, self.soft)

    def _take(self, x: np.ndarray, y: np.ndarray, soft: SoftTargets | None) -> None:
        """Check the samples, their labels and what teachers say about them, and make them the task's own."""
        x, y, soft = checked_samples("NetworkTask", self.network, x, y, soft)
        self.__dict__.update(x=x, y=y, soft=soft)  # the fields are frozen

    def on(self, x: np.ndarray, y: np.ndarray) -> "NetworkTask":
        """This task on other samples, without teachers; what depends on the network alone is shared."""
        for name in ("program", "_work_table", "_gated_channels", "_usual", "_likeness"):
            getattr(self, name)  # it is made here, once, and copied with the fields
        # `copy` takes ten times as long, which matters for a node of a few samples.
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._take(x, y, None)
        return other

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.y)

    @property
    def small(self) -> bool:
        """Whether several such tasks are solved faster in one call, for which their samples are copied."""
        return self.x.nbytes <= FEW_BYTES

    @property
    def batch(self) -> int:
        """Number of samples in a batch."""
        return self.batch_size if 0 < self.batch_size < self.size else self.size

    @cached_property
    def program(self) -> Program | None:
        """The network's compiled program, where it has one."""
        return lower(self.network, self.gating, self.train, self.weights) if self.compiled else None

    def context(self, noise: Mapping[str, np.ndarray] | None = None) -> Context:
        """The settings of an evaluation."""
        return Context(self.gating, self.train, noise or {}, weights=self.weights)

    @cached_property
    def _likeness(self) -> object:
        """What this task has in common with those that `on` makes of it, and with no other."""
        return object()

    @cached_property
    def _usual(self) -> Context:
        """The settings of an evaluation without noise."""
        return self.context()

    @cached_property
    def _work_table(self) -> np.ndarray:
        """Coefficients of the work of one gradient in sums of open-channel counts (`work.py`)."""
        return total_table(self.network, self._usual)

    @cached_property
    def _gated_channels(self) -> int:
        """Channels that have a gate."""
        return sum(block.gate.out_channels for block in self.network.gates)

    def draw(
        self, rng: np.random.Generator, count: int
    ) -> "Iterator[NetworkObjective] | Iterator[CompiledObjective]":
        """Objectives on `count` batches. All batches are drawn first, then (mode `gumbel`) all noise."""
        for chosen, own in zip(*self._draw(rng, count), strict=True):
            if self.program is None:
                yield self._on_layers(chosen, own)
            else:
                yield CompiledObjective(self, self.program, chosen, own)

    def _on_layers(self, chosen: np.ndarray, noise: dict[str, np.ndarray]) -> NetworkObjective:
        """The objective on the chosen samples, evaluated layer by layer."""
        soft = self.soft
        assert soft is not None
        own = soft._replace(logits=soft.logits[:, chosen]) if soft.weights.size else soft
        return NetworkObjective(self.network, self.x[chosen], self.y[chosen], self.context(noise), own)

    @property
    def _random(self) -> bool:
        """Whether an evaluation needs random numbers."""
        return self.batch < self.size or self.gating.mode == "gumbel"

    def _draw(self, rng: np.random.Generator, count: int) -> Drawn:
        """Batches (count, size) and the noise of each, by gate name."""
        batches = draw_batches(rng, self.size, self.batch_size, count)
        if self.gating.mode != "gumbel":
            return batches, [{}] * count
        own = self.network, self.batch, rng, self.x.dtype, self.gating
        return batches, [draw_gate_noise(*own) for _ in range(count)]

    def descend_each(
        self,
        tasks: "Sequence[NetworkTask]",
        centre: np.ndarray,
        eta: float,
        lam: float,
        steps: int,
        rngs: Sequence[np.random.Generator],
    ) -> LocalSolutions | None:
        """`steps` steps w <- w - eta (g + lam (w - centre)) for each task, this one the first, in one call.

        Bit for bit what the same steps on the objectives of `draw` give. None without a program, or where
        tasks differ in more than their samples, or have so many that these are not worth copying.
        """
        if self.program is None or not all(self._goes_with(task) for task in tasks[1:]):
            return None
        centre = self._usual.pruned(tidy(centre))
        self.network.layout.check(f"task on {self.network.name}", centre)
        # `rngs` makes a generator when it is asked for it: only where one is needed.
        drawn = [task._draw(rngs[i] if task._random else UNUSED, steps) for i, task in enumerate(tasks)]
        gradient = scratch_array("gradient", centre.dtype, centre.size)
        for part in self.program.untouched:
            gradient[part] = 0
        kept, own, theta = NOTHING_KEPT, None, centre[self.network.layout.theta]
        if self.handover is not None:
            kept, own = self.handover.begin(self.kept, theta)
        w, found, moments = self._run(self.program, tasks, drawn, eta, lam, centre, gradient, kept, own)
        if self.handover is not None and own is not None:
            self.handover.end(kept, theta)
        work = [self._measure(counts) for counts in moments]
        flops, closed_share = np.array(work).T
        loss, residual = found.T
        if self.handover is not None:
            flops = flops - self._reused(kept, moments[0], steps)
        return LocalSolutions(w, centre.size, loss, residual, steps * len(w), flops, closed_share)

    def _goes_with(self, other: "NetworkTask") -> bool:
        """Whether both differ in nothing but samples, of which each has few."""
        if self.handover is not None or self.threads > 1 or self.gating.mode == "gumbel":
            return False
        few = self.small and other.small and self.x.dtype == other.x.dtype
        alone = any(task.soft is not None and task.soft.weights.size for task in (self, other))
        return few and not alone and self._likeness is other._likeness

    def _run(
        self,
        program: Program,
        tasks: "Sequence[NetworkTask]",
        drawn: Sequence[Drawn],
        eta: float,
        lam: float,
        centre: np.ndarray,
        gradient: np.ndarray,
        kept: Kept = NOTHING_KEPT,
        own: Activations | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The compiled descents: rows that begin with the ends, loss and residual, open-channel counts."""
        if centre.dtype != self.x.dtype:
            raise InputError(
                f"task on {self.network.name}: samples are {self.x.dtype} but parameters {centre.dtype}; "
                "convert with x.astype"
            )
        scalar, count = centre.dtype.type, len(tasks)
        batches = _joined([chosen.ravel() for chosen, _ in drawn])
        noise = [each for _, steps in drawn for each in steps]
        sizes = [chosen.shape[1] for chosen, _ in drawn]
        (x, x_at), (y, y_at) = _lying([task.x for task in tasks]), _lying([task.y for task in tasks])
        nodes = np.array([sizes, x_at, y_at]).T.copy()
        stacked = program.stack_noise(noise, sizes[0] if any(noise) else 0, centre.dtype)
        stacked = stacked.reshape(count, len(noise) // count, *stacked.shape[1:])
        how = Decisions(float(self.gating.tau), MODES[self.gating.mode], stacked[0, 0], self.gating.shaping)
        pull = Pull(scalar(eta), scalar(lam), centre)
        assert self.soft is not None
        part = self.part_of(program, max(sizes))
        moments = np.zeros((count, 1 + program.gates, 1 + program.gates), dtype=np.int64)
        x = x.reshape(len(x), -1)
        course = Course(program, x, y, self.soft, batches, nodes, stacked, how, pull, kept, own, part)
        w = rows(centre.dtype, count, centre.size)
        return w, course.run(w, gradient, moments, self.threads), moments

    def part_of(self, program: Program, batch: int) -> int:
        """How many samples of a batch to treat at a time."""
        own = 0 if program.whole else self.part
        return own or program.part(batch, self.x.dtype, gradients=True, threads=self.threads)

    def _measure(self, moments: np.ndarray) -> tuple[float, float]:
        """Executed FLOPs and share of closed channels from sums of open-channel counts."""
        samples, *opened = moments[0].tolist()
        gated = samples * self._gated_channels
        return float(np.vdot(self._work_table, moments)), (gated - sum(opened)) / gated if gated else 0.0

    def _reused(self, kept: Kept, moments: np.ndarray, steps: int) -> float:
        """FLOPs of forward operations whose results were there already."""
        found = 0.0
        for known, times in ((kept.first, 1), (kept.later, steps - 1)):
            if known and times:
                assert self.program is not None
                table = leading_table(self.network, Context(self.gating, self.train).routing, known)
                found += float(np.vdot(table, moments)) * times / steps
        return found


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The arrays, one behind the other; a single one as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _lying(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, Sequence[int]]:
    """One array that has the rows of all, and where those of each begin.

    It is the one that all are views of, if there is such an array; else a copy.
    """
    base, first = arrays[0].base, arrays[0]
    if len(arrays) > 1 and isinstance(base, np.ndarray) and all(array.base is base for array in arrays):
        row, origin = first[0].nbytes, _address(base)
        places = [divmod(_address(array) - origin, row) for array in arrays]
        alike = base.flags.carray and base.dtype == first.dtype and base.nbytes % row == 0
        if alike and not any(rest for _, rest in places):
            return base.reshape(-1, *first.shape[1:]), [place for place, _ in places]
    return _joined(arrays), list(accumulate((len(array) for array in arrays[:-1]), initial=0))


def _address(array: np.ndarray) -> int:
    """Where the array begins in memory."""
    address: int = array.__array_interface__["data"][0]
    return address


class CompiledObjective:
    """A task's loss on one batch of its samples (indices `chosen`), evaluated by its program."""

    def __init__(
        self, task: NetworkTask, program: Program, chosen: np.ndarray, noise: dict[str, np.ndarray]
    ) -> None:
        self.task = task
        self.program = program
        self.chosen = chosen[None]
        self.noise = [noise]
        self.moments = np.zeros((1 + program.gates, 1 + program.gates), dtype=np.int64)
        self._layers: NetworkObjective | None = None  # made the last evaluation, if the program did not

    def __call__(self, w: np.ndarray, grad_out: np.ndarray) -> float:
        """Loss at w; writes the whole gradient. A descent of one step of size zero: w stays as it is."""
        self.task.network.layout.check_pair(f"task on {self.task.network.name}", w, grad_out, "grad_out")
        self._layers = None
        grad_out[:] = 0
        centre, drawn = self.task._usual.pruned(w), [(self.chosen, self.noise)]
        _, found, moments = self.task._run(self.program, [self.task], drawn, 0.0, 0.0, centre, grad_out)
        self.moments = moments[0]
        return float(found[0, 0])

    def hessian_vector(self, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """H v (d,), by the layers: programs have no second derivatives."""
        self._layers = self.task._on_layers(self.chosen[0], self.noise[0])
        return self._layers.hessian_vector(w, v)

    def measure(self) -> tuple[float, float]:
        """Executed FLOPs of the last evaluation, and the share of gated channels off in it."""
        return self._layers.measure() if self._layers else self.task._measure(self.moments)
