"""Compiled parts of the proximal operators: thresholds, sums and block-wise shrinkage of a vector.

A group is a union of runs: group g owns the runs indptr[g]..indptr[g+1], run r the coordinates
starts[r]..stops[r]. A contiguous group is one run, a scattered one has a run per stretch, so one loop
serves both and reads memory in order. Norms and sums are float64 in a fixed order (`vector`); results
are computed in float64 and rounded once.

Source: mathematics.md §5. Derived.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels import vector
from refimpl.kernels.jit import intrinsic, kernel, optimise_for_size, settings
from refimpl.kernels.simd import I32, INDEX, Vectors, emitting

TOGETHER = 16  # groups at a time, so that they are scaled while they are in the cache
SAFE_LOW, SAFE_HIGH = 1e-280, 1e280  # sums of squares between these have neither underflowed nor overflowed
TINY = 2.0**-1022  # the smallest normal number
LARGEST = sys.float_info.max
SMALLER = 2.0**-100  # an exact factor that keeps every norm from overflowing


@kernel
def all_finite(x):
    """Whether no entry is NaN or infinite."""
    bad = False
    for i in range(x.size):
        bad |= not abs(x[i]) < math.inf
    return not bad


@kernel
def absolute_sum(x):
    """Sum of absolute values in float64, in the order of `vector.sum_of`."""
    return vector.sum_of(abs, x)


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


@intrinsic
def _llvm_lane_squares(typingctx, x, start, stop):
    """Sum of squares of x[start:stop] in 8 lanes; x contiguous, stop - start a multiple of 8.

    The same additions in the same order as eight scalar partial sums (`vector.squared_norm`): LLVM does
    not find the vector form of those by itself, and the norm is what a group prox spends its time on.
    """
    if not (isinstance(x, types.Array) and x.layout == "C" and x.dtype in (types.float32, types.float64)):
        return None

    def emit(builder, x, start, stop):
        narrow, wide = Vectors(builder, x.type.pointee, 8), Vectors(builder, ir.DoubleType(), 8)
        total = cgutils.alloca_once_value(builder, wide.zero)
        with cgutils.for_range_slice(builder, start, stop, INDEX(8)) as (i, _):
            lanes = narrow.load(builder.gep(x, [i]))
            lanes = builder.fpext(lanes, wide.type) if narrow.type != wide.type else lanes
            builder.store(builder.fadd(builder.load(total), builder.fmul(lanes, lanes)), total)
        s = [builder.extract_element(builder.load(total), I32(lane)) for lane in range(8)]
        pairs = [builder.fadd(s[lane], s[lane + 1]) for lane in (0, 2, 4, 6)]
        return builder.fadd(builder.fadd(pairs[0], pairs[1]), builder.fadd(pairs[2], pairs[3]))

    return types.float64(x, types.int64, types.int64), emitting(emit)


def _python_lane_squares(x, start, stop):
    """Stand-in where Numba's compiler is switched off: the same sums, as `x[start:stop]` is whole."""
    return vector.squared_norm(x[start:stop])


lane_squares: Any = _python_lane_squares if settings.DISABLE_JIT else _llvm_lane_squares


@kernel
def squared_norm(x, start, stop):
    """Sum of squares of x[start:stop] in float64: eight lanes added in order, then what is left over.

    Takes bounds instead of a slice: making a slice costs reference counting, a lot for small groups.
    """
    whole = stop - (stop - start) % 8
    total = lane_squares(x, start, whole)
    for i in range(whole, stop):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@kernel
def scaled_norm(x, start, stop):
    """Euclidean norm of x[start:stop] through its largest entry: neither overflows nor underflows."""
    largest = 0.0
    for i in range(start, stop):
        largest = max(largest, abs(np.float64(x[i])))
    if largest == math.inf:
        return largest
    largest = largest if largest > 0.0 else 1.0  # zeros, or NaN, which must come out
    squares = 0.0
    for i in range(start, stop):
        squares += (np.float64(x[i]) / largest) ** 2
    return largest * math.sqrt(squares)


