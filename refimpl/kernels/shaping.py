"""Batch-shaping: how far the decisions of gates in a batch are from a Beta distribution, with its gradient.

Everything is float64 but the decisions and their gradient. A continued fraction with a fixed number of terms
gives the distribution function, so that results have the same bits everywhere.

Source: mathematics.md §2.3c; Bejnordi et al. 2020 (the term); DLMF 8.17.22 (the fraction). Derived: the
gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.kernels import elementary
from refimpl.kernels.checked import checked, given, written
from refimpl.kernels.jit import kernel, large_kernel

TERMS = 20  # pairs of terms: enough for an error of 1e-14 where a and b lie between `LEAST` and `MOST`
LEAST, MOST = 0.1, 10.0


class Shaping(NamedTuple):
    """The weight of batch-shaping in the loss (0: none), and the Beta(a, b) distribution that it wants."""

    weight: float = 0.0
    a: float = 0.6
    b: float = 0.4


@kernel
def _fraction(a, b, x):
    """The continued fraction of the distribution function of Beta(a, b), for x <= (a + 1)/(a + b + 2)."""
    over, under = 1.0, 1.0  # a fraction without divisions; 40 factors of at most 1,500 do not overflow
    for m in range(TERMS, 0, -1):
        over *= (a + 2 * m - 1) * (a + 2 * m)
        over, under = over + m * (b - m) * x * under, over
        over *= (a + 2 * m - 2) * (a + 2 * m - 1)
        over, under = over - (a + m - 1) * (a + b + m - 1) * x * under, over
    return under / over


@kernel
def beta_function(a, b):
    """B(a, b): with it the distribution functions of Beta(a, b) at x and Beta(b, a) at 1 - x add up to 1."""
    x, y = (a + 1.0) / (a + b + 2.0), (b + 1.0) / (a + b + 2.0)
    powers = elementary.exp(a * elementary.log(x) + b * elementary.log(y))
    return powers * (_fraction(a, b, x) / a + _fraction(b, a, y) / b)


@kernel
def distribution(u, a, b, scale):
    """The distribution function of Beta(a, b) at p = sigmoid(u), and its derivative in u; scale = B(a, b).

    The derivative p**a (1 - p)**b / B is bounded, where the density by itself is not.
    """
    p, q = elementary.sigmoid(u), elementary.sigmoid(-u)
    slope = elementary.exp(a * elementary.log(p) + b * elementary.log(q)) / scale
    if p < (a + 1.0) / (a + b + 2.0):
        return slope * _fraction(a, b, p) / a, slope
    return 1.0 - slope * _fraction(b, a, q) / b, slope


@checked(decisions=given("NC"), slope=written("NC"))
@large_kernel
def shape_gates(decisions, tau, shaping, slope) -> float:
    """N times the term of the loss for gates with decisions d (N, C); writes the gradient of the term in d.

    Of equal decisions of a channel, that of the earlier sample counts as the smaller one. `slope` may be
    `decisions`.
    """
    samples, (weight, a, b) = decisions.shape[0], shaping
    column, scale, total = np.empty(samples, dtype=np.float64), beta_function(a, b), 0.0
    for c in range(decisions.shape[1]):
        for n in range(samples):
            column[n] = np.float64(decisions[n, c]) / tau
        order = np.argsort(column, kind="mergesort")
        for rank in range(samples):
            level, rise = distribution(column[order[rank]], a, b, scale)
            gap = level - (rank + 1) / (samples + 1)
            total += weight * gap * gap
            slope[order[rank], c] = 2.0 * weight * gap * rise / (tau * samples)
    return total
