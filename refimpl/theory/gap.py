"""Measure how stationary a point is: surrogate gap, exact gap with its error bar, and distance form.

The exact quantities need exact solutions of the local problems, which come with a certificate: for lam > L
the local objective is (lam - L)-strongly convex, so a residual r of its gradient bounds the distance to the
solution by r/(lam - L), however the point was found. Error bars below include the rounding of that residual.

Source: mathematics.md §3 (envelope gradient) and §7. Verified by test against closed forms.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Curved, Penalty, Vector
from refimpl.errors import InputError
from refimpl.kernels import vector
from refimpl.theory.problems import ClosedForm, Loss, Problem

EPS = float(np.finfo(np.float64).eps)
ROUNDING = 8 * EPS  # assumed relative error of evaluating a gradient
TOLERANCE = 1e-13  # bound on the error at which a local solution counts as exact
POLISHING_STEPS = 300
SHORTEST = 1e-4  # share of a gradient step below which none is tried
FIRST_STEPS = 100  # gradient steps that are tried before SciPy is asked; they suffice unless lam is near L


class LocalPoint(NamedTuple):
    """An approximate solution of one local problem, with bounds on its error."""

    w: Vector
    value: float  # of the local objective at w, at least its minimum
    residual: float  # norm of the local objective's gradient at w, rounding included
    error: float  # bound on ||w - w*||: residual/(lam - L)
    rounding: float  # the part of the residual that is the rounding of its evaluation
    gradient: Vector  # of the loss at w


class EnvelopePoint(NamedTuple):
    """F at a point v: mean of Moreau envelopes, with error bars."""

    value: float
    value_error: float
    gradient: Vector  # lam (v - mean w_i*)
    gradient_error: float  # bound on the norm of its error
    points: tuple[Vector, ...]  # w_i*, one a node


class Gap(NamedTuple):
    """Stationarity at a point with grad F from certified local solutions."""

    mapping: float  # ||G_b(v)||
    distance: float  # dist(0, grad F(v) + dh(v))
    error: float  # bound on the error of either: both are 1-Lipschitz in grad F


def check_convexity(who: str, smoothness: float, lam: float) -> None:
    """Raise `InputError` unless lam > L, which makes every local problem strongly convex."""
    if not lam > smoothness:
        raise InputError(f"`{who}`: expected lam > L = {smoothness:g}, got lam = {lam:g}")


def solve_exactly(loss: Loss, centre: Vector, lam: float, start: Vector | None = None) -> LocalPoint:
    """argmin_w loss(w) + lam/2 ||w - centre||^2 for a float64 centre (d,), lam > loss.smoothness.

    Closed form where the loss has one. Otherwise gradient steps of size 1/lam from `start`, each of which
    contracts by L/lam; where these do not arrive, SciPy's Newton-CG (with a Hessian) or L-BFGS, and gradient
    steps again, until the bound on the error is at most `TOLERANCE` or rounding ends the progress. The error
    returned is the bound reached, whichever came first.
    """
    check_convexity("solve_exactly", loss.smoothness, lam)
    if isinstance(loss, ClosedForm):
        return _polish(loss, loss.local_point(centre, lam), centre, lam, POLISHING_STEPS)
    first = min(FIRST_STEPS, POLISHING_STEPS)
    best = _polish(loss, centre if start is None else start, centre, lam, first)
    if best.error > max(TOLERANCE, 4 * best.rounding / (lam - loss.smoothness)):
        best = _polish(loss, _search(loss, centre, lam, best.w), centre, lam, POLISHING_STEPS)
    return best


def _polish(loss: Loss, start: Vector, centre: Vector, lam: float, steps: int) -> LocalPoint:
    """The best point of at most so many gradient steps from `start`, of size 1/lam.

    Steps that make no progress, although rounding is not reached, are halved: the loss is then more curved
    than it states.
    """
    best, share = _certify(loss, start, centre, lam), 1.0
    for _ in range(steps):
        if best.error <= TOLERANCE or share < SHORTEST:
            break
        to = centre - best.gradient / lam
        tried = _certify(loss, (1.0 - share) * best.w + share * to, centre, lam)
        if tried.residual < best.residual:
            best = tried
        elif best.residual <= 4 * best.rounding:
            break
        else:
            share *= 0.5
    return best


def _search(loss: Loss, centre: Vector, lam: float, start: Vector) -> Vector:
    """Minimise the local objective with SciPy, closely enough for gradient steps to finish."""
    from scipy.optimize import minimize  # loading it takes half a second, which few problems need

    def local(w: Vector) -> tuple[float, Vector]:
        gradient = np.empty_like(w)
        value = loss(w, gradient)
        offset = w - centre
        return value + 0.5 * lam * float(offset @ offset), gradient + lam * offset

    if isinstance(loss, Curved):

        def bend(w: Vector, d: Vector) -> Vector:
            return loss.hessian_vector(w, d) + lam * d

        solved = minimize(local, start, jac=True, hessp=bend, method="Newton-CG", options={"xtol": 1e-10})
    else:
        solved = minimize(local, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-7})
    return np.ascontiguousarray(solved.x)


def _certify(loss: Loss, w: Vector, centre: Vector, lam: float) -> LocalPoint:
    """Value and residual at w, and the bound on the error that they prove."""
    gradient, offset = np.empty_like(w), w - centre
    value = loss(w, gradient) + 0.5 * lam * float(offset @ offset)
    sizes = vector.norm(gradient) + lam * (vector.norm(w) + vector.norm(centre))
    rounding = ROUNDING * float(sizes)
    residual = float(vector.norm(gradient + lam * offset)) + rounding
    return LocalPoint(w, value, residual, residual / (lam - loss.smoothness), rounding, gradient)


def envelope(
    problem: Problem, v: Vector, lam: float, starts: Sequence[Vector] | None = None
) -> EnvelopePoint:
    """F(v) and grad F(v) = lam (v - mean w_i*(v)) with error bars; v float64 (d,)."""
    given = starts if starts is not None else [v] * len(problem.losses)
    found = [solve_exactly(f, v, lam, start=s) for f, s in zip(problem.losses, given, strict=True)]
    values = np.array([point.value for point in found])
    # a point with residual r lies at most r error/2 above the minimum
    above = np.mean([0.5 * point.residual * point.error for point in found])
    gradient = lam * (v - np.mean([point.w for point in found], axis=0))
    gradient_error = lam * float(np.mean([point.error for point in found])) + ROUNDING * lam * vector.norm(v)
    return EnvelopePoint(
        float(np.mean(values)),
        float(above + ROUNDING * np.mean(np.abs(values))),
        gradient,
        float(gradient_error),
        tuple(point.w for point in found),
    )


def envelope_objective(problem: Problem, lam: float) -> Callable[[Vector, Vector], float]:
    """F as an objective function; each local problem starts from its last solution."""
    latest: list[Sequence[Vector]] = [[np.zeros(problem.size)] * len(problem.losses)]

    def objective(v: Vector, grad_out: Vector) -> float:
        point = envelope(problem, v, lam, latest[0])
        latest[0] = point.points
        grad_out[:] = point.gradient
        return point.value

    return objective


def gradient_mapping(v: Vector, gradient: Vector, penalty: Penalty, beta: float) -> Vector:
    """(v - prox_{beta h}(v - beta gradient))/beta."""
    forward = v - beta * gradient
    penalty.prox(forward, beta, forward)
    return (v - forward) / beta


def surrogate_gap(v: Vector, gradient: Vector, penalty: Penalty, beta: float) -> float:
    """The norm of the gradient mapping at v formed with the gradient that the server used."""
    return float(vector.norm(gradient_mapping(v, gradient, penalty, beta)))


def exact_gap(problem: Problem, v: Vector, lam: float, beta: float) -> Gap:
    """Gradient mapping and distance form at v itself, with grad F from certified local solutions."""
    point = envelope(problem, v, lam)
    mapping = surrogate_gap(v, point.gradient, problem.penalty, beta)
    distance = problem.penalty.subdifferential_distance(-point.gradient, v)
    return Gap(mapping, distance, point.gradient_error + ROUNDING * float(vector.norm(v)) / beta)
