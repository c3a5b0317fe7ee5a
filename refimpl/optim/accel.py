"""Accelerated proximal gradient for F + h, F smooth and perhaps non-convex, h convex with an exact prox.

One iteration calls `middle_point`, takes a gradient at that point from anywhere, and calls `step`:

    md_k = (1 - a_k) ag_{k-1} + a_k x_{k-1}
    x_k  = prox_{l_k h}(x_{k-1} - l_k g_k)
    ag_k = prox_{b_k h}(md_k - b_k g_k)                 g_k ~ grad F(md_k)

The steps a_k, b_k, l_k come from a `Schedule`; users add their own. All arithmetic is element-wise in the
dtype of the arrays, so the same inputs give the same bytes everywhere.

Source: mathematics.md §4; Ghadimi & Lan 2016, Algorithm 1; Lin et al. 2020, Algorithm 1. Verified by test:
rates on quadratics and agreement with a solver written apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Objective, Penalty, Schedule, Steps, Vector
from refimpl.errors import DivergenceError, expect_numbers
from refimpl.kernels import vector
from refimpl.optim.prox.contract import check_alike
from refimpl.registry import SCHEDULES, check_keys, key


class State(NamedTuple):
    """Where the iteration stands.

    k: iterations done; x: the prox point x_k, moved by the long step l_k; ag: the aggregated point
    xag_k, which the method returns.
    """

    k: int
    x: Vector
    ag: Vector

    @classmethod
    def start(cls, x0: Vector) -> "State":
        """x_0 = xag_0 = x0 (copied), k = 0."""
        check_alike("State.start", x0=x0)
        return cls(0, x0.copy(), x0.copy())


@dataclass(frozen=True)
class StepB:
    """The key `beta`, which all schedules of this file have, and the check of their keys."""

    beta: float = key(0.5, "server step b", above=0.0)

    def __post_init__(self) -> None:
        check_keys(f"`{type(self).__name__}`", self)


@SCHEDULES.register("ghadimi-lan")
@dataclass(frozen=True)
class GhadimiLan(StepB):
    """a_k = 2/(k+1), b_k = beta, l_k = k beta/2, so a_k l_k <= b_k; theory: beta <= 1/(2 L_F).

    Source: Ghadimi & Lan 2016, Corollary 2 (composite problems). Verified by test.
    """

    def steps(self, k: int) -> Steps:
        """Steps of iteration k >= 1."""
        return Steps(2.0 / (k + 1), self.beta, 0.5 * k * self.beta)


@SCHEDULES.register("bounded")
@dataclass(frozen=True)
class Bounded(StepB):
    """a_k = 2/(k+1), b_k = beta, l_k = (1 + fraction a_k/4) beta with 0 <= fraction <= 1.

    The two sequences then stay close: the long step never exceeds 5/4 of the short one.
    Source: Ghadimi & Lan 2016, Corollary 1 (smooth non-convex problems), l_k in [beta, (1 + a_k/4) beta].
    Verified by test.
    """

    fraction: float = key(1.0, "share of the largest long step", at_least=0.0, at_most=1.0)

    def steps(self, k: int) -> Steps:
        """Steps of iteration k >= 1."""
        a = 2.0 / (k + 1)
        return Steps(a, self.beta, (1.0 + 0.25 * self.fraction * a) * self.beta)


@SCHEDULES.register("nesterov")
@dataclass(frozen=True)
class Nesterov(StepB):
    """a_k = 2/(k+1), b_k = beta, l_k = beta/a_k: Nesterov's method for convex F, beta <= 1/L_F.

    Source: Nesterov 1983; in this form Tseng 2008. Verified by test.
    """

    def steps(self, k: int) -> Steps:
        """Steps of iteration k >= 1."""
        return Steps(2.0 / (k + 1), self.beta, 0.5 * (k + 1) * self.beta)


@SCHEDULES.register("proximal-gradient")
@dataclass(frozen=True)
class ProximalGradient(StepB):
    """a_k = 1, b_k = l_k = beta: no acceleration, x and xag coincide; beta < 2/L_F.

    Source: Parikh & Boyd 2014, §4.2. Verified by test.
    """

    def steps(self, k: int) -> Steps:
        """The steps of round k, which are the same in every round."""
        return Steps(1.0, self.beta, self.beta)


def middle_point(state: State, schedule: Schedule, out: Vector) -> Vector:
    """Write md_{k+1} = (1 - a) ag + a x into `out` and return it; the gradient is wanted there."""
    check_alike("middle_point", x=state.x, ag=state.ag, out=out)
    a = schedule.steps(state.k + 1).a
    number = state.x.dtype.type
    np.multiply(state.ag, number(1.0 - a), out=out)
    out += number(a) * state.x
    return out


def step(
    state: State, md: Vector, gradient: Vector, penalty: Penalty, schedule: Schedule
) -> tuple[State, float]:
    """The next state from the gradient at md (`middle_point` of `state`), and the mapping norm there.

    The norm is ||md - xag||/b, the norm of the gradient mapping at md. It is exact if the gradient is
    grad F(md), and a surrogate otherwise (mathematics.md §7). The arguments stay as they are.
    """
    check_alike("step", x=state.x, ag=state.ag, md=md, gradient=gradient)
    _, b, l = schedule.steps(state.k + 1)
    number = md.dtype.type
    x = state.x - number(l) * gradient
    penalty.prox(x, l, x)
    ag = md - number(b) * gradient
    penalty.prox(ag, b, ag)
    return State(state.k + 1, x, ag), float(vector.norm(md - ag) / b)


class Certificate(NamedTuple):
    """How stationary a point x is, from the value and gradient at the point itself (mathematics.md §7).

    value: F(x) + h(x); mapping: ||x - prox_{b h}(x - b grad F(x))|| / b; distance: dist(0, grad F(x) +
    dh(x)).
    """

    value: float
    mapping: float
    distance: float


def certify(objective: Objective, penalty: Penalty, x: Vector, beta: float) -> Certificate:
    """Evaluate `objective` and `penalty` at x, and both measures of stationarity; beta is the step b."""
    check_alike("certify", x=x)
    expect_numbers("`certify`", positive=True, beta=beta)
    gradient = np.empty_like(x)
    value = objective(x, gradient)
    forward = x - x.dtype.type(beta) * gradient
    penalty.prox(forward, beta, forward)
    mapping = float(vector.norm(x - forward) / beta)
    return Certificate(value + penalty.value(x), mapping, penalty.subdifferential_distance(-gradient, x))


@dataclass(frozen=True)
class Result:
    """What `minimize_composite` returns.

    x: the point that was found, xag_K; certificate: how stationary x is; iterations: how many were done;
    converged: whether the mapping norm at x is at most the tolerance asked for; state: to go on from.
    """

    x: Vector
    certificate: Certificate
    iterations: int
    converged: bool
    state: State


def minimize_composite(
    objective: Objective,
    penalty: Penalty,
    x0: Vector,
    schedule: Schedule,
    iterations: int = 1000,
    tolerance: float = 0.0,
    callback: Callable[[State, float], None] | None = None,
) -> Result:
    """Minimise objective + penalty from x0 (d,) until the mapping norm at xag is at most `tolerance`.

    `callback(state, mapping_norm_at_md)` is called after each iteration. Raises `DivergenceError` when a
    value or gradient is not finite.
    """
    expect_numbers("`minimize_composite`", whole=True, iterations=iterations)
    expect_numbers("`minimize_composite`", tolerance=tolerance)
    state = State.start(x0)
    md, gradient = np.empty_like(state.x), np.empty_like(state.x)
    certificate = None
    for k in range(1, iterations + 1):
        middle_point(state, schedule, md)
        value = objective(md, gradient)
        if not (np.isfinite(value) and np.all(np.isfinite(gradient))):
            raise DivergenceError(
                f"`minimize_composite`: value or gradient not finite in iteration {k}; try a smaller step"
            )
        state, norm = step(state, md, gradient, penalty, schedule)
        if callback is not None:
            callback(state, norm)
        certificate = None
        if norm <= tolerance:  # only a hint, as it belongs to md: ask at the point itself
            certificate = certify(objective, penalty, state.ag, schedule.steps(k).b)
            if certificate.mapping <= tolerance:
                break
    if certificate is None:
        certificate = certify(objective, penalty, state.ag, schedule.steps(max(state.k, 1)).b)
    return Result(state.ag, certificate, state.k, certificate.mapping <= tolerance, state)
