"""Degenerate inputs of the proximal operators: NaN, zeros, step 0, extreme scales, odd groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_prox import CASES, GROUPS, INDICATORS, SIZE, apply, draw

from refimpl.errors import InputError
from refimpl.kernels import groups as kernels
from refimpl.optim import prox
from refimpl.registry import PENALTIES

DTYPES = (np.float32, np.float64)


def overflowing() -> np.errstate:
    """With Numba's compiler off, the first attempt at a huge norm overflows audibly, then it is redone."""
    return np.errstate(over="ignore")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", range(SIZE))
def test_not_finite_is_refused_and_nothing_written(name, bad, where):
    v, good = np.ones(SIZE), np.ones(SIZE)
    v[where] = bad
    out = np.full(SIZE, 7.0)
    penalty = CASES[name].penalty
    with pytest.raises(InputError, match="NaN or infinite"):
        penalty.prox(v, 1.0, out)
    assert np.all(out == 7.0)
    with pytest.raises(InputError, match="NaN or infinite"):
        penalty.value(v)
    for pair in ((v, good), (good, v)):
        with pytest.raises(InputError, match="NaN or infinite"):
            penalty.subdifferential_distance(*pair)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("v", "step", "out", "message"),
    [
        (np.ones((3, 3)), 1.0, np.ones((3, 3)), "1-D"),
        (np.ones(SIZE, dtype=np.int64), 1.0, np.ones(SIZE), "float32 or float64"),
        ([1.0] * SIZE, 1.0, np.ones(SIZE), "list"),
        (np.ones(2 * SIZE)[::2], 1.0, np.ones(SIZE), "contiguous"),
        (np.broadcast_to(np.ones(1), SIZE), 1.0, np.ones(SIZE), "contiguous and writable"),
        (np.ones(SIZE), -1.0, np.ones(SIZE), "step >= 0"),
        (np.ones(SIZE), math.nan, np.ones(SIZE), "step >= 0"),
        (np.ones(SIZE), math.inf, np.ones(SIZE), "step >= 0"),
        (np.ones(SIZE), 1.0, np.ones(SIZE + 1), "v and out of one length"),
        (np.ones(SIZE), 1.0, np.ones(SIZE, dtype=np.float32), "v and out of one length"),
        (np.ones(SIZE), 1.0, np.ones(2 * SIZE)[::2], "out contiguous"),
        (np.ones(SIZE), 1.0, None, "out to be a 1-D"),
    ],
)
def test_wrong_arguments_are_refused(name, v, step, out, message):
    with pytest.raises(InputError, match=message):
        CASES[name].penalty.prox(v, step, out)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_step_zero_projects_on_the_domain(name, dtype):
    case = CASES[name]
    for seed in range(20):
        v = draw(seed).astype(dtype)
        u = apply(case.penalty, v, 0.0)
        if np.isfinite(case.penalty.value(v)):
            assert u.tobytes() == (v + dtype(0)).tobytes()
        else:
            assert np.isfinite(case.penalty.value(u))
            # in float32 the sum of a simplex point is right only to rounding, so it moves once more
            assert apply(case.penalty, u, 0.0) == pytest.approx(u, rel=1e-6, abs=2e-7)
            tiny = apply(case.penalty, v.astype(np.float64), 1e-9)
            np.testing.assert_allclose(u, tiny, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_vector(name, dtype):
    u = apply(CASES[name].penalty, np.zeros(SIZE, dtype=dtype), 1.0)
    expected = {"simplex": np.full(SIZE, 2.0 / SIZE), "box": np.eye(SIZE)[4] / 2}.get(name, np.zeros(SIZE))
    np.testing.assert_allclose(u, expected.astype(dtype), rtol=2e-7)
    assert not np.any(np.signbit(u))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.float32, 1e30), (np.float32, 1e-30), (np.float64, 1e300), (np.float64, 1e-300)]
)
def test_extreme_scales(name, dtype, scale):
    """No overflow, no NaN, no warning; thresholds swallow the tiny and leave the huge alone."""
    penalty = CASES[name].penalty
    v = (draw(3) * scale).astype(dtype)
    with overflowing():
        u = apply(penalty, v, 1.0)
        assert np.all(np.isfinite(u))
        assert name not in INDICATORS or penalty.value(u) == 0.0
    if name in ("l1", "group_lasso", "sparse_group_lasso", "linf_norm"):
        inside = GROUPS.owner >= 0 if name == "group_lasso" else np.ones(SIZE, dtype=bool)
        np.testing.assert_allclose(u[inside], v[inside] if scale > 1 else 0.0, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
@pytest.mark.parametrize("step", [0.3, 2.0])
def test_group_shrinkage_commutes_with_scaling(scale, step):
    """prox of t v with step t c is t times prox of v with step c, however large or small t is."""
    rng = np.random.default_rng(2)
    lists = ([0, 1, 2, 9], [3, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16])  # with runs, longer than a lane
    penalty = prox.GroupLasso(prox.Groups.from_lists(lists, 17))
    v = rng.standard_normal(17)
    expected, out = apply(penalty, v, step), np.empty(17)
    with overflowing():
        penalty.prox(v * scale, step * scale, out)
        norms = penalty.groups.norms(v * scale)
    np.testing.assert_allclose(out / scale, expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(norms / scale, [np.linalg.norm(v[g]) for g in lists], rtol=1e-14)


def test_tie_at_the_threshold_is_zero():
    """A group exactly as long as its threshold goes to zero; one unit more does not."""
    penalty = prox.GroupLasso(prox.Groups.from_sizes([2]), 1.0, weights=np.array([5.0]))
    assert apply(penalty, np.array([3.0, 4.0]), 1.0).tolist() == [0.0, 0.0]
    assert np.all(apply(penalty, np.array([3.0, 4.000001]), 1.0) > 0)
    assert apply(prox.L1(1.0), np.array([1.0, -1.0, 1.5]), 1.0).tolist() == [0.0, 0.0, 0.5]


def test_ties_are_treated_alike():
    assert apply(prox.Simplex(1.0), np.full(4, 1e16), 1.0).tolist() == [0.25] * 4
    assert apply(prox.L1Ball(1.0), np.array([5.0, -5.0]), 1.0).tolist() == [0.5, -0.5]
    assert apply(prox.LinfNorm(1.0), np.array([2.0, -2.0, 0.0]), 1.0).tolist() == [1.5, -1.5, 0.0]


def test_far_from_a_small_ball_no_digit_is_lost():
    """Thresholding relative to the largest entry: differences of 2 at 1e16 survive."""
    assert apply(prox.Simplex(3.0), np.array([1e16, 1e16 + 2]), 1.0).tolist() == [0.5, 2.5]
    assert apply(prox.L1Ball(3.0), np.array([1e16, -1e16 - 2]), 1.0).tolist() == [0.5, -2.5]


def test_empty_things():
    nothing = np.zeros(0)
    for penalty in (
        prox.Zero(),
        prox.L1(),
        prox.GroupLasso(prox.Groups.from_sizes([])),
        prox.GroupLasso(prox.Groups.from_sizes([0, 0])),
        prox.LinfNorm(),
        prox.L1Ball(),
        prox.Separable(()),
    ):
        assert penalty.prox(nothing, 1.0, nothing) == 0.0
        assert penalty.value(nothing) == 0.0
        assert penalty.subdifferential_distance(nothing, nothing) == 0.0
    with pytest.raises(InputError, match="empty"):
        prox.Simplex().prox(nothing, 1.0, nothing)


def test_a_penalty_that_code_makes_without_a_number_has_one_and_a_box_no_bounds():
    groups = prox.Groups.from_sizes([2])
    for penalty in (prox.L1(), prox.GroupLasso(groups), prox.SparseGroupLasso(groups), prox.LinfNorm()):
        assert penalty.rho == 1.0
    assert (prox.SparseGroupLasso(groups).rho_l1, prox.L1Ball().radius, prox.L2Ball().radius) == (1.0,) * 3
    assert prox.Box().value(np.array([-1e300, 1e300])) == prox.Box(lower=0.0).value(np.array([9.0])) == 0.0
    assert (PENALTIES.keys()["rho"].default, PENALTIES.keys()["upper"].default) == (0.01, 1.0)  # in files


def test_no_weight_is_no_penalty():
    groups = prox.Groups.from_sizes([4, 5])
    v = draw(1)
    for penalty in (prox.L1(0.0), prox.GroupLasso(groups, 0.0), prox.SparseGroupLasso(groups, 0.0, 0.0)):
        assert apply(penalty, v, 3.0).tobytes() == (v + 0.0).tobytes()
        assert penalty.dual_norm(v) == np.inf
        assert penalty.dual_norm(np.zeros(SIZE)) == 0.0
    assert apply(prox.LinfNorm(0.0), v, 3.0).tobytes() == v.tobytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prox.L1(-1.0), "rho must be at least 0"),
        (lambda: prox.L1(math.nan), "rho must be at least 0"),
        (lambda: prox.ElasticNet(1.0, -1.0), "ridge must be at least 0"),
        (lambda: prox.L2Ball(0.0), "radius must be positive"),
        (lambda: prox.L1Ball(math.inf), "radius must be a finite number"),
        (lambda: prox.Simplex(-1.0), "total must be positive"),
        (lambda: prox.LinfBall(0.0), "radius must be positive"),
        (lambda: prox.Box(1.0, 0.0), "lower <= upper"),
        (lambda: prox.Box(math.nan, 0.0), "lower <= upper"),
        (lambda: prox.Box(np.zeros(3), np.ones(4)), r"one length, got float64 \(3,\) and float64 \(4,\)"),
        (lambda: prox.Box("0", 1.0), "numbers or vectors"),
        (lambda: prox.Box(np.zeros(3), np.ones(3)).value(np.zeros(4)), r"\(3,\).*\(4,\)"),
        (lambda: prox.Groups([0, 2], [0, 0], 3), "overlap or repeat"),
        (lambda: prox.Groups([0, 1, 2], [1, 1], 3), "overlap or repeat"),
        (lambda: prox.Groups([0, 2], [0, 3], 3), r"0\.\.2"),
        (lambda: prox.Groups([0, 2], [-1, 1], 3), r"0\.\.2"),
        (lambda: prox.Groups([0, 2, 1, 2], [0, 1], 3), "rise from 0"),
        (lambda: prox.Groups([1, 2], [0, 1], 3), "rise from 0"),
        (lambda: prox.Groups([0, 1], [0, 1], 3), "rise from 0"),
        (lambda: prox.Groups([], [], 3), "rise from 0"),
        (lambda: prox.Groups([0, 1], [0.5], 3), "whole numbers"),
        (lambda: prox.Groups.from_sizes([2, -1]), "rise from 0"),
        (lambda: prox.GroupLasso(prox.Groups.from_sizes([2, 3]), weights=np.ones(3)), "2 finite weights"),
        (lambda: prox.GroupLasso(prox.Groups.from_sizes([2]), weights=np.array([-1.0])), "weights >= 0"),
        (
            lambda: prox.GroupLasso(prox.Groups.from_sizes([1, 1]), weights=np.ones((2, 1))),
            "2 finite weights",
        ),
        (lambda: prox.GroupLasso(prox.Groups.from_sizes([1, 1]), weights=["1", "1"]), "2 finite weights"),
        (lambda: prox.Groups.from_sizes([3]).norms(np.ones(2)), "3 entries, got 2"),
        (lambda: prox.GroupLasso(prox.Groups.from_sizes([2])).value(np.ones(3)), "2 entries, got 3"),
        (lambda: prox.BoundedGroupLasso(prox.Groups.from_sizes([2]), radius=0.0), "radius must be positive"),
        (lambda: prox.Separable(((slice(0, 2), prox.L1()), (slice(1, 3), prox.L1()))), "disjoint"),
        (lambda: prox.Separable(((slice(0, None), prox.L1()),)), "disjoint"),
        (lambda: prox.Separable(((slice(0, 4, 2), prox.L1()),)), "disjoint"),
        (lambda: prox.Separable(((slice(0, 4), abs),)), "no penalty"),
        (lambda: prox.Separable(((slice(-3, 2), prox.L1()),)), "0 <= start"),
        (lambda: prox.Separable(((slice(0.5, 2), prox.L1()),)), "0 <= start"),
        (lambda: prox.Separable(((2, prox.L1()),)), "0 <= start"),
        (lambda: prox.Separable(((slice(0, 4), prox.L1()),)).value(np.ones(3)), "reach to 4"),
        (lambda: prox.L1().subdifferential_distance(np.ones(3), np.ones(4)), "one length"),
    ],
)
def test_wrong_penalties_are_refused(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_results_may_replace_the_vector_but_not_overlap_it(name):
    memory = np.ones(SIZE + 1)
    with pytest.raises(InputError, match="out overlaps v"):
        CASES[name].penalty.prox(memory[1:], 0.1, memory[:-1])
    replaced, beside = memory[1:], np.empty(SIZE)
    CASES[name].penalty.prox(np.ones(SIZE), 0.1, beside)
    CASES[name].penalty.prox(replaced, 0.1, replaced[:])  # another view of the same memory
    np.testing.assert_array_equal(replaced, beside)


def test_outside_the_domain_there_is_no_subgradient():
    s = np.zeros(SIZE)
    for name in (*INDICATORS, "non_negative_l1", "bounded_group_lasso"):
        outside = np.full(SIZE, -9.0)
        assert CASES[name].penalty.subdifferential_distance(s, outside) == np.inf
        assert CASES[name].penalty.value(outside) == np.inf


def test_runs_merge_neighbours_only_inside_a_group():
    indptr, starts, stops = prox.Groups([0, 3, 3, 5, 7], [4, 5, 6, 7, 0, 1, 2], 9).runs
    assert indptr.tolist() == [0, 1, 1, 3, 4]
    assert starts.tolist() == [4, 7, 0, 1]
    assert stops.tolist() == [7, 8, 1, 3]


def test_runs_and_single_entries_agree():
    """The same groups, once consecutive and once scattered by a permutation."""
    rng = np.random.default_rng(4)
    sizes = rng.integers(0, 40, 30)
    tidy = prox.Groups.from_sizes(sizes)
    order = rng.permutation(tidy.size)  # entry i of the tidy vector sits at order[i]
    mixed = prox.Groups(tidy.indptr, order, tidy.size)
    v, scattered = rng.standard_normal(tidy.size), np.empty(tidy.size)
    scattered[order] = v
    out = apply(prox.GroupLasso(tidy), v, 0.5)
    np.testing.assert_allclose(apply(prox.GroupLasso(mixed), scattered, 0.5)[order], out, rtol=1e-14)


def test_a_group_does_not_depend_on_its_neighbours():
    """The bytes of a group are the same whatever else is in the vector."""
    rng = np.random.default_rng(6)
    v = rng.standard_normal(60).astype(np.float32)
    whole = apply(prox.GroupLasso(prox.Groups.from_sizes([13, 30, 17])), v, 0.1)
    alone = apply(prox.GroupLasso(prox.Groups.from_sizes([30])), v[13:43].copy(), 0.1)
    assert whole[13:43].tobytes() == alone.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 1001])
