"""2 x 2 pooling with stride 2 on vectors: the window that almost every network uses.

A row of the result comes from two rows of the image. Shuffles separate even and odd columns into vectors, or
interleave them in the backward pass. `pool` defines pooling for all windows; the results here equal its.

Every function treats as many columns of the result as a vector has lanes. rows and count: the rows of the
result, and its columns from the first of these on. image = (array, offset, width) and result =
(array, offset, columns) say where the first row starts and how far rows are apart. where: the place of each
maximum in its window; the functions for means do not use it.

Source: mathematics.md §2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.jit import intrinsic
from refimpl.kernels.simd import I32, INDEX, Vectors, emitting


class _Rows:
    """The pointers of the current row, and vectors of even and odd columns of the image."""

    def __init__(self, builder: ir.IRBuilder, count: Any, image: list[Any], result: list[Any]) -> None:
        self.builder = builder
        self.image, self.image_at, self.width = image
        self.result, self.result_at, self.columns = result
        self.vectors = Vectors(builder, self.image.type.pointee)
        lanes = self.vectors.lanes
        self.mask = self.vectors.lanes_below(count)
        pixels = builder.mul(count, INDEX(2))
        self.halves = [self.vectors.lanes_below(builder.sub(pixels, INDEX(i * lanes))) for i in range(2)]

    def _row(self, array: Any, start: Any, row: Any, width: Any) -> Any:
        return self.builder.gep(array, [self.builder.add(start, self.builder.mul(row, width))])

    def _image_row(self, row: Any, second: int) -> list[Any]:
        line = self.builder.add(self.builder.mul(row, INDEX(2)), INDEX(second))
        base = self._row(self.image, self.image_at, line, self.width)
        return [base, self.builder.gep(base, [INDEX(self.vectors.lanes)])]

    def result_row(self, array: Any, row: Any) -> Any:
        """Where a row of the result lies in `array`."""
        return self._row(array, self.result_at, row, self.columns)

    def window(self, row: Any) -> list[Any]:
        """The four values of each window of a row of the result, in scan order, as vectors."""
        lanes, out = self.vectors.lanes, []
        for second in range(2):
            places = zip(self._image_row(row, second), self.halves, strict=True)
            low, high = (self.vectors.load(pointer, mask) for pointer, mask in places)
            out += [self.vectors.shuffle(low, high, range(odd, 2 * lanes, 2)) for odd in range(2)]
        return out

    def spread(self, row: Any, values: list[Any]) -> None:
        """The opposite: write the four values of each window to the image."""
        lanes = self.vectors.lanes
        woven = [lane for pair in zip(range(lanes), range(lanes, 2 * lanes), strict=True) for lane in pair]
        for second in range(2):
            even, odd = values[2 * second : 2 * second + 2]
            for i, (pointer, mask) in enumerate(zip(self._image_row(row, second), self.halves, strict=True)):
                part = self.vectors.shuffle(even, odd, woven[i * lanes : (i + 1) * lanes])
                self.vectors.store(part, pointer, mask)


def _for_rows(typed: tuple[Any, ...], emit: Callable[..., None]) -> Any:
    """What an intrinsic returns to call emit(rows, row, pointer to `where`) for each row of the result."""

    def each(builder: ir.IRBuilder, rows: Any, count: Any, image: Any, result: Any, where: Any) -> None:
        place = _Rows(builder, count, image, result)
        with cgutils.for_range(builder, rows, intp=INDEX) as loop:
            emit(place, loop.index, where)

    return types.void(types.intp, types.intp, *typed), emitting(each)


@intrinsic
def largest(typingctx, rows, count, image, result, where):
    """result = largest value of each window; where = its place in the window."""

    def emit(place, row, where):
        builder, vectors = place.builder, place.vectors
        short = ir.VectorType(I32, vectors.lanes)
        best, *others = place.window(row)
        at = ir.Constant(short, None)
        for number, value in enumerate(others, 1):
            larger = builder.fcmp_ordered(">", value, best)
            is_nan, was_nan = (builder.fcmp_unordered("uno", v, v) for v in (value, best))
            better = builder.or_(larger, builder.and_(is_nan, builder.not_(was_nan)))
            best = builder.select(better, value, best)
            at = builder.select(better, ir.Constant(short, [number] * vectors.lanes), at)
        vectors.store(best, place.result_row(place.result, row), place.mask)
        vectors.store(at, place.result_row(where, row), place.mask)

    return _for_rows((image, result, where), emit)


@intrinsic
def send_back(typingctx, rows, count, image, result, where):
    """image = the result's value at the place in the window that `where` says, 0 at the others."""

    def emit(place, row, where):
        builder, vectors = place.builder, place.vectors
        short = ir.VectorType(I32, vectors.lanes)
        slope = vectors.load(place.result_row(place.result, row), place.mask)
        at = vectors.load(place.result_row(where, row), place.mask, short)
        numbers = [ir.Constant(short, [number] * vectors.lanes) for number in range(4)]
        here = [builder.icmp_signed("==", at, number) for number in numbers]
        place.spread(row, [builder.select(mask, slope, vectors.zero) for mask in here])

    return _for_rows((image, result, where), emit)


@intrinsic
def mean(typingctx, rows, count, image, result, where):
    """result = mean of each window, added in scan order."""

    def emit(place, row, where):
        builder, vectors = place.builder, place.vectors
        total = reduce(builder.fadd, place.window(row))
        quarter = builder.fmul(total, ir.Constant(vectors.type, [0.25] * vectors.lanes))
        vectors.store(quarter, place.result_row(place.result, row), place.mask)

    return _for_rows((image, result, where), emit)


@intrinsic
def share_out(typingctx, rows, count, image, result, where):
    """image = a quarter of the result's value at each place of the window."""

    def emit(place, row, where):
        builder, vectors = place.builder, place.vectors
        slope = vectors.load(place.result_row(place.result, row), place.mask)
        quarter = builder.fmul(slope, ir.Constant(vectors.type, [0.25] * vectors.lanes))
        place.spread(row, [quarter] * 4)

    return _for_rows((image, result, where), emit)
