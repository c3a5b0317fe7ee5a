"""Proximal operators against searches that know nothing of them: a grid, and SciPy on a smooth problem."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from refimpl.optim import prox

STEPS = (0.2, 1.0, 3.0)


def inside(condition: object) -> np.ndarray:
    return np.where(condition, 0.0, np.inf)


def small_cases(size: int) -> dict:
    """name -> (penalty, R over points (P, size) in plain NumPy), for vectors of 1 to 3 entries."""
    one = prox.Groups.from_sizes([size])
    first = prox.Groups.from_sizes([1, size - 1])
    rest, scale = np.sqrt(size - 1), np.sqrt(size)
    l1 = lambda u: np.abs(u).sum(1)  # noqa: E731
    l2 = lambda u: np.sqrt((u**2).sum(1))  # noqa: E731
    return {
        "squared_l2": (prox.SquaredL2(0.7), lambda u: 0.35 * l2(u) ** 2),
        "l1": (prox.L1(0.4), lambda u: 0.4 * l1(u)),
        "elastic_net": (prox.ElasticNet(0.4, 1.5), lambda u: 0.4 * l1(u) + 0.75 * l2(u) ** 2),
        "non_negative": (prox.NonNegativeL1(0.4), lambda u: 0.4 * l1(u) + inside((u >= 0).all(1))),
        "group": (prox.GroupLasso(one, 0.4), lambda u: 0.4 * scale * l2(u)),
        "groups": (prox.GroupLasso(first, 0.4), lambda u: 0.4 * (l1(u[:, :1]) + rest * l2(u[:, 1:]))),
        "sparse": (prox.SparseGroupLasso(one, 0.3, 0.2), lambda u: 0.3 * scale * l2(u) + 0.2 * l1(u)),
        "bounded": (
            prox.BoundedGroupLasso(one, 0.1, 0.5),
            lambda u: 0.1 * scale * l2(u) + inside(l2(u) <= 0.5 + 1e-12),
        ),
        "box": (prox.Box(-0.3, 0.8), lambda u: inside((np.abs(u - 0.25) <= 0.55).all(1))),
        "l2_ball": (prox.L2Ball(0.7), lambda u: inside(l2(u) <= 0.7 + 1e-12)),
        "l1_ball": (prox.L1Ball(0.7), lambda u: inside(l1(u) <= 0.7 + 1e-12)),
        "linf_norm": (prox.LinfNorm(0.4), lambda u: 0.4 * np.abs(u).max(1)),
    }


def grid(size: int, radius: float) -> np.ndarray:
    """Points of a cube around the origin."""
    axis = np.linspace(-radius, radius, 21)
    return np.array(list(itertools.product(axis, repeat=size)))


GRIDS = {size: [grid(size, radius) for radius in (2.0, 0.1, 3e-3, 1e-4)] for size in (1, 2, 3)}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", small_cases(3))
def test_no_grid_point_is_better(name, size, step):
    """Zooming grids around the prox point hold nothing lower; 1e-4 away is told apart."""
    penalty, value = small_cases(size)[name]
    rng = np.random.default_rng(size)
    for v in [rng.standard_normal(size), 0.2 * rng.standard_normal(size), np.ones(size), np.zeros(size)]:
        u = np.empty(size)
        penalty.prox(v, step, u)

        def model(points, v=v):
            return value(points) + ((points - v) ** 2).sum(1) / (2 * step)

        here = model(u[None])[0]
        assert np.isfinite(here)
        for points in GRIDS[size]:
            assert here <= model(u + points).min() + 1e-14 * (1 + abs(here))


@pytest.mark.parametrize("size", [2, 3])
def test_simplex_on_its_own_grid(size):
    rng = np.random.default_rng(5)
    axis = np.linspace(0, 1.5, 151)
    corner = np.array(list(itertools.product(axis, repeat=size - 1)))
    points = np.column_stack([corner, 1.5 - corner.sum(1)])
    points = points[points[:, -1] >= 0]
    for v in [rng.standard_normal(size), np.ones(size), np.zeros(size), 9 * rng.standard_normal(size)]:
        u = np.empty(size)
        prox.Simplex(1.5).prox(v, 1.0, u)
        assert u.min() >= 0
        assert u.sum() == pytest.approx(1.5, rel=1e-15)
        distances = ((points - v) ** 2).sum(1)
        assert ((u - v) ** 2).sum() <= distances.min() + 1e-14
        assert np.abs(points[distances.argmin()] - u).max() <= 0.011  # the grid's own resolution


SIZE = 6
STEP = 0.8
MEMBERS = ([0, 3], [1, 2, 5])  # entry 4 is free
GROUPS = prox.Groups.from_lists(MEMBERS, SIZE)


def at_least(function) -> dict:
    """The constraint function(z) >= 0 in SciPy's terms."""
    return {"type": "ineq", "fun": function}


