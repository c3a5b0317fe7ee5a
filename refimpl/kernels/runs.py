"""Runs of numbers on vectors: what normalisation, sums and activations do to one channel of one sample.

A run is `count` neighbouring numbers of each array, from `start` on. Arithmetic is that of float64, rounded
once, where a `line` is involved; a result may lie where an operand does. An activation is given as `below`,
its slope where a number is not positive: 0 for ReLU, 1 for none. NaN passes through it.

Sums are 16 partial sums (see `sums`) that go on from run to run in `partial`, from `at` on;
`plain.add_pairwise` adds them up.

Source: mathematics.md §2.1, §2.5. Derived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.jit import intrinsic, settings
from refimpl.kernels.simd import INDEX, Vectors, emitting
from refimpl.kernels.sums import PARTIAL_SUMS


class _Run:
    """Emits a loop over a run: whole vectors, then the rest under a mask."""

    def __init__(self, builder: ir.IRBuilder, start: Any, count: Any, array: Any) -> None:
        self.builder, self.start, self.count = builder, start, count
        self.narrow = Vectors(builder, array.type.pointee, PARTIAL_SUMS)
        self.wide = Vectors(builder, ir.DoubleType(), PARTIAL_SUMS)

    def each(self, body: Callable[[Any, Any], None]) -> None:
        """body(at, mask) for every vector of the run."""
        self.narrow.each(self.count, lambda at, mask: body(self.builder.add(self.start, at), mask))

    def load(self, array: Any, at: Any, mask: Any) -> Any:
        """The vector of an array."""
        return self.narrow.load(self.builder.gep(array, [at]), mask)

    def write(self, array: Any, value: Callable[[Any, Any], Any]) -> None:
        """array = value(at, mask) for every vector of the run, rounded to the array's kind of number."""

        def body(at: Any, mask: Any) -> None:
            self.narrow.store(self.rounded(value(at, mask)), self.builder.gep(array, [at]), mask)

        self.each(body)

    def rounded(self, value: Any) -> Any:
        """The vector in the arrays' kind of number."""
        return value if value.type == self.narrow.type else self.builder.fptrunc(value, self.narrow.type)

    def widened(self, value: Any) -> Any:
        """The vector in float64."""
        return value if value.type == self.wide.type else self.builder.fpext(value, self.wide.type)

    def on_line(self, x: Any, line: list[Any]) -> Any:
        """Slope * x + shift, in float64."""
        slope, shift = (self.wide.splat(number) for number in line[:2])
        return self.builder.fadd(self.builder.fmul(slope, self.widened(x)), shift)

    def bent(self, value: Any, sign: Any, below: Any) -> Any:
        """The value where `sign` is positive, and `below` times it elsewhere."""
        builder, value, sign = self.builder, self.rounded(value), self.rounded(sign)
        nothing = builder.fcmp_ordered("==", below, ir.Constant(below.type, 0.0))
        element = self.narrow.type.element
        factor = below if element == below.type else builder.fptrunc(below, element)
        scaled = builder.fmul(self.narrow.splat(factor), value)
        low = builder.select(nothing, self.narrow.zero, scaled)
        return builder.select(builder.fcmp_ordered("<=", sign, self.narrow.zero), low, value)

    def accumulate(self, partial: Any, at: Any, terms: Callable[[Any, Any], list[Any]]) -> None:
        """Add the terms (vectors in float64) to the partial sums in an array, one after the other."""
        builder, totals = self.builder, []
        for i in range(2):
            place = builder.gep(partial, [builder.add(at, INDEX(i * PARTIAL_SUMS))])
            totals.append((place, cgutils.alloca_once_value(builder, self.wide.load(place))))

        def add(here: Any, mask: Any) -> None:
            for (_, total), term in zip(totals, terms(here, mask), strict=True):
                builder.store(builder.fadd(builder.load(total), term), total)

        self.each(add)
        for place, total in totals:
            self.wide.store(builder.load(total), place)


TRIPLE, PLACE = types.UniTuple(types.float64, 3), types.intp


@intrinsic
def _add_moments(typingctx, start, count, x, centre, partial, at):
    def emit(builder, start, count, x, centre, partial, at):
        run = _Run(builder, start, count, x)
        middle = run.wide.splat(centre)

        def terms(here, mask):
            distance = builder.fsub(run.widened(run.load(x, here, mask)), middle)
            if mask is not None:
                distance = builder.select(mask, distance, run.wide.zero)
            return [distance, builder.fmul(distance, distance)]

        run.accumulate(partial, at, terms)

    return types.void(PLACE, PLACE, x, types.float64, partial, PLACE), emitting(emit)


@intrinsic
def _add_slopes(typingctx, start, count, dy, x, line, centre, partial, at):
    def emit(builder, start, count, dy, x, line, centre, partial, at):
        run = _Run(builder, start, count, x)
        middle = run.wide.splat(centre)

        def terms(here, mask):
            slope, place = run.load(dy, here, mask), run.load(x, here, mask)
            slope = run.widened(run.bent(slope, run.on_line(place, line), line[2]))
            return [slope, builder.fmul(slope, builder.fsub(run.widened(place), middle))]

        run.accumulate(partial, at, terms)

    return types.void(PLACE, PLACE, dy, x, TRIPLE, types.float64, partial, PLACE), emitting(emit)