def test_sums_against_exact_summation(dtype, size):
    x = (np.random.default_rng(size).standard_normal(size) * 3).astype(dtype)
    exact = [float(value) for value in x]
    assert kernels.absolute_sum(x) == pytest.approx(math.fsum(map(abs, exact)), rel=1e-15)
    assert kernels.safe_norm(x) == pytest.approx(math.sqrt(math.fsum(e * e for e in exact)), rel=1e-15)
    assert kernels.all_finite(x)


def test_fixed_order_of_summation():
    """Eight lanes, then pairs, then the rest: the promise behind equal bytes on every machine."""
    x = np.random.default_rng(0).standard_normal(8 * 5 + 3)
    lanes = [0.0] * 8
    for i in range(40):
        lanes[i % 8] += float(x[i]) * float(x[i])
    total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
    for i in range(40, 43):
        total += float(x[i]) * float(x[i])
    assert kernels.squared_norm(x, 0, x.size) == total


def test_one_machine_code_per_dtype():
    """The checks let no other kind of array through, so nothing is compiled twice."""
    if not hasattr(kernels.shrink_groups, "signatures"):
        pytest.skip("Numba's compiler is switched off")
    groups = prox.Groups.from_lists([[0, 2], [1]], 3)
    for dtype in DTYPES:
        for penalty in (prox.GroupLasso(groups), prox.SparseGroupLasso(groups)):
            apply(penalty, np.ones(3, dtype=dtype), 1.0)
            apply(penalty, np.ones(6, dtype=dtype)[3:], 1)
    assert len(kernels.group_norms.part.signatures) <= 2  # inside that: none where its code was on the disk
    assert len(kernels.shrink_groups.signatures) == 3  # sparse group lasso: wide in, float32 out
