"""What a network makes of data: an objective on a fixed batch, and the task that draws batches.

`NetworkObjective` is the contract every solver sees, `objective(w, grad_out) -> float`
(architecture.md §1). Source: mathematics.md §2.4 and §3 (L_i is the mean cross-entropy over D_i, or
over the mini-batch drawn from it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import vector
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.kernels.program import Decisions, descend
from refimpl.nn.context import Context, Gating
from refimpl.nn.lowering import MODES, Program, lower
from refimpl.nn.network import Network, draw_gate_noise
from refimpl.nn.work import Work, context_tables, executed_work


class NetworkObjective:
    """Mean cross-entropy of a network on a fixed batch, as `objective(w, grad_out) -> float`.

    x (N, *input_shape), y (N,) integer labels. After a call, `masks` holds the masks it used.
    """

    def __init__(
        self, network: Network, x: np.ndarray, y: np.ndarray, context: Context | None = None
    ) -> None:
        self.network = network
        self.context = context or Context(train=("theta", "phi"))
        x, y = np.asarray(x), np.asarray(y)
        if y.dtype.kind not in "iu":
            raise InputError(
                f"NetworkObjective: labels must be whole numbers, got {y.dtype}; use y.astype(int)"
            )
        self.x = network.check_batch("NetworkObjective", x, x.dtype)
        self.y = np.require(y, np.int64, ("C", "W"))
        self.masks: Mapping[str, np.ndarray] = {}
        if self.y.shape != (x.shape[0],):
            raise InputError(f"NetworkObjective: expected {x.shape[0]} labels, got shape {self.y.shape}")
        if self.y.min() < 0 or self.y.max() >= network.classes:
            raise InputError(
                f"NetworkObjective: labels must lie in 0..{network.classes - 1}, "
                f"got {self.y.min()}..{self.y.max()}"
            )

    def __call__(self, w: np.ndarray, grad_out: np.ndarray) -> float:
        """Loss at w; writes the whole gradient."""
        logits, trace = self.network.forward(w, self.x, self.context)
        self.masks = self.network.masks(trace)
        dlogits = np.empty_like(logits)
        loss = softmax_cross_entropy(logits, self.y, dlogits)
        self.network.backward(w, dlogits, trace, grad_out)
        return float(loss)

    @property
    def work(self) -> Work:
        """What the last evaluation of value and gradient cost."""
        return executed_work(self.network, self.masks, len(self.y), self.context)

    def measure(self) -> tuple[float, float]:
        """Executed FLOPs of the last evaluation, and the share of gated channels off in it."""
        closed = sum(int((mask == 0).sum()) for mask in self.masks.values())
        gated = sum(mask.size for mask in self.masks.values())
        return self.work.total, closed / max(gated, 1)

    def value(self, w: np.ndarray) -> float:
        """Loss at w alone."""
        logits, _ = self.network.forward(w, self.x, self.context)
        return float(softmax_cross_entropy(logits, self.y, np.empty_like(logits)))


def draw_batches(rng: np.random.Generator, samples: int, size: int, count: int) -> np.ndarray:
    """`count` mini-batches of `size` different indices below `samples`, int64 (count, size).

    A size of 0, or one that is not below `samples`, means all samples, in order, without using rng.
    """
    if not 0 < size < samples:
        return np.tile(np.arange(samples), (count, 1))
    picks = rng.integers(0, samples - np.arange(size), size=(count, size))
    batches = np.empty((count, size), dtype=np.int64)
    vector.partial_shuffles(picks, np.arange(samples), batches)
    return batches


@dataclass(frozen=True)
class NetworkTask:
    """Mini-batches (or all, batch_size 0) of samples x (n, *input_shape), labels y (n,)."""

    network: Network
    x: np.ndarray
    y: np.ndarray
    gating: Gating = Gating()
    train: tuple[str, ...] = ("theta", "phi")
    batch_size: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 0:
            raise InputError(f"NetworkTask: batch_size must be at least 0 (all data), got {self.batch_size}")
        NetworkObjective(self.network, self.x, self.y)  # checks shapes and labels
        object.__setattr__(self, "y", np.ascontiguousarray(self.y, dtype=np.int64))

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.y)

    @cached_property
    def program(self) -> Program | None:
        """The network's compiled program, where it has one."""
        return lower(self.network, self.gating, self.train)

    def draw(self, rng: np.random.Generator, count: int) -> Iterator[NetworkObjective]:
        """Objectives on `count` batches. All batches are drawn first, then (mode `gumbel`) all noise."""
        batches = draw_batches(rng, self.size, self.batch_size, count)
        noise = [self._noise(rng, batches.shape[1]) for _ in range(count)]
        for chosen, own in zip(batches, noise, strict=True):
            context = Context(self.gating, self.train, own)
            yield NetworkObjective(self.network, self.x[chosen], self.y[chosen], context)

    def _noise(self, rng: np.random.Generator, batch: int) -> dict[str, np.ndarray]:
        noisy = self.gating.mode == "gumbel"
        return draw_gate_noise(self.network, batch, rng, self.x.dtype) if noisy else {}

    def descend(
        self, centre: np.ndarray, eta: float, lam: float, steps: int, rng: np.random.Generator
    ) -> Descent | None:
        """`steps` steps w <- w - eta (g + lam (w - centre)) in compiled code; None without a program.

        Bit for bit what the same steps on the objectives of `draw` give.
        """
        program = self.program
        if program is None:
            return None
        self.network.layout.check("NetworkTask.descend", centre)
        batches = draw_batches(rng, self.size, self.batch_size, steps)
        size = batches.shape[1]
        noise = program.stack_noise([self._noise(rng, size) for _ in range(steps)], size, centre.dtype)
        scalar = centre.dtype.type
        w, gradient = centre.copy(), np.zeros_like(centre)
        moments = np.zeros((1 + program.gates, 1 + program.gates), dtype=np.int64)
        how = Decisions(float(self.gating.tau), MODES[self.gating.mode], noise[0])
        loss, residual = descend(
            program.operations, self.x.reshape(self.size, -1), self.y, batches, how, noise,
            scalar(eta), scalar(lam), centre, w, gradient, program.workspace(size, centre.dtype), moments,
        )  # fmt: skip
        flops = sum((tables * moments).sum() for tables in self._work_tables[:3])
        gated = moments[0, 0] * sum(block.gate.out_channels for block in self.network.gates)
        closed = 1.0 - moments[0, 1:].sum() / gated if gated else 0.0
        return Descent(w, loss, residual, float(flops), float(closed))

    @cached_property
    def _work_tables(self) -> np.ndarray:
        """Coefficients of the work of one gradient in sums of open-channel counts (`work.py`)."""
        return context_tables(self.network, Context(self.gating, self.train))


class Descent(NamedTuple):
    """A local descent's end point, first loss, last residual, executed FLOPs, share of channels closed."""

    w: np.ndarray
    loss: float
    residual: float
    flops: float
    closed_share: float
