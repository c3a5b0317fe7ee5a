"""Compiled parts of the proximal operators: thresholds, sums and block-wise shrinkage of a vector.

A group is a union of runs: group g owns the runs indptr[g]..indptr[g+1], run r the coordinates
starts[r]..stops[r]. A contiguous group is one run, a scattered one has a run per stretch, so one loop
serves both and reads memory in order. Norms and sums are float64 in a fixed order (`vector`); results
are computed in float64 and rounded once.

Source: mathematics.md §5. Derived.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels import vector
from refimpl.kernels.jit import kernel

SAFE_LOW, SAFE_HIGH = 1e-280, 1e280  # sums of squares in here have neither under- nor overflowed


@kernel
def all_finite(x):
    """Whether no entry is NaN or infinite."""
    bad = False
    for i in range(x.size):
        bad |= not abs(x[i]) < math.inf
    return not bad


@kernel
def absolute_sum(x):
    """Sum of absolute values in float64: eight interleaved partial sums, added in order."""
    s0, s1, s2, s3, s4, s5, s6, s7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    whole = x.size - x.size % 8
    for i in range(0, whole, 8):
        s0 += abs(np.float64(x[i]))
        s1 += abs(np.float64(x[i + 1]))
        s2 += abs(np.float64(x[i + 2]))
        s3 += abs(np.float64(x[i + 3]))
        s4 += abs(np.float64(x[i + 4]))
        s5 += abs(np.float64(x[i + 5]))
        s6 += abs(np.float64(x[i + 6]))
        s7 += abs(np.float64(x[i + 7]))
    for i in range(whole, x.size):
        s0 += abs(np.float64(x[i]))
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@kernel
def soft_threshold(v, threshold, divisor, out):
    """out = sign(v) max(|v| - threshold, 0) / divisor; zeros come out as +0."""
    for i in range(v.size):
        x = np.float64(v[i])
        size = max(abs(x) - threshold, 0.0) / divisor
        out[i] = size if x > 0.0 else 0.0 - size


@kernel
def positive_threshold(v, threshold, out):
    """out = max(v - threshold, 0)."""
    for i in range(v.size):
        out[i] = max(np.float64(v[i]) - threshold, 0.0)


@kernel
def safe_norm(x):
    """Euclidean norm in float64 that neither overflows nor underflows."""
    squares = vector.squared_norm(x)
    if SAFE_LOW < squares < SAFE_HIGH:
        return math.sqrt(squares)
    largest = 0.0
    for i in range(x.size):
        largest = max(largest, abs(np.float64(x[i])))
    if largest == 0.0 or largest == math.inf:
        return largest
    squares = 0.0
    for i in range(x.size):
        squares += (np.float64(x[i]) / largest) ** 2
    return largest * math.sqrt(squares)


@kernel
def group_norm(x, indptr, starts, stops, g):
    """Euclidean norm of group g in float64."""
    first, last = indptr[g], indptr[g + 1]
    if last - first == 1:
        return safe_norm(x[starts[first] : stops[first]])
    total = 0.0
    for r in range(first, last):
        total += vector.squared_norm(x[starts[r] : stops[r]])
    if SAFE_LOW < total < SAFE_HIGH:
        return math.sqrt(total)
    total = 0.0
    for r in range(first, last):
        total = math.hypot(total, safe_norm(x[starts[r] : stops[r]]))
    return total


@kernel
def group_norms(x, indptr, starts, stops, out):
    """out[g] = Euclidean norm of group g, float64; empty groups give 0."""
    for g in range(indptr.size - 1):
        out[g] = group_norm(x, indptr, starts, stops, g)


@kernel
def shrink_groups(v, step, weights, radius, indptr, starts, stops, out):
    """Scale group g of v to norm min(max(||v_g|| - step weights[g], 0), radius), into `out`.

    Coordinates outside every group are not touched. Returns sum_g weights[g] ||out_g||.
    """
    value = 0.0
    for g in range(indptr.size - 1):
        norm = group_norm(v, indptr, starts, stops, g)
        target = min(max(norm - step * weights[g], 0.0), radius)
        value += weights[g] * target
        factor = target / norm if target > 0.0 else 0.0
        for r in range(indptr[g], indptr[g + 1]):
            here, there = v[starts[r] : stops[r]], out[starts[r] : stops[r]]
            for i in range(here.size):
                there[i] = factor * np.float64(here[i]) + 0.0  # no negative zeros
    return value
