"""Sums in one order everywhere: 16 interleaved partial sums, added pairwise in the end.

Partial sum i takes entries i, i + 16, ...; then sum i takes sum i + 8, + 4, + 2, + 1. The number 16 is part
of the definition, not the machine's vector width, so that the result has the same bits on every machine;
a single chain would have them too, but is bound by the latency of an addition (five times as slow).

`total` adds in the dtype of its entries, the others in float64. Arrays are one-dimensional, C-contiguous.

Source: Higham 1993, "The accuracy of floating point summation" (pairwise sums). Derived: the order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.jit import intrinsic, settings
from refimpl.kernels.plain import interleaved_sum
from refimpl.kernels.simd import I32, Vectors, emitting

PARTIAL_SUMS = 16


def _interleaved(builder: ir.IRBuilder, element: Any, count: Any, term: Callable[..., Any]) -> Any:
    """Emit the sum; term(at, mask) gives the 16 terms from `at` on, zero outside the mask."""
    vectors = Vectors(builder, element, PARTIAL_SUMS)
    partial = cgutils.alloca_once_value(builder, vectors.zero)

    def add(at: Any, mask: Any) -> None:
        builder.store(builder.fadd(builder.load(partial), term(at, mask)), partial)

    vectors.each(count, add)
    sums, half = builder.load(partial), PARTIAL_SUMS // 2
    while half:
        moved = vectors.shuffle(sums, sums, [(i + half) % PARTIAL_SUMS for i in range(PARTIAL_SUMS)])
        sums, half = builder.fadd(sums, moved), half // 2
    return builder.extract_element(sums, I32(0))


def _loader(builder: ir.IRBuilder, array: Any, start: Any, wide: bool = True) -> Any:
    """load(at, mask): 16 entries of an array from start + at on, in float64 if `wide`."""
    base = builder.gep(array, [start])
    vectors = Vectors(builder, base.type.pointee, PARTIAL_SUMS)
    double = ir.VectorType(ir.DoubleType(), PARTIAL_SUMS)

    def load(at: Any, mask: Any) -> Any:
        value = vectors.load(builder.gep(base, [at]), mask)
        return builder.fpext(value, double) if wide and value.type != double else value

    return load


def _sum_of(wide: bool) -> Any:
    """The compiled sum of x[start : start + count], in float64 if `wide`."""

    @intrinsic
    def total(typingctx, x, start, count):
        def emit(builder, x, start, count):
            element = ir.DoubleType() if wide else x.type.pointee
            return _interleaved(builder, element, count, _loader(builder, x, start, wide))

        return (types.float64 if wide else x.dtype)(x, types.intp, types.intp), emitting(emit)

    return total


@intrinsic
def _wide_product(typingctx, x, x_start, y, y_start, count):
    def emit(builder, x, x_start, y, y_start, count):
        first, second = _loader(builder, x, x_start), _loader(builder, y, y_start)

        def term(at, mask):
            return builder.fmul(first(at, mask), second(at, mask))

        return _interleaved(builder, ir.DoubleType(), count, term)

    return types.float64(x, types.intp, y, types.intp, types.intp), emitting(emit)


@intrinsic
def _wide_spread(typingctx, x, start, count, centre):
    def emit(builder, x, start, count, centre):
        load, vectors = _loader(builder, x, start), Vectors(builder, ir.DoubleType(), PARTIAL_SUMS)
        middle = vectors.splat(centre)

        def term(at, mask):
            distance = builder.fsub(load(at, mask), middle)
            square = builder.fmul(distance, distance)
            return square if mask is None else builder.select(mask, square, vectors.zero)

        return _interleaved(builder, ir.DoubleType(), count, term)

    return types.float64(x, types.intp, types.intp, types.float64), emitting(emit)


COMPILED = not settings.DISABLE_JIT
if COMPILED:
    total, wide_total = _sum_of(wide=False), _sum_of(wide=True)
    wide_product, wide_spread = _wide_product, _wide_spread
else:

    def total(x, start, count):
        """The sum of x[start : start + count], in the dtype of x."""
        return interleaved_sum(x[start : start + count])

    def wide_total(x, start, count):
        """The same in float64."""
        return total(x.astype(np.float64), start, count)

    def wide_product(x, x_start, y, y_start, count):
        """The sum of products of x from x_start on and y from y_start on, in float64."""
        factor = y[y_start : y_start + count].astype(np.float64)
        return total(x[x_start : x_start + count] * factor, 0, count)

    def wide_spread(x, start, count, centre):
        """The sum of (x - centre)**2, in float64."""
        return total((x.astype(np.float64) - centre) ** 2, start, count)
