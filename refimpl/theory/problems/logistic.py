"""Regularised logistic regression: convex, with L = ||X||^2/(4m) + l2.

Source: mathematics.md §8. Derived; verified by test.
"""

from __future__ import annotations

import numpy as np

from refimpl.errors import InputError
from refimpl.theory.problems.contract import Problem, Vector, check_family


class Logistic:
    """mean log(1 + exp(-y x.w)) + l2/2 ||w||^2 for labels y in {-1, 1}; L = ||X||^2/(4m) + l2."""

    def __init__(self, x: np.ndarray, y: Vector, l2: float) -> None:
        self.x, self.y, self.l2 = x, y, l2
        self.smoothness = float(np.linalg.norm(x, 2) ** 2) / (4 * len(y)) + l2
        self.concavity = 0.0

    def __call__(self, w: Vector, grad_out: Vector) -> float:
        """Value at w; writes the gradient."""
        margins = self.y * (self.x @ w)
        pull = -self.y * _sigmoid(-margins) / len(self.y)
        grad_out[:] = self.x.T @ pull + self.l2 * w
        return float(np.mean(np.logaddexp(0.0, -margins))) + 0.5 * self.l2 * float(w @ w)

    def hessian_vector(self, w: Vector, d: Vector) -> Vector:
        """X^T diag(p (1 - p)) X d/m + l2 d, p the probabilities at w."""
        p = _sigmoid(self.x @ w)
        return self.x.T @ (p * (1 - p) * (self.x @ d)) / len(self.y) + self.l2 * d


def _sigmoid(x: Vector) -> Vector:
    """1/(1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def logistic_regression(
    x: np.ndarray,
    y: np.ndarray,
    rng: np.random.Generator,
    nodes: int = 5,
    spread: float = 0.5,
    l2: float = 1e-3,
) -> Problem:
    """Deal samples x (m, d) with labels y in {-1, 1} to the nodes, a share `spread` (<= 1) by label.

    With spread 0 every node sees the same mix; with spread 1 all nodes but one see a single label.
    """
    check_family("logistic_regression", nodes, spread)
    if x.ndim != 2 or y.shape != (len(x),) or not np.all(np.abs(y) == 1) or len(x) < nodes:
        raise InputError(
            "`logistic_regression`: expected x (m, d) and y (m,) of -1 and 1 with m >= nodes, "
            f"got x {x.shape}, y {y.shape}, nodes={nodes}"
        )
    by_label = rng.random(len(y)) < spread
    order = np.argsort(np.where(by_label, y > 0, rng.random(len(y))), kind="stable")
    parts = [np.sort(part) for part in np.array_split(order, nodes)]
    wide = np.asarray(x, dtype=np.float64)
    losses = tuple(Logistic(wide[part], y[part].astype(np.float64), l2) for part in parts)
    return Problem("logistic", losses, x.shape[1])
