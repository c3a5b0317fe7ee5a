"""Accelerated proximal gradient: the recursion as printed, known rates, the certificate, the state."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from refimpl.errors import DivergenceError, InputError
from refimpl.optim import accel, prox

SCHEDULES = (accel.GhadimiLan, accel.Bounded, accel.Nesterov, accel.ProximalGradient)
DTYPES = (np.float32, np.float64)


def least_squares(seed=0, rows=30, size=12):
    """(objective, L) of ||A w - b||^2/2 with random A, b."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rows, size)), rng.standard_normal(rows)

    def objective(w, grad_out):
        residual = a @ w - b
        grad_out[:] = a.T @ residual
        return 0.5 * float(residual @ residual)

    return objective, float(np.linalg.norm(a, 2) ** 2)


def chain(size):
    """Nesterov's hard quadratic: (objective, L = 1, minimiser, w0 = 0)."""
    matrix = (2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)) / 4
    linear = np.eye(size)[0] / 4

    def objective(w, grad_out):
        grad_out[:] = matrix @ w - linear
        return 0.5 * float(w @ matrix @ w) - float(linear @ w)

    return objective, np.linalg.solve(matrix, linear)


PENALTY = prox.Separable(((slice(4, 12), prox.GroupLasso(prox.Groups.from_sizes([3, 0, 4, 1]), 2.0)),))


def loop(objective, penalty, w0, steps, iterations):
    """Mathematics §4, steps 1 to 5, written out once more: yields (md, gradient, x, xag)."""
    x, xag = w0.copy(), w0.copy()
    for k in range(1, iterations + 1):
        a, b, l = steps(k)
        md = (1 - a) * xag + a * x
        g = np.empty_like(md)
        objective(md, g)
        x, xag = x - l * g, md - b * g
        penalty.prox(x.copy(), l, x)
        penalty.prox(xag.copy(), b, xag)
        yield md, g, x, xag


