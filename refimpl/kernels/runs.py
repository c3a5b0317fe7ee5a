"""Runs of numbers on vectors: what normalisation, sums and activations do to one channel of one sample.

A run is `count` neighbouring numbers of each array, from `start` on. Arithmetic is that of float64, rounded
once, where a `line` is involved; a result may lie where an operand does. An activation is given as `below`,
its slope where a number is not positive: 0 for ReLU, 1 for none. NaN passes through it.

Sums are 16 partial sums (see `sums`) that go on from run to run in `partial`, from `at` on; `fold` adds them
up.

Source: mathematics.md §2.1, §2.5. Derived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.jit import intrinsic, kernel, settings
from refimpl.kernels.simd import INDEX, Vectors, data_of
from refimpl.kernels.sums import PARTIAL_SUMS


class _Run:
    """Emits a loop over a run: whole vectors, then the rest under a mask."""

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        self.builder, self.start, self.count = builder, args[0], args[1]
        pairs = list(zip(signature.args, args, strict=True))
        self.arrays = [
            data_of(context, builder, kind, value) for kind, value in pairs if isinstance(kind, types.Array)
        ]
        self.numbers = [
            cgutils.unpack_tuple(builder, value) for kind, value in pairs if isinstance(kind, types.BaseTuple)
        ]
        self.narrow = Vectors(builder, self.arrays[0].type.pointee, PARTIAL_SUMS)
        self.wide = Vectors(builder, ir.DoubleType(), PARTIAL_SUMS)

    def each(self, body: Callable[[Any, Any], None]) -> None:
        """body(at, mask) for every vector of the run."""
        builder, stop = self.builder, self.builder.and_(self.count, INDEX(-PARTIAL_SUMS))
        with cgutils.for_range(builder, builder.udiv(self.count, INDEX(PARTIAL_SUMS)), intp=INDEX) as loop:
            body(builder.add(self.start, builder.mul(loop.index, INDEX(PARTIAL_SUMS))), None)
        with builder.if_then(builder.icmp_signed("<", stop, self.count)):
            body(builder.add(self.start, stop), self.narrow.lanes_below(builder.sub(self.count, stop)))

    def load(self, number: int, at: Any, mask: Any) -> Any:
        """The vector of an array."""
        return self.narrow.load(self.builder.gep(self.arrays[number], [at]), mask)

    def store(self, value: Any, number: int, at: Any, mask: Any) -> None:
        """Write a vector, rounded to the array's kind of number."""
        if value.type != self.narrow.type:
            value = self.builder.fptrunc(value, self.narrow.type)
        self.narrow.store(value, self.builder.gep(self.arrays[number], [at]), mask)

    def widened(self, value: Any) -> Any:
        """The vector in float64."""
        return value if value.type == self.wide.type else self.builder.fpext(value, self.wide.type)

    def on_line(self, x: Any, line: list[Any]) -> Any:
        """Slope * x + shift, in float64."""
        slope, shift = (self.wide.splat(number) for number in line[:2])
        return self.builder.fadd(self.builder.fmul(slope, self.widened(x)), shift)

    def bent(self, value: Any, sign: Any, below: Any) -> Any:
        """The value where `sign` is positive, and `below` times it elsewhere."""
        builder = self.builder
        nothing = builder.fcmp_ordered("==", below, ir.Constant(below.type, 0.0))
        if sign.type != self.narrow.type:
            sign = builder.fptrunc(sign, self.narrow.type)
        if value.type != self.narrow.type:
            value = builder.fptrunc(value, self.narrow.type)
        element = self.narrow.type.element
        factor = below if element == below.type else builder.fptrunc(below, element)
        scaled = builder.fmul(self.narrow.splat(factor), value)
        low = builder.select(nothing, self.narrow.zero, scaled)
        return builder.select(builder.fcmp_ordered("<=", sign, self.narrow.zero), low, value)

    def accumulate(self, number: int, at: Any, terms: Callable[[Any, Any], list[Any]]) -> None:
        """Add the terms (vectors in float64) to the partial sums in an array, one after the other."""
        builder, totals = self.builder, []
        for i in range(2):
            place = builder.gep(self.arrays[number], [builder.add(at, INDEX(i * PARTIAL_SUMS))])
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
    def codegen(context, builder, signature, args):
        run = _Run(context, builder, signature, args)
        middle = run.wide.splat(args[3])

        def terms(here, mask):
            distance = builder.fsub(run.widened(run.load(0, here, mask)), middle)
            if mask is not None:
                distance = builder.select(mask, distance, run.wide.zero)
            return [distance, builder.fmul(distance, distance)]

        run.accumulate(1, args[5], terms)
        return context.get_dummy_value()

    return types.void(PLACE, PLACE, x, types.float64, partial, PLACE), codegen


