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
    """All that a descent from w reads; methods move w, and write the gradient and the sums of open channels.

    x (samples, features), y (samples,); soft: what teachers say about them; batches (steps, n) and noise
    (steps, n, gates, widest gate) of each step; kept, own: activations that outlive the descent, and where
    they are; part: samples at a time.
    """

    program: Program
    x: np.ndarray
    y: np.ndarray
    soft: SoftTargets
    batches: np.ndarray
    noise: np.ndarray
    how: Decisions
    pull: Pull
    kept: Kept
    own: Activations | None
    part: int

    def run(
        self, w: np.ndarray, gradient: np.ndarray, moments: np.ndarray, threads: int
    ) -> tuple[float, float]:
        """The first step's loss, and the norm of the local problem's gradient before the last step."""
        size = self.batches.shape[1]
        if threads <= 1 or self.part >= size:
            return self._call(Span(0, size, self.part), self._space(), w, gradient, moments)
        first_loss, residual = math.nan, math.nan
        for step in range(len(self.batches)):
            loss = self._at(step)._loss(w, gradient, moments, threads)
            first_loss = first_loss if step else loss
            if step == len(self.batches) - 1:
                residual = vector.local_residual(w, gradient, self.pull.centre, self.pull.lam)
            vector.local_step(w, gradient, self.pull.centre, self.pull.eta, self.pull.lam)
        return first_loss, residual

    def _at(self, step: int) -> Course:
        """A single step."""
        only, kept = slice(step, step + 1), self.kept
        return self._replace(
            batches=self.batches[only],
            noise=self.noise[only],
            kept=kept._replace(first=kept.later if step else kept.first),
        )

    def _loss(self, w: np.ndarray, gradient: np.ndarray, moments: np.ndarray, threads: int) -> float:
        """The mean loss of the batch, and its gradient."""
        size, loss, spaces = self.batches.shape[1], 0.0, dict[int, Workspace]()

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
            loss, _ = self._call(span, space, w, gradient, moments)

        share(values, math.ceil(size / self.part), threads, sums)
        return loss / size

    def _space(self) -> Workspace:
        """This thread's workspace."""
        return self.program.workspace(self.part, self.x.dtype, self.own)

    def _call(
        self, span: Span, space: Workspace, w: np.ndarray, gradient: np.ndarray, moments: np.ndarray
    ) -> tuple[float, float]:
        """The compiled descent over a span of each batch."""
        program, x, y, soft, batches, noise, how, pull, kept, _, _ = self
        found: tuple[float, float] = descend(
            program.operations, x, y, soft, batches, span, kept, how, noise, pull, w, gradient, space, moments
        )
        return found
