"""A program's local descent: in one compiled call, or with the parts of each batch on several threads.

On several threads a part's activations and their gradients are found beside those of other parts. What a part
adds to the loss and to the gradients of parameters follows when the part before it has added its own, so the
sums go over samples in the same order, and the results are the same bit for bit (tested).

Source: mathematics.md §3 (the local iteration). Derived.
"""

from __future__ import annotations

import math
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np

from refimpl.kernels import vector
from refimpl.kernels.arrays import INTS
from refimpl.kernels.loss import SoftTargets
from refimpl.kernels.operation import NOTHING_KEPT, Activations, Decisions, Kept, Pull, Span, Workspace
from refimpl.kernels.program import descend
from refimpl.kernels.workspace import acquire, release
from refimpl.nn.program import Program
from refimpl.threads import share


class Course(NamedTuple):
    """All that the descents of some nodes read; methods write w, the gradient and the sums of open channels.

    `kernels.program.descend` says what x, y, soft, batches, nodes and noise are. kept, own: activations that
    outlive the descent, and where they are; part: samples at a time. Only a single node can have several
    threads.
    """

    program: Program
    x: np.ndarray
    y: np.ndarray
    soft: SoftTargets
    batches: np.ndarray
    nodes: np.ndarray
    noise: np.ndarray
    how: Decisions
    pull: Pull
    kept: Kept
    own: Activations | None
    part: int

    def run(self, w: np.ndarray, gradient: np.ndarray, moments: np.ndarray, threads: int) -> np.ndarray:
        """Each node's first loss, and the norm of its problem's gradient before the last step, (nodes, 2)."""
        size = int(self.nodes[:, 0].max())
        if threads <= 1 or self.part >= size:
            return self._call(Span(0, size, self.part), self._space(), w, gradient, moments)
        centre, steps, found = self.pull.centre, self.noise.shape[1], np.empty((1, 2))
        own = w[0, : centre.size]
        own[:] = centre
        for step in range(steps):
            loss = self._at(step)._loss(w, gradient, moments, threads)
            if step == 0:
                found[0, 0] = loss
            if step == steps - 1:
                found[0, 1] = vector.local_residual(own, gradient, centre, self.pull.lam)
            vector.local_step(own, gradient, centre, self.pull.eta, self.pull.lam)
        return found

    def _at(self, step: int) -> Course:
        """A single step."""
        size, kept = int(self.nodes[0, 0]), self.kept
        return self._replace(
            batches=self.batches[step * size : (step + 1) * size],
            noise=self.noise[:, step : step + 1],
            kept=kept._replace(first=kept.later if step else kept.first),
        )

    def _loss(self, w: np.ndarray, gradient: np.ndarray, moments: np.ndarray, threads: int) -> float:
        """The mean loss of the batch, and its gradient."""
        size, loss, spaces = self.batches.size, 0.0, dict[int, Workspace]()

        def values(piece: int) -> tuple[Span, Workspace]:
            first, thread = piece * self.part, get_ident()
            space = spaces[thread] = spaces.get(thread) or self._space()
            span = Span(first, min(first + self.part, size), self.part, sums=False)
            self._call(span, space, w, gradient, moments)
            return span, space

        def sums(piece: int, found: tuple[Span, Workspace]) -> None:
            nonlocal loss
            span, space = found
            span = span._replace(values=False, sums=True, loss=loss)
            loss = float(self._call(span, space, w, gradient, moments)[0, 0])

        share(values, math.ceil(size / self.part), threads, sums)
        return loss / size

    def _space(self) -> Workspace:
        """This thread's workspace."""
        return self.program.workspace(self.part, self.x.dtype, self.own)

    def _call(
        self, span: Span, space: Workspace, w: np.ndarray, gradient: np.ndarray, moments: np.ndarray
    ) -> np.ndarray:
        """The compiled descents over a span of each batch."""
        program, x, y, soft, batches, nodes, noise, how, pull, kept, _, _ = self
        samples = program.operations, x, y, soft, batches, nodes
        found: np.ndarray = descend(*samples, span, kept, how, noise, pull, w, gradient, space, moments)
        return found


class Handover:
    """Memory in which one descent leaves activations to the next, and the theta they were computed from.

    It has room for `samples` samples, and `kept` says how many entries each needs. It belongs to the two
    descents alone, so no call in between can change it, on whatever thread; and what lies in it counts only
    for the theta it was computed from. Source: mathematics.md §6. Derived.
    """

    def __init__(self, kept: Kept, samples: int, dtype: np.dtype[Any]) -> None:
        self.parts = (
            ("kept values", dtype, kept.values * samples),
            ("kept masks", np.dtype(np.bool_), max(1, kept.masks * samples)),
            ("kept where", INTS, max(1, kept.where * samples)),
        )
        self.memory: Activations | None = None
        self.theta: np.ndarray | None = None  # what the activations were computed from; None: they are not

    def begin(self, kept: Kept, theta: np.ndarray) -> tuple[Kept, Activations | None]:
        """What a descent from theta may take as known, and where its activations are (None: as usual).

        kept.first > 0 says that the descent wants to find activations; otherwise it leaves them.
        """
        if kept.first and (self.theta is None or not _same_bits(self.theta, theta)):
            return NOTHING_KEPT, None
        self.theta = None  # until the descent is done: one that is broken off leaves nothing
        self.memory = self.memory or Activations(*(acquire(*part) for part in self.parts))
        return kept, self.memory

    def end(self, kept: Kept, theta: np.ndarray) -> None:
        """The descent that `begin` told `kept` is done: it has left activations of theta, or used them up."""
        if not kept.first:
            self.theta = theta.copy()
        elif self.memory is not None:
            for (use, *_), array in zip(self.parts, self.memory, strict=True):
                release(use, array)
            self.memory = None


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two vectors hold the same bytes: as numbers, NaN would differ from itself."""
    return a.dtype == b.dtype and np.array_equal(a.view(np.uint8), b.view(np.uint8))
