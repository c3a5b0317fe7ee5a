"""The simplest task: a quadratic, whose solutions and averages are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quadratic:
    """L(w) = (curvature/2) ||w - target||^2, as objective and as task of `size` samples."""

    target: float | np.ndarray
    curvature: float = 1.0
    size: int = 1

    def __call__(self, w, grad_out):
        with np.errstate(over="ignore", invalid="ignore"):  # tests of divergence mean to overflow
            grad_out[:] = self.curvature * (w - self.target)
            return 0.5 * self.curvature * float(((w - self.target) ** 2).sum())

    def hessian_vector(self, w, v):
        return self.curvature * v

    def draw(self, rng, count):
        return [self] * count