@kernel
def safe_norm(x):
    """Euclidean norm in float64 that neither overflows nor underflows."""
    squares = squared_norm(x, 0, x.size)
    return math.sqrt(squares) if SAFE_LOW < squares < SAFE_HIGH else scaled_norm(x, 0, x.size)


@kernel
def group_norms(x, indptr, starts, stops, out):
    """out[g] = Euclidean norm of group g, float64: the squares of its runs added in order.

    Sums that have over- or underflowed are redone with scaling in a second loop, apart from the first:
    together in one loop, the rare case halves the speed of the common one.
    """
    for g in range(indptr.size - 1):
        squares = 0.0
        for r in range(indptr[g], indptr[g + 1]):
            squares += squared_norm(x, starts[r], stops[r])
        out[g] = squares
    for g in range(indptr.size - 1):
        if SAFE_LOW < out[g] < SAFE_HIGH:
            out[g] = math.sqrt(out[g])
        else:
            out[g] = 0.0
            for r in range(indptr[g], indptr[g + 1]):
                out[g] = math.hypot(out[g], scaled_norm(x, starts[r], stops[r]))


@kernel
def shrink_extreme_group(v, step, weights, radius, g, indptr, starts, stops, out):
    """Do what `shrink_groups` does for a group g whose norm is infinite or far above the radius.

    The norm and the threshold are scaled down together. If the radius is so small that radius/norm loses
    digits, each entry is divided by the norm first. Returns weight ||out_g||.
    """
    optimise_for_size()
    first, last, weight = indptr[g], indptr[g + 1], weights[g]
    largest, squares = 0.0, 0.0
    for r in range(first, last):
        for i in range(starts[r], stops[r]):
            largest = max(largest, abs(np.float64(v[i])))
    for r in range(first, last):
        for i in range(starts[r], stops[r]):
            squares += (np.float64(v[i]) / largest) ** 2
    norm = SMALLER * largest * math.sqrt(squares)
    kept = max(norm - SMALLER * step * weight, 0.0)
    clipped = kept > SMALLER * radius
    factor = (SMALLER * radius if clipped else kept) / norm
    for r in range(first, last):
        for i in range(starts[r], stops[r]):
            x = np.float64(v[i])
            out[i] = (SMALLER * x / norm * radius if clipped and factor < TINY else factor * x) + 0.0
    return weight * radius if clipped else weight * kept / SMALLER


@kernel
def shrink_groups(v, step, weights, radius, indptr, starts, stops, norms, out):
    """Scale group g of v to norm min(max(||v_g|| - step weights[g], 0), radius), into `out`.

    Coordinates outside every group are not touched; `norms` (G,) is scratch, float64.
    Returns sum_g weights[g] ||out_g||.
    """
    value, groups = 0.0, indptr.size - 1
    longest = min(radius / TINY, LARGEST)  # up to here norms are finite and radius/norm has all its digits
    for first in range(0, groups, TOGETHER):
        last = min(first + TOGETHER, groups)
        group_norms(v, indptr[first : last + 1], starts, stops, norms[first:last])
        for g in range(first, last):
            if norms[g] > longest:
                value += shrink_extreme_group(v, step, weights, radius, g, indptr, starts, stops, out)
                continue
            target = min(max(norms[g] - step * weights[g], 0.0), radius)
            value += weights[g] * target
            factor = target / norms[g] if target > 0.0 else 0.0
            for r in range(indptr[g], indptr[g + 1]):
                # unsigned bounds: no check for negative indices, so the loop runs at the speed of a copy
                for i in range(np.uint64(starts[r]), np.uint64(stops[r])):
                    out[i] = factor * np.float64(v[i]) + 0.0  # no negative zeros
    return value