def above_absolute(first: int, size: int) -> list:
    """t_i >= |u_i| for the `size` variables t that follow u at `first`."""
    return [
        at_least(lambda z: z[first : first + size] - z[:SIZE]),
        at_least(lambda z: z[first : first + size] + z[:SIZE]),
    ]


def primal(cost):
    """min cost(z) + |u - v|^2/(2 step) over z = (u, helpers); the answer is u."""
    return lambda z, v: cost(z) + float(np.sum((z[:SIZE] - v) ** 2)) / (2 * STEP), lambda z, v: z[:SIZE]


def dual(total):
    """min |v - step s|^2/2 over s = total(z) in dR(0); the answer is v - step s (Fenchel)."""
    return lambda z, v: 0.5 * float(np.sum((v - STEP * total(z)) ** 2)), lambda z, v: v - STEP * total(z)


def in_balls(radii, first: int = 0) -> list:
    """||z_g|| <= radii[g] for z starting at `first`, and no pull on the entry outside the groups."""
    balls = [
        at_least(lambda z, m=members, r=radius: r**2 - np.sum(z[first:][m] ** 2))
        for members, radius in zip(MEMBERS, radii, strict=True)
    ]
    return [*balls, {"type": "eq", "fun": lambda z: z[first + 4]}]


def reformulations() -> dict:
    """name -> (penalty, number of variables, constraints, (model, answer)): all smooth."""
    root = np.sqrt([2.0, 3.0])
    absolute = above_absolute(SIZE, SIZE)
    l1 = lambda z: 0.4 * float(np.sum(z[SIZE:]))  # noqa: E731
    caps = [at_least(lambda z, m=m: 0.25 - np.sum(z[m] ** 2)) for m in MEMBERS]
    tips = [at_least(lambda z, g=g, m=m: z[SIZE + g] ** 2 - np.sum(z[m] ** 2)) for g, m in enumerate(MEMBERS)]
    box = [at_least(lambda z: 0.4 - z[:SIZE]), at_least(lambda z: 0.4 + z[:SIZE])]
    return {
        "l1": (prox.L1(0.4), 2 * SIZE, absolute, primal(l1)),
        "elastic_net": (
            prox.ElasticNet(0.4, 1.5),
            2 * SIZE,
            absolute,
            primal(lambda z: l1(z) + 0.75 * float(np.sum(z[:SIZE] ** 2))),
        ),
        "group_lasso": (prox.GroupLasso(GROUPS, 0.5), SIZE, in_balls(0.5 * root), dual(lambda z: z)),
        "sparse_group_lasso": (
            prox.SparseGroupLasso(GROUPS, 0.3, 0.4),
            2 * SIZE,
            box + in_balls(0.3 * root, SIZE),
            dual(lambda z: z[:SIZE] + z[SIZE:]),
        ),
        "bounded": (
            prox.BoundedGroupLasso(GROUPS, 0.2, 0.5),
            SIZE + 2,
            caps + tips + [at_least(lambda z: z[SIZE:])],
            primal(lambda z: 0.2 * float(root @ z[SIZE:])),
        ),
        "linf_norm": (
            prox.LinfNorm(0.8),
            SIZE + 1,
            above_absolute(SIZE, 1),
            primal(lambda z: 0.8 * float(z[SIZE])),
        ),
        "l1_ball": (
            prox.L1Ball(0.9),
            2 * SIZE,
            [*absolute, at_least(lambda z: 0.9 - np.sum(z[SIZE:]))],
            primal(lambda z: 0.0),
        ),
        "l2_ball": (prox.L2Ball(0.9), SIZE, [at_least(lambda z: 0.81 - z @ z)], primal(lambda z: 0.0)),
        "simplex": (
            prox.Simplex(1.0),
            SIZE,
            [at_least(lambda z: z), {"type": "eq", "fun": lambda z: np.sum(z) - 1}],
            primal(lambda z: 0.0),
        ),
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", reformulations())
def test_outside_solver_finds_the_same_point(name, seed):
    """SciPy's SLSQP on a smooth reformulation ends within 2e-5 of the closed form."""
    penalty, variables, constraints, (model, answer) = reformulations()[name]
    v = np.random.default_rng(seed).standard_normal(SIZE)
    start = np.concatenate([0.1 * np.ones(SIZE), np.ones(variables - SIZE)])
    options = {"maxiter": 500, "ftol": 1e-14}
    solved = minimize(model, start, args=(v,), method="SLSQP", constraints=constraints, options=options)
    u = np.empty(SIZE)
    penalty.prox(v, STEP, u)
    assert np.max(np.abs(answer(solved.x, v) - u)) <= 2e-5
