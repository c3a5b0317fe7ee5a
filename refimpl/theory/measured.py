"""Estimate the stationarity gap of networks, for which no constants are proven.

The quantities are those of `gap`, but the error bars of that module cannot be proven here: a ReLU network has
kinks, so its loss has no constant L at all, and lam is rarely above its curvature. So each local problem is
solved from its centre to the smallest residual that can be reached, its curvature is estimated, and three
numbers say how far the result may be trusted:

* `residual`, the norm of the local objective's gradient where the solver stopped. At a solution on a kink
  the gradient jumps, so this stays above zero however well the problem is solved;
* `error`, a bound on the gap's error *if* every local problem is (lam - C)-strongly convex with the C
  estimated; infinite where lam <= C, as then nothing follows;
* `spread`, how much grad F changes when the local problems are solved from other starting points.

Source: mathematics.md §3 and §7. Derived; the constants are estimates and called so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Penalty, Vector
from refimpl.errors import InputError
from refimpl.kernels import vector
from refimpl.optim.accel import Objective
from refimpl.theory.gap import surrogate_gap
from refimpl.threads import share

DIFFERENCE = 1e-10  # step of differences of gradients, so short that few of them cross a kink
LANCZOS_STEPS = 8
PATIENCE = 12  # evaluations without real progress after which a solver is stopped
PROGRESS = 0.9  # progress counts as real if the residual falls to this share


@dataclass(frozen=True)
class Effort:
    """tolerance: residual wanted, relative to that at the centre; evaluations: gradients at most.

    starts: starting points of each local problem, the first its centre (1: `spread` is not measured).
    """

    tolerance: float = 1e-3
    evaluations: int = 200
    starts: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1 or self.evaluations < 1 or self.starts < 1:
            raise InputError(
                "`Effort`: expected 0 < tolerance < 1, evaluations >= 1 and starts >= 1, got "
                f"tolerance={self.tolerance}, evaluations={self.evaluations}, starts={self.starts}"
            )


class LocalAnswer(NamedTuple):
    """The solution of one local problem and what was measured at it."""

    w: Vector
    residual: float  # norm of the local objective's gradient at w
    before: float  # the same at the centre
    concavity: float  # C: minus the lowest curvature of the loss found, at least 0
    smoothness: float  # the largest |curvature| found
    others: tuple[Vector, ...]  # solutions from other starts

    def error(self, lam: float) -> float:
        """Bound on ||w - w*|| if the local objective is (lam - C)-strongly convex."""
        return self.residual / (lam - self.concavity) if lam > self.concavity else math.inf


class MeasuredGap(NamedTuple):
    """Stationarity at a point, with what is known about the numbers; see this module's docstring."""

    mapping: float  # ||G_b(v)||
    distance: float  # dist(0, grad F(v) + dh(v))
    error: float  # conditional bound on the error of both
    spread: float  # largest change of grad F with other starts; NaN with one start
    residual: float  # mean over nodes
    before: float  # the residuals at the centre, mean over nodes: what solving started from
    concavity: float  # largest of the nodes' estimates
    smoothness: float  # largest of the nodes' estimates
    points: tuple[Vector, ...]  # w_i*, one a node


class _Enough(Exception):
    """Raised within the objective to stop SciPy's solver."""


class _Watched:
    """loss(w) + lam/2 ||w - centre||^2 for SciPy, remembering the evaluation with the smallest residual."""

    def __init__(self, loss: Objective, centre: Vector, lam: float, target: float, evaluations: int) -> None:
        self.loss, self.centre, self.lam, self.target = loss, centre, lam, target
        self.left, self.idle = evaluations, 0
        self.best, self.residual, self.mark = centre, math.inf, math.inf

    def __call__(self, w: Vector) -> tuple[float, Vector]:
        gradient = np.empty_like(w)
        w = np.array(w)
        value = self.loss(w, gradient)
        offset = w - self.centre
        gradient += self.lam * offset
        self._note(w, float(vector.norm(gradient)))
        return value + 0.5 * self.lam * float(vector.squared_norm(offset)), gradient

    def _note(self, w: Vector, residual: float) -> None:
        self.left, self.idle = self.left - 1, self.idle + 1
        if residual < self.residual:
            self.best, self.residual = w, residual
        if residual <= PROGRESS * self.mark:
            self.mark, self.idle = residual, 0
        if self.residual <= self.target or self.left <= 0 or self.idle >= PATIENCE:
            raise _Enough


def solve_nearby(
    loss: Objective, centre: Vector, lam: float, effort: Effort, start: Vector | None = None
) -> tuple[Vector, float]:
    """A stationary point of loss(w) + lam/2 ||w - centre||^2 near `start` (centre) and its residual; float64.

    L-BFGS, begun afresh from the best point where a kink stops it, until the residual is `effort.tolerance`
    times ||grad loss(centre)|| or no longer falls. Descent from the centre: for lam below the curvature of
    the loss there may be other, lower solutions elsewhere.
    """
    from scipy.optimize import minimize  # loading it takes half a second, which few commands need

    gradient = np.empty_like(centre)
    loss(centre, gradient)
    target = effort.tolerance * float(vector.norm(gradient))
    watched = _Watched(loss, centre, lam, target, effort.evaluations)
    at = centre if start is None else start
    options = {"ftol": 0.0, "gtol": 0.0, "maxcor": 10, "maxfun": 10**9, "maxiter": 10**9}
    try:
        while True:
            before = watched.left
            minimize(watched, at, jac=True, method="L-BFGS-B", options=options)
            if before - watched.left <= 1:
                break
            at = watched.best
    except _Enough:
        pass
    return watched.best, watched.residual


