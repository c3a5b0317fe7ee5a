"""A program's local descent: in one compiled call, or with the parts of each batch on several threads.

On several threads a part's activations and their gradients are found beside those of other parts. What a part
adds to the loss and to the gradients of parameters follows when the part before it has added its own, so the
sums go over samples in the same order, and the results are the same bit for bit (tested).

Source: mathematics.md §3 (the local iteration). Derived.
"""

from __future__ import annotations

import math
from threading import get_ident
from typing import NamedTuple

import numpy as np

from refimpl.kernels import vector
from refimpl.kernels.loss import SoftTargets
from refimpl.kernels.operation import Activations, Decisions, Kept, Pull, Span, Workspace
from refimpl.kernels.program import descend
from refimpl.nn.program import Program
from refimpl.threads import share


class Course(NamedTuple):
    """All that the descents of some nodes read; methods write w, the gradient and the sums of open channels.

    x (samples, features), y (samples,), of all nodes; soft: what teachers say about those of a single node;
    batches: indices into a node's samples, of all steps of the first node, then of the next; nodes (nodes,
    3): how many each step has, and where the node's samples and labels begin in x and y; noise (nodes,
    steps, n, gates, widest gate); kept, own: activations that outlive the descent, and where they
    are; part: samples at a time. Only a single node can have several threads.
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
