"""Proximal operators against their defining properties, none of which reuses the code under test.

`CASES` lists every penalty next to a plain statement of R, written apart in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refimpl.optim import prox

SIZE = 9
# Group 1 is scattered, group 2 empty, group 3 a single entry; entries 4 and 8 belong to no group.
MEMBERS = ([0, 1, 2], [7, 3, 5], [], [6])
GROUPS = prox.Groups.from_lists(MEMBERS, SIZE)
LOWER = np.array([-1.0, -1.0, 0.0, -np.inf, 0.5, -2.0, -0.1, 0.0, -1.0])
UPPER = np.array([1.0, 0.0, np.inf, 0.3, 0.5, 2.0, 0.1, 1.0, np.inf])


@dataclass(frozen=True)
class Case:
    penalty: prox.Penalty
    value: Callable[[np.ndarray], float]  # R, infinite outside the domain


def blocks(u: np.ndarray) -> float:
    return sum(np.sqrt(len(g)) * np.linalg.norm(u[g]) for g in MEMBERS if g)


def inside(condition: object) -> float:
    return 0.0 if np.all(condition) else np.inf


def separable_value(u: np.ndarray) -> float:
    return 0.3 * np.abs(u[1:4]).sum() + inside(np.linalg.norm(u[5:9]) <= 1 + 1e-12)


CASES: dict[str, Case] = {
    "zero": Case(prox.Zero(), lambda u: 0.0),
    "squared_l2": Case(prox.SquaredL2(0.7), lambda u: 0.35 * float(u @ u)),
    "l1": Case(prox.L1(0.4), lambda u: 0.4 * np.abs(u).sum()),
    "elastic_net": Case(prox.ElasticNet(0.4, 1.5), lambda u: 0.4 * np.abs(u).sum() + 0.75 * float(u @ u)),
    "non_negative_l1": Case(prox.NonNegativeL1(0.4), lambda u: 0.4 * u.sum() + inside(u >= 0)),
    "group_lasso": Case(prox.GroupLasso(GROUPS, 0.5), lambda u: 0.5 * blocks(u)),
    "group_lasso_weighted": Case(
        prox.GroupLasso(GROUPS, 0.5, weights=np.array([1.0, 0.2, 3.0, 0.0])),
        lambda u: 0.5 * (np.linalg.norm(u[[0, 1, 2]]) + 0.2 * np.linalg.norm(u[[3, 5, 7]])),
    ),
    "sparse_group_lasso": Case(
        prox.SparseGroupLasso(GROUPS, 0.3, 0.2), lambda u: 0.3 * blocks(u) + 0.2 * np.abs(u).sum()
    ),
    "bounded_group_lasso": Case(
        prox.BoundedGroupLasso(GROUPS, 0.3, radius=0.9),
        lambda u: 0.3 * blocks(u) + inside([np.linalg.norm(u[g]) <= 0.9 + 1e-12 for g in MEMBERS]),
    ),
    "box": Case(prox.Box(LOWER, UPPER), lambda u: inside((u >= LOWER) & (u <= UPPER))),
    "linf_ball": Case(prox.LinfBall(0.6), lambda u: inside(np.abs(u) <= 0.6)),
    "l2_ball": Case(prox.L2Ball(1.3), lambda u: inside(np.linalg.norm(u) <= 1.3 + 1e-12)),
    "l1_ball": Case(prox.L1Ball(1.7), lambda u: inside(np.abs(u).sum() <= 1.7 + 1e-12)),
    "simplex": Case(prox.Simplex(2.0), lambda u: inside(u >= 0) + inside(abs(u.sum() - 2.0) <= 1e-12)),
    "linf_norm": Case(prox.LinfNorm(0.8), lambda u: 0.8 * np.abs(u).max()),
    "separable": Case(
        prox.Separable(((slice(5, 9), prox.L2Ball(1.0)), (slice(1, 4), prox.L1(0.3)))), separable_value
    ),
}
NORMS = ("l1", "group_lasso", "group_lasso_weighted", "sparse_group_lasso", "linf_norm")
INDICATORS = ("box", "linf_ball", "l2_ball", "l1_ball", "simplex")
STEPS = st.sampled_from([1e-3, 0.1, 1.0, 2.5, 40.0])


def draw(seed: int) -> np.ndarray:
    """A vector of varied scale with some zeros and some ties in it."""
    rng = np.random.default_rng(seed)
    v = rng.standard_normal(SIZE) * rng.choice([1e-2, 0.3, 1.0, 5.0])
    v[rng.random(SIZE) < 0.15] = 0.0
    tied = rng.random(SIZE) < 0.3
    v[tied] = np.sign(v[tied]) * np.max(np.abs(v))
    return v


def apply(penalty: prox.Penalty, v: np.ndarray, step: float) -> np.ndarray:
    out = np.full_like(v, np.nan)
    penalty.prox(v, step, out)
    return out


def excess(case: Case, u: np.ndarray, v: np.ndarray, step: float, z: np.ndarray) -> float:
    """By how much z violates the three-point inequality of a claimed prox point u; positive is wrong."""

    def model(x: np.ndarray) -> float:
        return case.value(x) + np.sum((x - v) ** 2) / (2 * step)

    scale = 1.0 + abs(model(u)) + np.sum((z - u) ** 2) / (2 * step)
    return (model(u) + np.sum((z - u) ** 2) / (2 * step) - model(z)) / scale


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), step=STEPS)
def test_optimality(name, seed, step):
    """(v - u)/c is a subgradient at u, by the closed form of the subdifferential."""
    penalty, v = CASES[name].penalty, draw(seed)
    u = apply(penalty, v, step)
    s = (v - u) / step
    distance = penalty.subdifferential_distance(s, u)
    # s carries the rounding of v - u divided by the step; on a sphere u/||u|| adds that of s itself
    assert distance <= 1e-14 * (np.linalg.norm(v) + np.linalg.norm(u)) / step + 1e-14 * (
        1 + np.linalg.norm(s)
    )


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), step=STEPS)
def test_three_point_inequality(name, seed, step):
    """R(u) + |u-v|^2/2c + |z-u|^2/2c <= R(z) + |z-v|^2/2c for every z: u minimises, with its strength."""
    case, v = CASES[name], draw(seed)
    u = apply(case.penalty, v, step)
    assert np.isfinite(case.value(u))
    for other in range(6):
        far = apply(case.penalty, draw(seed + 1 + other), step)
        for z in (far, u + 1e-2 * (far - u), u):
            assert excess(case, u, v, step, z) <= 1e-12


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), step=STEPS)
def test_firm_nonexpansiveness(name, seed, step):
    """|u1 - u2|^2 <= <u1 - u2, v1 - v2>."""
    penalty = CASES[name].penalty
    v1 = draw(seed)
    for v2 in (draw(seed + 1), v1 + 1e-3 * draw(seed + 2)):
        moved = apply(penalty, v1, step) - apply(penalty, v2, step)
        assert moved @ moved <= moved @ (v1 - v2) + 1e-14 * (v1 @ v1 + v2 @ v2)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), step=STEPS)
def test_value(name, seed, step):
    """The value is R as stated apart, at any point and as returned by prox."""
    case, v = CASES[name], draw(seed)
    assert case.penalty.value(v) == pytest.approx(case.value(v), rel=1e-13)
    out = np.empty_like(v)
    returned = case.penalty.prox(v, step, out)
    assert returned == pytest.approx(case.value(out), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), at_kink=st.booleans())
def test_subdifferential_distance(name, seed, at_kink):
    """dist(s, dR(u)) is the speed at which u + t s is pushed back: |prox_t(u + t s) - u|/t as t -> 0."""
    penalty = CASES[name].penalty
    u = apply(penalty, draw(seed), 1.0 if at_kink else 1e-3)  # a point of the domain
    s = np.random.default_rng(seed).standard_normal(SIZE)
    coarse, expected = (
        np.linalg.norm(apply(penalty, u + step * s, step) - u) / step for step in (1e-7, 1e-8)
    )
    assume(abs(coarse - expected) <= 1e-5)  # u is not so near a kink that the limit is still far
    assert penalty.subdifferential_distance(s, u) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", NORMS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), step=STEPS)
def test_moreau_with_the_dual_coded_apart(name, seed, step):
    """v = prox_{cR}(v) + c prox_{R*/c}(v/c)."""
    penalty, v = CASES[name].penalty, draw(seed)
    assert isinstance(penalty, prox.Norm)
    dual = np.full_like(v, np.nan)
    penalty.conjugate_prox(v / step, 1.0 / step, dual)
    assert np.max(np.abs(apply(penalty, v, step) + step * dual - v)) <= 1e-13 * (1 + np.linalg.norm(v))


@pytest.mark.parametrize("name", NORMS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_dual_norm(name, seed):
    """dR(0) is the unit ball of the dual norm, and <s, u> <= |s|_dual R(u)."""
    penalty, zero = CASES[name].penalty, np.zeros(SIZE)
    s, u = draw(seed), draw(seed + 1)
    if name == "group_lasso":
        s[[4, 8]] = 0.0
    if name == "group_lasso_weighted":
        s[[4, 6, 8]] = 0.0  # group 3 has weight zero
    size = penalty.dual_norm(s)
    assert s @ u <= size * penalty.value(u) + 1e-12
    if size > 0:
        assert penalty.subdifferential_distance(s / size, zero) <= 1e-13
        assert penalty.subdifferential_distance(1.01 * s / size, zero) > 1e-4
        assert penalty.dual_norm(s / size) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", ["group_lasso", "group_lasso_weighted"])
def test_dual_norm_is_infinite_where_the_seminorm_vanishes(name):
    s = np.zeros(SIZE)
    s[8] = 1.0
    assert CASES[name].penalty.dual_norm(s) == np.inf


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), step=STEPS)
def test_float32_is_float64_rounded(name, seed, step):
    """Computed wide and rounded once: the float32 result is within one unit of the float64 one."""
    penalty, v = CASES[name].penalty, draw(seed).astype(np.float32)
    narrow, wide = apply(penalty, v, step), apply(penalty, v.astype(np.float64), step)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, wide, rtol=1.2e-7, atol=1e-44)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), step=STEPS)
def test_in_place_gives_the_same_bytes(name, seed, step):
    penalty, v = CASES[name].penalty, draw(seed)
    before = v.copy()
    out = apply(penalty, v, step)
    assert v.tobytes() == before.tobytes()  # the input is left alone
    penalty.prox(v, step, v)
    assert v.tobytes() == out.tobytes()


class Mutated:
    """A penalty whose prox is slightly wrong, to show that the properties above notice."""

    def __init__(self, penalty, step=1.0, shift=0.0):
        self.penalty, self.step, self.shift = penalty, step, shift

    def prox(self, v, step, out):
        value = self.penalty.prox(v, self.step * step, out)
        out *= 1.0 + self.shift
        return value


@pytest.mark.parametrize("name", [n for n in CASES if n != "zero"])
def test_wrong_prox_is_noticed(name):
    """A step or a scale off by 2 % breaks the three-point inequality and the optimality condition."""
    case = CASES[name]
    mutants = [Mutated(case.penalty, shift=-0.02)]
    if name not in INDICATORS:
        mutants.append(Mutated(case.penalty, step=1.02))
    for mutant in mutants:
        noticed_optimality = noticed_inequality = False
        for seed in range(20):
            v = draw(seed)
            u, right = apply(mutant, v, 0.7), apply(case.penalty, v, 0.7)
            noticed_optimality |= case.penalty.subdifferential_distance((v - u) / 0.7, u) > 1e-6
            noticed_inequality |= np.isinf(case.value(u)) or excess(case, u, v, 0.7, right) > 1e-6
        assert noticed_optimality
        assert noticed_inequality