PRINTED = {
    accel.GhadimiLan: lambda k, b: (2 / (k + 1), b, k * b / 2),
    accel.Bounded: lambda k, b: (2 / (k + 1), b, (1 + 1 / (2 * (k + 1))) * b),
    accel.Nesterov: lambda k, b: (2 / (k + 1), b, b * (k + 1) / 2),
    accel.ProximalGradient: lambda k, b: (1, b, b),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_recursion_as_printed(kind):
    objective, lipschitz = least_squares()
    beta = 0.5 / lipschitz
    seen = []
    result = accel.minimize_composite(
        objective,
        PENALTY,
        np.ones(12),
        kind(beta),
        iterations=25,
        callback=lambda state, norm: seen.append((state, norm)),
    )
    written = list(loop(objective, PENALTY, np.ones(12), lambda k: PRINTED[kind](k, beta), 25))
    assert len(seen) == 25
    for (state, norm), (md, _, x, xag) in zip(seen, written, strict=True):
        np.testing.assert_allclose(state.x, x, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(state.ag, xag, rtol=1e-12, atol=1e-13)
        assert norm == pytest.approx(np.linalg.norm(md - xag) / beta, rel=1e-10)
    assert result.x is result.state.ag
    assert result.iterations == result.state.k == 25


def test_the_recursion_can_fail():
    """a_k one iteration late is told apart by the comparison above."""
    objective, lipschitz = least_squares()
    beta = 0.5 / lipschitz
    right = list(loop(objective, PENALTY, np.ones(12), accel.GhadimiLan(beta).steps, 25))
    late = list(loop(objective, PENALTY, np.ones(12), lambda k: (2 / (k + 2), beta, k * beta / 2), 25))
    assert np.max(np.abs(right[-1][3] - late[-1][3])) > 1e-3


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_keep_their_inequalities(kind):
    schedule = kind(0.3)
    for k in range(1, 200):
        a, b, l = schedule.steps(k)
        assert 0 < a <= 1
        assert b == 0.3
        if kind is accel.Bounded:
            assert b <= l <= (1 + a / 4) * b * (1 + 1e-15)
        else:
            assert a * l <= b * (1 + 1e-15)
    assert schedule.steps(1).a == 1.0  # so that the start of xag does not matter


@pytest.mark.parametrize("kind", SCHEDULES)
def test_solution_against_scipy(kind):
    """The same minimum as L-BFGS-B on the split u = p - q, p, q >= 0, of an l1 problem."""
    objective, lipschitz = least_squares(3)
    rho = 4.0
    result = accel.minimize_composite(
        objective, prox.L1(rho), np.zeros(12), kind(0.5 / lipschitz), iterations=20000, tolerance=1e-7
    )

    def split(z):
        gradient = np.empty(12)
        value = objective(z[:12] - z[12:], gradient)
        return value + rho * z.sum(), np.concatenate([gradient + rho, rho - gradient])

    solved = minimize(
        split, np.zeros(24), jac=True, bounds=[(0, None)] * 24, options={"ftol": 1e-16, "gtol": 1e-10}
    )
    assert result.converged
    np.testing.assert_allclose(result.x, solved.x[:12] - solved.x[12:], atol=2e-6)
    assert result.certificate.value == pytest.approx(solved.fun, rel=1e-12)


def test_certificate_belongs_to_the_point_returned():
    objective, lipschitz = least_squares(1)
    result = accel.minimize_composite(
        objective, PENALTY, np.ones(12), accel.GhadimiLan(0.5 / lipschitz), iterations=40
    )
    w, g = result.x, np.empty(12)
    value = objective(w, g)
    u = np.empty(12)
    PENALTY.prox(w - g * 0.5 / lipschitz, 0.5 / lipschitz, u)
    assert result.certificate.value == pytest.approx(value + PENALTY.value(w), rel=1e-14)
    assert result.certificate.mapping == pytest.approx(np.linalg.norm(w - u) * 2 * lipschitz, rel=1e-9)
    assert result.certificate.distance == pytest.approx(PENALTY.subdifferential_distance(-g, w), rel=1e-12)
    assert not result.converged
    assert result.certificate.mapping <= result.certificate.distance * (1 + 1e-12)  # always so


def test_stops_only_when_the_returned_point_is_good_enough():
    objective, lipschitz = least_squares(2)
    schedule = accel.Nesterov(1 / lipschitz)
    result = accel.minimize_composite(objective, PENALTY, np.ones(12), schedule, 5000, tolerance=1e-6)
    assert result.converged
    assert result.certificate.mapping <= 1e-6
    assert result.iterations < 5000


def test_nesterov_rate_on_the_hard_quadratic():
    """F(xag_k) - F* <= 2 L |w0 - w*|^2/(k+1)^2 at every k, and plain gradient descent is slower."""
    objective, solution = chain(60)
    gradient = np.empty(60)
    best = objective(solution, gradient)
    values = {}
    for kind in (accel.Nesterov, accel.ProximalGradient):
        found = []
        accel.minimize_composite(
            objective,
            prox.Zero(),
            np.zeros(60),
            kind(1.0),
            100,
            callback=lambda s, _, found=found: found.append(objective(s.ag, np.empty(60)) - best),
        )
        values[kind] = np.array(found)
    k = np.arange(1, 101)
    bound = 2 * float(solution @ solution) / (k + 1) ** 2
    assert np.all(values[accel.Nesterov] <= bound)
    assert values[accel.Nesterov][-1] < 0.25 * values[accel.ProximalGradient][-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_dtype_follows_the_arrays_and_arguments_stay(kind, dtype):
    rng = np.random.default_rng(0)
    state = accel.State.start(rng.standard_normal(12).astype(dtype))
    schedule = kind(np.float64(0.1))
    for _ in range(3):
        before = [array.copy() for array in (state.x, state.ag)]
        md = accel.middle_point(state, schedule, np.full(12, np.nan, dtype=dtype))
        g = rng.standard_normal(12).astype(dtype)
        kept = md.copy(), g.copy()
        following, norm = accel.step(state, md, g, PENALTY, schedule)
        assert following.x.dtype == following.ag.dtype == md.dtype == dtype
        assert isinstance(norm, float)
        for old, new in zip((*before, *kept), (state.x, state.ag, md, g), strict=True):
            assert old.tobytes() == new.tobytes()
        state = following


def test_start_copies():
    w = np.ones(3)
    state = accel.State.start(w)
    w[:] = 0
    assert state.x.tolist() == state.ag.tolist() == [1, 1, 1]
    assert state.x is not state.ag


def test_no_iterations_certifies_the_start():
    objective, lipschitz = least_squares()
    result = accel.minimize_composite(objective, PENALTY, np.ones(12), accel.Nesterov(1 / lipschitz), 0)
    assert result.x.tolist() == [1.0] * 12
    assert result.certificate.mapping > 1


def test_divergence_is_named():
    objective, lipschitz = least_squares()
    with pytest.raises(DivergenceError, match="iteration"), np.errstate(over="ignore", invalid="ignore"):
        accel.minimize_composite(
            objective, prox.Zero(), np.ones(12), accel.ProximalGradient(100 / lipschitz), 1000
        )


AT = accel.State.start(np.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: accel.GhadimiLan(0.0), "beta must be positive"),
        (lambda: accel.Nesterov(-1.0), "beta must be positive"),
        (lambda: accel.ProximalGradient(np.nan), "beta must be positive"),
        (lambda: accel.Bounded(1.0, 1.5), "fraction"),
        (lambda: accel.State.start([1.0]), "1-D"),
        (lambda: accel.State.start(np.ones((2, 2))), "1-D"),
        (lambda: accel.middle_point(AT, accel.Nesterov(1.0), np.ones(3)), "x and out of one length"),
        (
            lambda: accel.step(AT, np.ones(2), np.ones(1), prox.Zero(), accel.Nesterov(1.0)),
            "x and gradient of one length",
        ),
        (lambda: accel.certify(lambda w, g: 0.0, prox.Zero(), np.ones((1, 2)), 1.0), "x to be a 1-D"),
        (
            lambda: accel.minimize_composite(
                lambda w, g: 0.0, prox.Zero(), np.ones(2), accel.Nesterov(1.0), -1
            ),
            "iterations >= 0",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