@intrinsic
def _add_slopes(typingctx, start, count, dy, x, line, centre, partial, at):
    def codegen(context, builder, signature, args):
        run = _Run(context, builder, signature, args)
        middle, (line,) = run.wide.splat(args[5]), run.numbers

        def terms(here, mask):
            dy, x = run.load(0, here, mask), run.load(1, here, mask)
            slope = run.widened(run.bent(dy, run.on_line(x, line), line[2]))
            return [slope, builder.fmul(slope, builder.fsub(run.widened(x), middle))]

        run.accumulate(2, args[7], terms)
        return context.get_dummy_value()

    return types.void(PLACE, PLACE, dy, x, TRIPLE, types.float64, partial, PLACE), codegen


@intrinsic
def _affine(typingctx, start, count, x, line, y):
    def codegen(context, builder, signature, args):
        run = _Run(context, builder, signature, args)
        (line,) = run.numbers

        def body(here, mask):
            value = run.on_line(run.load(0, here, mask), line)
            run.store(run.bent(value, value, line[2]), 1, here, mask)

        run.each(body)
        return context.get_dummy_value()

    return types.void(PLACE, PLACE, x, TRIPLE, y), codegen


@intrinsic
def _combine(typingctx, start, count, dy, x, line, factors, dx):
    def codegen(context, builder, signature, args):
        run = _Run(context, builder, signature, args)
        line, factors = run.numbers

        def body(here, mask):
            dy, x = run.load(0, here, mask), run.load(1, here, mask)
            slope = run.widened(run.bent(dy, run.on_line(x, line), line[2]))
            own = builder.fmul(run.wide.splat(factors[0]), slope)
            run.store(builder.fadd(own, run.on_line(x, factors[1:])), 2, here, mask)

        run.each(body)
        return context.get_dummy_value()

    return types.void(PLACE, PLACE, dy, x, TRIPLE, TRIPLE, dx), codegen


@intrinsic
def _bend(typingctx, start, count, value, sign, below, y):
    def codegen(context, builder, signature, args):
        run = _Run(context, builder, signature, args)

        def body(here, mask):
            value, sign = run.load(0, here, mask), run.load(1, here, mask)
            run.store(run.bent(value, sign, args[4]), 2, here, mask)

        run.each(body)
        return context.get_dummy_value()

    return types.void(PLACE, PLACE, value, sign, types.float64, y), codegen


@intrinsic
def _add(typingctx, start, count, a, b, below, y):
    def codegen(context, builder, signature, args):
        run = _Run(context, builder, signature, args)

        def body(here, mask):
            value = builder.fadd(run.load(0, here, mask), run.load(1, here, mask))
            run.store(run.bent(value, value, args[4]), 2, here, mask)

        run.each(body)
        return context.get_dummy_value()

    return types.void(PLACE, PLACE, a, b, types.float64, y), codegen


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


@kernel
def fold(partial, at):
    """The sum of the 16 partial sums from `at` on, added pairwise; they are changed."""
    half = PARTIAL_SUMS // 2
    while half > 0:
        for i in range(half):
            partial[at + i] += partial[at + half + i]
        half //= 2
    return partial[at]