@intrinsic
def _affine(typingctx, start, count, x, line, y):
    def emit(builder, start, count, x, line, y):
        run = _Run(builder, start, count, x)

        def value(here, mask):
            height = run.on_line(run.load(x, here, mask), line)
            return run.bent(height, height, line[2])

        run.write(y, value)

    return types.void(PLACE, PLACE, x, TRIPLE, y), emitting(emit)


@intrinsic
def _combine(typingctx, start, count, dy, x, line, factors, dx):
    def emit(builder, start, count, dy, x, line, factors, dx):
        run = _Run(builder, start, count, x)

        def value(here, mask):
            slope, place = run.load(dy, here, mask), run.load(x, here, mask)
            slope = run.widened(run.bent(slope, run.on_line(place, line), line[2]))
            own = builder.fmul(run.wide.splat(factors[0]), slope)
            return builder.fadd(own, run.on_line(place, factors[1:]))

        run.write(dx, value)

    return types.void(PLACE, PLACE, dy, x, TRIPLE, TRIPLE, dx), emitting(emit)


@intrinsic
def _bend(typingctx, start, count, value, sign, below, y):
    def emit(builder, start, count, value, sign, below, y):
        run = _Run(builder, start, count, value)
        run.write(y, lambda *at: run.bent(run.load(value, *at), run.load(sign, *at), below))

    return types.void(PLACE, PLACE, value, sign, types.float64, y), emitting(emit)


@intrinsic
def _add(typingctx, start, count, a, b, below, y):
    def emit(builder, start, count, a, b, below, y):
        run = _Run(builder, start, count, a)

        def value(here, mask):
            total = builder.fadd(run.load(a, here, mask), run.load(b, here, mask))
            return run.bent(total, total, below)

        run.write(y, value)

    return types.void(PLACE, PLACE, a, b, types.float64, y), emitting(emit)


if not settings.DISABLE_JIT:
    add_moments, add_slopes, affine, combine = _add_moments, _add_slopes, _affine, _combine
    bend, add = _bend, _add
else:  # the same in NumPy

    def _part(start, count, *arrays):
        """The run of each array."""
        return [array[start : start + count] for array in arrays]

    def _bent(value, sign, below):
        """The value where `sign` is positive, and `below` times it elsewhere."""
        return np.where(
            sign <= 0, value.dtype.type(0) if below == 0 else value.dtype.type(below) * value, value
        )

    def _accumulate(partial, at, *terms):
        """Add up the terms in the order of the partial sums."""
        for number, values in enumerate(terms):
            own = partial[at + number * PARTIAL_SUMS : at + (number + 1) * PARTIAL_SUMS]
            for first in range(0, values.size, PARTIAL_SUMS):
                block = values[first : first + PARTIAL_SUMS]
                own[: block.size] += block

    def _bent_slope(dy, x, line):
        """The gradient behind an activation of a line, in float64."""
        return _bent(dy, (line[0] * x.astype(np.float64) + line[1]).astype(x.dtype), line[2]).astype(
            np.float64
        )

    def add_moments(start, count, x, centre, partial, at):
        """partial += x - centre, and behind that += (x - centre)**2."""
        distance = _part(start, count, x)[0].astype(np.float64) - centre
        _accumulate(partial, at, distance, distance * distance)

    def add_slopes(start, count, dy, x, line, centre, partial, at):
        """partial += g, and behind that += g * (x - centre), with g as in `combine`."""
        dy, x = _part(start, count, dy, x)
        slope = _bent_slope(dy, x, line)
        _accumulate(partial, at, slope, slope * (x.astype(np.float64) - centre))

    def affine(start, count, x, line, y):
        """y = slope * x + shift behind the activation; line = (slope, shift, below)."""
        x, y = _part(start, count, x, y)
        value = (line[0] * x.astype(np.float64) + line[1]).astype(y.dtype)
        y[:] = _bent(value, value, line[2])

    def combine(start, count, dy, x, line, factors, dx):
        """dx = f0 * g + (f1 * x + f2), where g is dy before the activation of `line` (see `affine`)."""
        dy, x, dx = _part(start, count, dy, x, dx)
        dx[:] = factors[0] * _bent_slope(dy, x, line) + (factors[1] * x.astype(np.float64) + factors[2])

    def bend(start, count, value, sign, below, y):
        """y = value where `sign` is positive or NaN, and `below` times it elsewhere."""
        value, sign, y = _part(start, count, value, sign, y)
        y[:] = _bent(value, sign, below)

    def add(start, count, a, b, below, y):
        """y = a + b behind the activation."""
        a, b, y = _part(start, count, a, b, y)
        y[:] = _bent(a + b, a + b, below)