def curvature_range(
    objective: Objective,
    w: Vector,
    rng: np.random.Generator,
    steps: int = LANCZOS_STEPS,
    difference: float = DIFFERENCE,
) -> tuple[float, float]:
    """Lowest and highest eigenvalue of the objective's Hessian at w (d,), estimated from inside.

    Lanczos with products by central differences of gradients over `difference`, 2 `steps` evaluations. At a
    kink there is no Hessian; a point chosen without regard to the kinks lies on none, and what is found is
    the curvature between them.
    """
    ahead, behind, size = np.empty_like(w), np.empty_like(w), min(steps, w.size)
    basis, diagonal, off = np.zeros((size + 1, w.size)), np.zeros(size), np.zeros(size)
    basis[0] = rng.standard_normal(w.size)
    basis[0] /= vector.norm(basis[0])
    for k in range(size):
        objective(w + difference * basis[k], ahead)
        objective(w - difference * basis[k], behind)
        product = (ahead - behind) / (2 * difference)
        diagonal[k] = basis[k] @ product
        for _ in range(2):  # twice is enough to stay orthogonal
            product -= basis[: k + 1].T @ (basis[: k + 1] @ product)
        off[k] = vector.norm(product)
        if off[k] <= 1e-4 * (1.0 + np.max(np.abs(diagonal))):  # an invariant subspace, up to differences
            size = k + 1
            break
        basis[k + 1] = product / off[k]
    from scipy.linalg import eigvalsh_tridiagonal  # loading it takes a while, which few commands need

    found = eigvalsh_tridiagonal(diagonal[:size], off[: size - 1])
    return float(found[0]), float(found[-1])


def solve_measured(
    loss: Objective, centre: Vector, lam: float, effort: Effort, rng: np.random.Generator
) -> LocalAnswer:
    """One node's local problem at a centre (d,) float64: solved, curvature estimated, solved again elsewhere.

    Curvature is looked at in the centre and half-way to the solution, which itself tends to lie on a kink.
    Other starts lie around the centre, as far from it as the solution.
    """
    gradient = np.empty_like(centre)
    loss(centre, gradient)
    w, residual = solve_nearby(loss, centre, lam, effort)
    ends = [curvature_range(loss, at, rng) for at in (centre, 0.5 * (centre + w))]
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    others = []
    for _ in range(effort.starts - 1):
        aside = rng.standard_normal(centre.size)
        aside *= vector.norm(w - centre) / vector.norm(aside)
        others.append(solve_nearby(loss, centre, lam, effort, centre + aside)[0])
    concavity, smoothness = max(0.0, -lowest), max(-lowest, highest)
    before = float(vector.norm(gradient))
    return LocalAnswer(w, residual, before, concavity, smoothness, tuple(others))


def measured_gap(
    losses: Sequence[Objective],
    weights: Vector,
    v: Vector,
    lam: float,
    beta: float,
    penalty: Penalty,
    effort: Effort,
    seed: int = 0,
    threads: int = 1,
    on_node: Callable[[], None] = lambda: None,
) -> MeasuredGap:
    """Gradient mapping and distance form at v (d,) float64, grad F(v) = lam (v - sum_i weights_i w_i*).

    One loss a node, weights summing to one; the result does not depend on `threads`. `on_node` is called
    after every node.
    """

    def solve(node: int) -> LocalAnswer:
        rng = np.random.default_rng([seed, node])
        answer = solve_measured(losses[node], v, lam, effort, rng)
        on_node()
        return answer

    answers = share(solve, len(losses), threads)
    gradient = _envelope_gradient(v, lam, weights, [answer.w for answer in answers])
    elsewhere = [
        _envelope_gradient(v, lam, weights, points)
        for points in zip(*(answer.others for answer in answers), strict=True)
    ]
    return MeasuredGap(
        mapping=surrogate_gap(v, gradient, penalty, beta),
        distance=penalty.subdifferential_distance(-gradient, v),
        error=lam * float(weights @ np.array([answer.error(lam) for answer in answers])),
        spread=max((float(vector.norm(other - gradient)) for other in elsewhere), default=math.nan),
        residual=float(np.mean([answer.residual for answer in answers])),
        before=float(np.mean([answer.before for answer in answers])),
        concavity=max(answer.concavity for answer in answers),
        smoothness=max(answer.smoothness for answer in answers),
        points=tuple(answer.w for answer in answers),
    )


def _envelope_gradient(v: Vector, lam: float, weights: Vector, points: Sequence[Vector]) -> Vector:
    """lam (v - sum_i weights_i points_i)."""
    mean = np.empty_like(v)
    vector.mean_of_rows(np.stack(points), weights, mean)
    return lam * (v - mean)
