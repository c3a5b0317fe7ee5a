"""Proximal operators at extreme scales, alone and mixed, against exact arithmetic (`exact_prox`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import exact_prox
import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.optim import prox

SIZE = 9
MEMBERS = [[0, 1, 2], [7, 3, 5], [], [6]]  # entries 4 and 8 belong to no group
GROUPS = prox.Groups.from_lists(MEMBERS, SIZE)
ONES = np.ones(len(MEMBERS))
MAKE = {
    "zero": lambda rho, second: prox.Zero(),
    "squared_l2": lambda rho, second: prox.SquaredL2(rho),
    "l1": lambda rho, second: prox.L1(rho),
    "elastic_net": prox.ElasticNet,
    "non_negative_l1": lambda rho, second: prox.NonNegativeL1(rho),
    "box": lambda rho, second: prox.Box(-second, second),
    "l2_ball": lambda rho, second: prox.L2Ball(second),
    "l1_ball": lambda rho, second: prox.L1Ball(second),
    "simplex": lambda rho, second: prox.Simplex(second),
    "linf_norm": lambda rho, second: prox.LinfNorm(rho),
    "group_lasso": lambda rho, second: prox.GroupLasso(GROUPS, rho, ONES),
    "bounded_group_lasso": lambda rho, second: prox.BoundedGroupLasso(GROUPS, rho, second, ONES),
    "sparse_group_lasso": lambda rho, second: prox.SparseGroupLasso(GROUPS, rho, second, ONES),
}
NORMS = ("l1", "linf_norm", "group_lasso", "sparse_group_lasso")
INDICATORS = ("box", "l2_ball", "l1_ball", "simplex")
WITH_DOMAIN = (*INDICATORS, "bounded_group_lasso", "non_negative_l1")
REACH = {"float32": 38.0, "float64": 300.0}  # powers of ten
DIGITS = {"float32": 1e-5, "float64": 1e-12}
SMALLEST = Fraction(8 * 5e-324)


@dataclass(frozen=True)
class Draw:
    """A penalty and vectors: all numbers near one scale, near one of two scales, or each of its own."""

    name: str
    rho: float
    second: float
    step: float
    v: np.ndarray
    s: np.ndarray

    @classmethod
    def make(cls, name: str, seed: int, dtype: str) -> Draw:
        rng, reach = np.random.default_rng(seed), REACH[dtype]
        centres = rng.uniform(-reach, reach, (1, 2, SIZE)[seed % 3])

        def vector() -> np.ndarray:
            powers = rng.choice(centres, SIZE) if centres.size < SIZE else rng.permutation(centres)
            x = rng.choice([-1, 1], SIZE) * rng.uniform(0.3, 1.0, SIZE) * 10.0**powers
            x[rng.random(SIZE) < 0.1] = 0.0
            return x.astype(dtype)

        step = rng.uniform(-reach, reach)
        near = rng.choice(centres) - (step if seed % 2 else 0.0)  # that step rho, or rho, is like an entry
        powers = np.clip([near + rng.uniform(-0.5, 0.5), rng.choice(centres) + 0.3], -reach, reach)
        rho, second = (float(x) for x in (10.0**powers).astype(dtype))
        return cls(name, rho, second, float(10.0**step), vector(), vector())

    @property
    def penalty(self) -> prox.Penalty:
        return MAKE[self.name](self.rho, self.second)

    @property
    def rule(self) -> exact_prox.Rule:
        return exact_prox.rules(MEMBERS, self.rho, self.second)[self.name]


def draws(name: str, dtype: str, count: int = 90) -> Iterator[Draw]:
    return (Draw.make(name, seed, dtype) for seed in range(count))


def right(
    got: float, want: Fraction, dtype: str, operand: Fraction = exact_prox.ZERO, held: str = ""
) -> bool:
    """Whether got is `want` up to the promised part of it, or of the size of what was subtracted.

    `held` is the dtype of `got`, if it is not `dtype`, whose digits are promised.
    """
    kind = np.finfo(held or dtype)
    if abs(want) > Fraction(float(kind.max)):
        return bool(got == exact_prox.sign(want) * np.inf)
    if not np.isfinite(got):
        return False
    rounded = 16 * Fraction(float(np.finfo(dtype).eps)) * operand + 8 * Fraction(
        float(kind.smallest_subnormal)
    )
    return abs(Fraction(float(got)) - want) <= Fraction(DIGITS[dtype]) * abs(want) + rounded


def all_right(got, want, dtype: str, operands) -> bool:
    return all(right(*pair[:2], dtype, pair[2]) for pair in zip(got, want, operands, strict=True))


@pytest.mark.parametrize("dtype", REACH)
@pytest.mark.parametrize("name", MAKE)
def test_prox(name, dtype):
    """Projections that take a level off, on the simplex and the l1 ball, lose no digit even there."""
    for d in draws(name, dtype):
        v, out = exact_prox.exact(d.v), np.full_like(d.v, np.nan)
        d.penalty.prox(d.v, d.step, out)
        lossless = name in ("zero", "box", "l1_ball", "simplex")
        operands = [0 if lossless else max(map(abs, v)) if name == "linf_norm" else abs(a) for a in v]
        assert all_right(out, d.rule.prox(v, Fraction(d.step)), dtype, operands), d


@pytest.mark.parametrize("dtype", REACH)
@pytest.mark.parametrize("name", MAKE)
def test_value(name, dtype):
    """At a point of the domain, and as returned by prox (relative to what was there before shrinking)."""
    for d in draws(name, dtype):
        out, v = np.empty_like(d.v), exact_prox.exact(d.v)
        returned = d.penalty.prox(d.v, d.step, out)
        wanted = d.rule.value(d.rule.prox(v, Fraction(d.step)))
        assert right(returned, wanted, dtype, d.rule.value([abs(a) for a in v]), held="float64"), d
        assert right(d.penalty.value(out), d.rule.value(exact_prox.exact(out)), "float64"), d


@pytest.mark.parametrize("dtype", REACH)
@pytest.mark.parametrize("name", INDICATORS)
def test_outside_the_domain_the_value_is_infinite(name, dtype):
    for d in draws(name, dtype):
        beyond = np.zeros(SIZE, dtype=dtype)
        beyond[2] = 1.01 * d.second
        assert d.penalty.value(beyond) == np.inf


@pytest.mark.parametrize("dtype", REACH)
@pytest.mark.parametrize("name", MAKE)
def test_subdifferential_distance(name, dtype):
    """At points of the domain, for pulls of any scale, along the point and none."""
    for d in draws(name, dtype):
        u = np.full(SIZE, d.s[0]) if name == "linf_norm" else d.v.copy()
        if name in WITH_DOMAIN:
            d.penalty.prox(d.v, 0.0, u)
        at = exact_prox.exact(u)
        if name in ("l2_ball", "l1_ball"):
            size = exact_prox.norm(at) if name == "l2_ball" else sum(map(abs, at))
            if size < Fraction(d.second) * (1 - Fraction(1e-6)):
                continue  # the rule is for the boundary
        for s in (d.s, np.sign(u) * np.max(np.abs(d.s)), np.zeros_like(u)):
            pull = exact_prox.exact(s)
            curved = {"squared_l2": d.rho, "elastic_net": d.second}.get(name, 0.0)
            sizes = [abs(a) + Fraction(curved) * abs(b) for a, b in zip(pull, at, strict=True)]
            weights = Fraction(d.rho) * (name not in INDICATORS) + Fraction(d.second) * (
                name == "sparse_group_lasso"
            )
            wanted, operand = d.rule.distance(pull, at), sum(sizes) + SIZE * weights
            assert right(d.penalty.subdifferential_distance(s, u), wanted, "float64", operand), (d, s)


@pytest.mark.parametrize("dtype", REACH)
@pytest.mark.parametrize("name", NORMS)
def test_conjugate_prox(name, dtype):
    for d in draws(name, dtype):
        v, out = exact_prox.exact(d.v), np.full_like(d.v, np.nan)
        d.penalty.conjugate_prox(d.v, d.step, out)
        assert all_right(out, d.rule.conjugate(v), dtype, [abs(a) * (name[0] == "s") for a in v]), d


@pytest.mark.parametrize("dtype", REACH)
@pytest.mark.parametrize("name", NORMS)
def test_dual_norm(name, dtype):
    """The dual norm is where the exact inequality that defines it changes sign."""
    part = Fraction(1e-12)
    for d in draws(name, dtype):
        s = np.where(GROUPS.owner < 0, 0, d.s).astype(dtype) if name == "group_lasso" else d.s
        got = min(d.penalty.dual_norm(s), np.finfo(float).max)
        exact, size = exact_prox.exact(s), Fraction(float(got))
        assert d.rule.dual_excess(exact, max(size * (1 - part) - SMALLEST, exact_prox.ZERO)) >= 0, d
        too_large = got == np.finfo(float).max
        assert too_large or d.rule.dual_excess(exact, size * (1 + part) + SMALLEST) <= 0, d


@pytest.mark.parametrize("many", [2, 4, 1000])
def test_norms_and_sums_beyond_every_number(many):
    """Vectors whose norm and sum overflow still have a prox: all entries alike, so the answers are plain."""
    v = np.full(many, 1.6e308)
    groups = prox.Groups.from_sizes([many])

    def at(penalty, step=1.0):
        out = np.empty(many)
        penalty.prox(v, step, out)
        return out

    for radius in (1e-300, 1.0, 1e300):
        np.testing.assert_allclose(at(prox.L2Ball(radius)), radius / many**0.5, rtol=1e-13)
        np.testing.assert_allclose(at(prox.L1Ball(radius)), radius / many, rtol=1e-12)
        np.testing.assert_allclose(at(prox.Simplex(radius)), radius / many, rtol=1e-12)
        bounded = prox.BoundedGroupLasso(groups, 0.0, radius)
        np.testing.assert_allclose(at(bounded), radius / many**0.5, rtol=1e-13)
        projected = np.empty(many)
        prox.GroupLasso(groups, radius, np.ones(1)).conjugate_prox(v, 1.0, projected)
        np.testing.assert_allclose(projected, radius / many**0.5, rtol=1e-13)
    halved = prox.GroupLasso(groups, 0.8e308 / 1e300 * many**0.5, np.ones(1))
    np.testing.assert_allclose(at(halved, 1e300), 0.8e308, rtol=1e-13)
    np.testing.assert_allclose(at(prox.LinfNorm(1e300), 0.8e8), 1.6e308 - 0.8e308 / many, rtol=1e-13)
    assert prox.L1(0.0).value(v) == prox.GroupLasso(groups, 0.0).value(v) == 0.0


def test_values_add_up_to_infinity():
    both = prox.Separable(((slice(0, 1), prox.L1(1e308)), (slice(1, 2), prox.L1(1e308))))
    assert both.value(np.array([1.5, 1.5])) == np.inf


def test_the_level_keeps_the_digits_of_small_differences():
    """Entries that differ by 2 at 1e16, and a total that is lost when it is added to them."""
    v, out = np.array([1e16, 1e16 + 2, 1e16 + 2]), np.empty(3)
    prox.Simplex(1e-3).prox(v, 1.0, out)
    assert out.tolist() == [0.0, 0.5e-3, 0.5e-3]
    prox.L1Ball(7.0).prox(-v, 1.0, out)
    assert out.tolist() == [-1.0, -3.0, -3.0]


def test_weights_too_large_for_a_number_are_refused():
    with pytest.raises(InputError, match="too large a number"):
        prox.GroupLasso(GROUPS, 1e300, 1e10 * ONES)
    with pytest.raises(InputError, match="no float32 number lies in the box"):
        prox.Box(1e300, 2e300).value(np.zeros(2, dtype=np.float32))


@pytest.mark.parametrize("bound", [0.8, 1e-300, 1e300])
@pytest.mark.parametrize("dtype", REACH)
def test_a_box_bears_the_rounding_of_a_convex_combination(bound, dtype):
    """a z + (1 - a) z at a bound z lies in the box, with the normal cone of the bound; more does not."""
    if dtype == "float32" and not 1e-38 < bound < 1e38:
        pytest.skip("no float32 number")
    kind, rng = np.dtype(dtype).type, np.random.default_rng(0)
    box, pull = prox.Box(-bound, bound), np.ones(1, dtype=dtype)
    for a in (0.2, *rng.random(200)):
        for z in (kind(bound), kind(-bound)):
            u = np.array([kind(a) * z + kind(1 - a) * z])
            assert box.value(u) == 0.0
            assert box.subdifferential_distance(pull, u) == (0.0 if z > 0 else 1.0)
    assert box.value(np.array([bound * (1 + 1e-4)], dtype=dtype)) == np.inf
    assert prox.Box(0.0, 1.0).value(np.array([-1e-30], dtype=dtype)) == np.inf
