"""Quadratic losses: solution, envelope and minimiser in closed form.

Source: mathematics.md §3 and §8. Derived; verified by test.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refimpl.contracts import Penalty
from refimpl.errors import InputError
from refimpl.optim.prox import GroupLasso, Groups, Zero
from refimpl.theory.problems.contract import Problem, Vector, check_family


class Quadratic:
    """(w - centre)^T A (w - centre)/2 with symmetric A = axes diag(eigenvalues) axes^T."""

    def __init__(self, eigenvalues: Vector, axes: np.ndarray, centre: Vector) -> None:
        self.eigenvalues, self.axes, self.centre = eigenvalues, axes, centre
        self.smoothness = float(np.max(np.abs(eigenvalues)))
        self.concavity = max(0.0, -float(np.min(eigenvalues)))

    def _map(self, function: Vector, x: Vector) -> Vector:
        return self.axes @ (function * (self.axes.T @ x))

    def __call__(self, w: Vector, grad_out: Vector) -> float:
        """Value at w; writes A (w - centre)."""
        offset = w - self.centre
        grad_out[:] = self._map(self.eigenvalues, offset)
        return 0.5 * float(offset @ grad_out)

    @property
    def matrix(self) -> np.ndarray:
        """A, (d, d)."""
        return (self.axes * self.eigenvalues) @ self.axes.T

    def hessian_vector(self, w: Vector, d: Vector) -> Vector:
        """A d."""
        return self._map(self.eigenvalues, d)

    def local_point(self, centre: Vector, lam: float) -> Vector:
        """centre_i + lam (A + lam)^{-1} (centre - centre_i)."""
        return self.centre + self._map(lam / (self.eigenvalues + lam), centre - self.centre)

    def envelope(self, lam: float) -> Quadratic:
        """The Moreau envelope: again a quadratic, each eigenvalue t becoming lam t/(lam + t)."""
        return Quadratic(lam * self.eigenvalues / (lam + self.eigenvalues), self.axes, self.centre)


def quadratics(
    eigenvalues: Vector,
    rng: np.random.Generator,
    nodes: int = 5,
    spread: float = 1.0,
    penalty: Penalty | None = None,
    name: str = "quadratic",
) -> Problem:
    """Nodes with the given eigenvalues (d,) on axes of their own and centres of their own.

    The axes of node i are a common random frame, turned by a random rotation whose size grows with `spread`.
    Its centre is a common point plus `spread` times a standard normal vector.
    """
    check_family("quadratics", nodes, spread)
    size = len(eigenvalues)
    frame, middle = _rotation(np.eye(size), 1.0, rng), rng.standard_normal(size)
    losses = tuple(
        Quadratic(
            np.array(eigenvalues, dtype=np.float64),
            _rotation(frame, spread, rng),
            middle + spread * rng.standard_normal(size),
        )
        for _ in range(nodes)
    )
    return Problem(name, losses, size, penalty or Zero())


def _rotation(frame: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """frame turned by the rotation that is the Cayley transform of a random antisymmetric matrix."""
    noise = rng.standard_normal(frame.shape)
    turn, identity = 0.5 * amount * (noise - noise.T), np.eye(len(frame))
    return frame @ np.linalg.solve(identity + turn, identity - turn)


def envelope_minimiser(problem: Problem, lam: float) -> Vector:
    """The minimiser of F for convex quadratics without penalty, which solves a linear system."""
    envelopes = [loss.envelope(lam) for loss in problem.losses if isinstance(loss, Quadratic)]
    if len(envelopes) != len(problem.losses) or problem.concavity > 0 or problem.penalty != Zero():
        raise InputError(f"`envelope_minimiser`: {problem.name} is not a convex quadratic without penalty")
    matrix = sum(e.matrix for e in envelopes)
    right = sum(e.matrix @ e.centre for e in envelopes)
    return np.asarray(np.linalg.solve(matrix, right))


def attained(
    sign: int, smoothness: float = 1.0, size: int = 4, nodes: int = 1, penalty: Penalty | None = None
) -> Problem:
    """L_i(w) = sign smoothness ||w||^2/2 on every node: where the lemmas hold with equality."""
    if sign not in (-1, 1):
        raise InputError(f"`attained`: expected sign 1 or -1, got {sign}")
    loss = Quadratic(np.full(size, sign * float(smoothness)), np.eye(size), np.zeros(size))
    name = "attained+" if sign > 0 else "attained-"
    return Problem(name, (loss,) * nodes, size, penalty or Zero(), attains=sign)


def sparse_least_squares(
    rng: np.random.Generator,
    nodes: int = 4,
    spread: float = 0.3,
    samples: int = 30,
    groups: Sequence[int] = (3, 3, 3, 3),
    rho: float = 0.2,
) -> Problem:
    """||X_i w - y_i||^2/(2m) with y_i from group-sparse weights, and a group lasso: convex, not smooth.

    Every other group of the true weights is zero; `spread` moves them and the noise from node to node.
    """
    check_family("sparse_least_squares", nodes, spread)
    layout = Groups.from_sizes(groups)
    true = rng.standard_normal(layout.size) * (layout.owner % 2 == 0)
    losses = []
    for _ in range(nodes):
        x = rng.standard_normal((samples, layout.size))
        y = x @ (true + spread * rng.standard_normal(layout.size)) + spread * rng.standard_normal(samples)
        eigenvalues, axes = np.linalg.eigh(x.T @ x / samples)
        losses.append(Quadratic(np.maximum(eigenvalues, 0.0), axes, np.linalg.lstsq(x, y, rcond=None)[0]))
    return Problem("sparse least squares", tuple(losses), layout.size, GroupLasso(layout, rho))
