"""Operations on parameter vectors against exact and NumPy sums, and the cache folder of compiled code."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refimpl.kernels import jit, vector

DTYPES = (np.float32, np.float64)
SIZES = (1, 7, 8, 9, 64, 1003)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_norms_are_the_exact_sums_rounded(dtype, size):
    x = np.random.default_rng(size).standard_normal(size).astype(dtype)
    exact = math.fsum(v * v for v in x.astype(float).tolist())
    assert abs(vector.squared_norm(x) - exact) <= 1e-13 * exact
    assert abs(vector.norm(x) - math.sqrt(exact)) <= 1e-13 * math.sqrt(exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_local_step_descends_the_local_problem(dtype, size):
    rng = np.random.default_rng(size)
    w, gradient, centre = (rng.standard_normal(size).astype(dtype) for _ in range(3))
    eta, lam = dtype(0.05), dtype(0.5)
    before = w.copy()
    length = vector.local_residual(w, gradient, centre, lam)
    vector.local_step(w, gradient, centre, eta, lam)

    direction = gradient + lam * (before - centre)  # NumPy in the same dtype
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(w, before - eta * direction, rtol=tolerance, atol=tolerance)
    exact = math.sqrt(math.fsum(v * v for v in direction.astype(float).tolist()))
    assert (
        abs(length - exact) <= 1e-6 * exact if dtype == np.float32 else abs(length - exact) <= 1e-13 * exact
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 17), (20, 64), (5, 1001)])
def test_mean_of_rows_is_added_in_row_order_in_double(dtype, n, d):
    rng = np.random.default_rng(n * d)
    rows = rng.standard_normal((n, d)).astype(dtype)
    weights = rng.random(n)
    out = np.full(d, np.nan, dtype=dtype)
    vector.mean_of_rows(rows, weights, out)
    total = np.zeros(d)
    for weight, row in zip(weights, rows.astype(float), strict=True):
        total = total + weight * row
    np.testing.assert_array_equal(out, total.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_weighted_rows_are_added_and_looked_at_in_one_pass(dtype, size):
    rng = np.random.default_rng(size)
    rows, before = rng.standard_normal((3, size + 2)).astype(dtype), rng.standard_normal(size)
    rows[rng.random(rows.shape) < 0.3] = 0
    rows[:, size - 1] = -0.0
    total, used = before.copy(), rows[:, :size].astype(float)
    nonzero, finite = vector.add_weighted.kernel(rows, np.array([0.3, 0.5, -2.0]), total)  # longer rows
    assert nonzero.tolist() == np.count_nonzero(used, axis=1).tolist()
    assert finite.all()
    np.testing.assert_array_equal(total, ((before + 0.3 * used[0]) + 0.5 * used[1]) - 2.0 * used[2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 16, 18])
def test_a_row_with_one_entry_that_is_not_finite_is_told(bad, place):
    rows, total = np.ones((2, 19), np.float32), np.zeros(19)
    rows[1, place] = bad
    nonzero, finite = vector.add_weighted(rows, np.full(2, 0.5), total)
    assert nonzero.tolist() == [19, 19]
    assert finite.tolist() == [True, False]


def test_the_cache_folder_carries_the_fingerprint_of_the_kernels(monkeypatch, tmp_path):
    monkeypatch.setattr(jit.settings, "CACHE_DIR", str(tmp_path))
    chosen = jit.cache_folder.__wrapped__()
    assert chosen.parent == tmp_path
    monkeypatch.setattr(jit, "__version__", "0.0.other")
    assert jit.cache_folder.__wrapped__() != chosen
