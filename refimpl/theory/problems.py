"""Families of local losses whose constants are known in closed form, each for several different nodes.

A `Problem` is what a theory check needs: one loss for each node, with the constants that the loss was built
to have, and a penalty. `spread` says how much the nodes differ; with spread 0 all nodes are the same.
Everything is float64 and drawn from the generator given. (`soft_network.py` has a family whose constants are
estimated.)

Source: mathematics.md §3 and §8 (families and their constants). Derived; verified by test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from refimpl.contracts import Penalty, Vector
from refimpl.errors import InputError
from refimpl.optim.prox import GroupLasso, Groups, Zero


class Loss(Protocol):
    """A node's loss: an objective that knows how curved it is.

    The eigenvalues of its Hessian lie in [-concavity, smoothness], and concavity <= smoothness.
    """

    smoothness: float
    concavity: float

    def __call__(self, w: Vector, grad_out: Vector) -> float:
        """Value at w (d,); writes the whole gradient."""


@runtime_checkable
class ClosedForm(Protocol):
    """A loss whose local problem has an explicit solution."""

    def local_point(self, centre: Vector, lam: float) -> Vector:
        """argmin_w loss(w) + (lam/2) ||w - centre||^2, for lam > smoothness."""


class WithConstants:
    """A loss with these constants; of the other methods that it has, those in `offers` can be seen."""

    def __init__(self, loss: Any, smoothness: float, concavity: float, *offers: str) -> None:
        self.loss, self.smoothness, self.concavity = loss, smoothness, concavity
        for name in offers:
            if hasattr(loss, name):
                setattr(self, name, getattr(loss, name))

    def __call__(self, w: Vector, grad_out: Vector) -> float:
        """Value at w; writes the gradient."""
        return float(self.loss(w, grad_out))


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise, over v, the mean over nodes of the Moreau envelopes of `losses`, plus `penalty`.

    name: what tables call it; size: entries of v; attains: +1 or -1 where the lemmas are equalities, at
    curvature +L or -L on every axis, else 0.
    """

    name: str
    losses: tuple[Loss, ...]
    size: int
    penalty: Penalty = Zero()
    attains: int = 0

    @property
    def smoothness(self) -> float:
        """L: the largest of the nodes'."""
        return max(loss.smoothness for loss in self.losses)

    @property
    def concavity(self) -> float:
        """The largest downward curvature of a node; 0 if all losses are convex."""
        return max(loss.concavity for loss in self.losses)

    def start(self, rng: np.random.Generator) -> Vector:
        """A random point (d,) of the penalty's domain, where runs begin."""
        w = 0.5 * rng.standard_normal(self.size)
        self.penalty.prox(w, 0.0, w)
        return w


def check_family(who: str, nodes: int, spread: float) -> None:
    """Raise `InputError` unless there is a node and `spread` is a size."""
    if nodes < 1 or not (np.isfinite(spread) and spread >= 0):
        raise InputError(f"`{who}`: expected nodes >= 1 and spread >= 0, got nodes={nodes}, spread={spread}")


# --- quadratics: solution, envelope and minimiser in closed form


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
    return Problem(name, losses, size)


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
    rng: np.random.Generator, nodes: int = 4, spread: float = 0.3, samples: int = 30
) -> Problem:
    """||X_i w - y_i||^2/(2m) with y_i from group-sparse weights, and a group lasso: convex, not smooth.

    There are four groups of three weights. Every other group of the true weights is zero; `spread` moves the
    others, and the noise, from node to node.
    """
    check_family("sparse_least_squares", nodes, spread)
    layout = Groups.from_sizes([3, 3, 3, 3])
    true = rng.standard_normal(layout.size) * (layout.owner % 2 == 0)
    losses = []
    for _ in range(nodes):
        x = rng.standard_normal((samples, layout.size))
        y = x @ (true + spread * rng.standard_normal(layout.size)) + spread * rng.standard_normal(samples)
        eigenvalues, axes = np.linalg.eigh(x.T @ x / samples)
        losses.append(Quadratic(np.maximum(eigenvalues, 0.0), axes, np.linalg.lstsq(x, y, rcond=None)[0]))
    return Problem("sparse least squares", tuple(losses), layout.size, GroupLasso(layout, 0.2))


# --- separable cosines in a bowl: not convex

FIXED_POINT_STEPS = 400
NEAR = 1e-3  # a step this short is near enough for Newton's method to take over
SETTLED = 4 * float(np.finfo(np.float64).eps)


class Cosines:
    """sum_j a_j cos(b_j w_j + c_j) + q_j w_j^2/2; L = max(|a_j| b_j^2 + |q_j|), not convex in general."""

    def __init__(self, a: Vector, b: Vector, c: Vector, q: Vector) -> None:
        self.a, self.b, self.c, self.q = a, b, c, q
        swing = np.abs(a) * b**2
        self.smoothness = float(np.max(swing + np.abs(q)))
        self.concavity = max(0.0, float(np.max(swing - q)))

    def __call__(self, w: Vector, grad_out: Vector) -> float:
        """Value at w; writes the gradient."""
        grad_out[:] = self.gradient(w)
        return float(np.sum(self.a * np.cos(self.b * w + self.c) + 0.5 * self.q * w**2))

    def gradient(self, w: Vector) -> Vector:
        """The gradient alone: q w - a b sin(b w + c)."""
        return self.q * w - self.a * self.b * np.sin(self.b * w + self.c)

    def hessian_vector(self, w: Vector, d: Vector) -> Vector:
        """(q - a b^2 cos(b w + c)) d."""
        return (self.q - self.a * self.b**2 * np.cos(self.b * w + self.c)) * d

    def local_point(self, centre: Vector, lam: float) -> Vector:
        """Take fixed-point steps w <- centre - grad/lam, which contract by L/lam, then Newton steps by entry.

        The steps go on until only rounding is left, so the result is as good as a formula. Where lam is near
        L that may take more steps than are allowed; the caller's certificate says how near it came.
        """
        w, moved = centre.copy(), np.inf
        for _ in range(FIXED_POINT_STEPS):
            gradient = self.gradient(w)
            if moved > NEAR:
                following = centre - gradient / lam
            else:
                bend = self.hessian_vector(w, np.ones_like(w)) + lam
                following = w - (gradient + lam * (w - centre)) / bend
            moved, w = float(np.abs(following - w).max()), following
            if moved <= SETTLED * max(1.0, float(np.abs(w).max())):
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
    return Problem("cosines", tuple(losses), size)


# --- regularised logistic regression: convex


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
