"""Separable cosines in a bowl: not convex, with constants in closed form.

Source: mathematics.md §8. Derived; verified by test.
"""

from __future__ import annotations

import numpy as np

from refimpl.contracts import Penalty
from refimpl.errors import InputError
from refimpl.optim.prox import Zero
from refimpl.theory.problems.contract import Problem, Vector, check_family

FIXED_POINT_STEPS = 400
NEAR = 1e-3  # a step this short is near enough for Newton's method to take over
ROUNDING = 4 * float(np.finfo(np.float64).eps)


class Cosines:
    """sum_j a_j cos(b_j w_j + c_j) + q_j w_j^2/2; L = max(|a_j| b_j^2 + |q_j|), not convex in general."""

    def __init__(self, a: Vector, b: Vector, c: Vector, q: Vector) -> None:
        self.a, self.b, self.c, self.q = a, b, c, q
        swing = np.abs(a) * b**2
        self.smoothness = float(np.max(swing + np.abs(q)))
        self.concavity = max(0.0, float(np.max(swing - q)))

    def __call__(self, w: Vector, grad_out: Vector) -> float:
        """Value at w; writes the gradient."""
        angle = self.b * w + self.c
        grad_out[:] = self.q * w - self.a * self.b * np.sin(angle)
        return float(np.sum(self.a * np.cos(angle) + 0.5 * self.q * w**2))

    def hessian_vector(self, w: Vector, d: Vector) -> Vector:
        """(q - a b^2 cos(b w + c)) d."""
        return (self.q - self.a * self.b**2 * np.cos(self.b * w + self.c)) * d

    def local_point(self, centre: Vector, lam: float) -> Vector:
        """Take fixed-point steps w <- centre - grad/lam, which contract by L/lam, then Newton steps by entry.

        The steps go on until only rounding is left, so the result is as good as a formula. Where lam is near
        L that may take more steps than are allowed; the caller's certificate says how near it came.
        """
        w, gradient, moved = centre.copy(), np.empty_like(centre), np.inf
        for _ in range(FIXED_POINT_STEPS):
            self(w, gradient)
            if moved > NEAR:
                following = centre - gradient / lam
            else:
                bend = self.hessian_vector(w, np.ones_like(w)) + lam
                following = w - (gradient + lam * (w - centre)) / bend
            moved, w = float(np.max(np.abs(following - w))), following
            if moved <= ROUNDING * max(1.0, float(np.max(np.abs(w)))):
                break
        return w


def cosines(
    rng: np.random.Generator,
    nodes: int = 5,
    spread: float = 0.5,
    size: int = 8,
    smoothness: float = 1.0,
    bowl: float = 0.2,
    decay: float = 1.0,
    penalty: Penalty | None = None,
) -> Problem:
    """Cosines in a bowl, scaled so that L is exactly `smoothness` on each node.

    The curvature of entry j is at most smoothness * scale_j, and scale_j falls geometrically from 1 to
    `decay`: a small decay makes long flat valleys. The quadratic has a share `bowl` of it, so for bowl < 1/2
    the loss is not convex: its curvature goes down to -(1 - 2 bowl) smoothness. All nodes share the
    frequencies b in [0.5, 2]; their phases and amplitudes differ with `spread`.
    """
    check_family("cosines", nodes, spread)
    if not (0 <= bowl < 1 and 0 < decay <= 1):
        raise InputError(f"`cosines`: expected 0 <= bowl < 1 and 0 < decay <= 1, got {bowl} and {decay}")
    b, phase = rng.uniform(0.5, 2.0, size), rng.uniform(0, 2 * np.pi, size)
    scale = smoothness * np.geomspace(1.0, decay, size)
    losses = []
    for _ in range(nodes):
        share = 1.0 - min(spread, 1.0) * rng.uniform(0.0, 0.9, size)
        share[0] = 1.0  # the entry in which the constant is reached
        a, q = share * (1.0 - bowl) * scale / b**2, bowl * scale
        losses.append(Cosines(a, b, phase + spread * rng.standard_normal(size), q))
    return Problem("cosines", tuple(losses), size, penalty or Zero())
