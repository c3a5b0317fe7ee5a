"""2 x 2 pooling with stride 2 on vectors: the window that almost every network uses.

A row of the result comes from two rows of the image; vectors of even and odd columns are separated (or,
backwards, woven together) by shuffles. `pool` holds the definition for all windows, and the same results.

In all functions: rows and count are the result's rows and the columns from here on (a vector's lanes of
them are treated); image = (array, offset, width) and result = (array, offset, columns) say where the first
row starts and how far rows are apart.

Source: mathematics.md §2.1.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.jit import intrinsic
from refimpl.kernels.simd import I32, INDEX, Vectors, data_of


class _Rows:
    """The pointers of the current row, and vectors of even and odd columns of the image."""

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        self.context, self.builder = context, builder
        self.image, self.image_at, self.width = self._place(signature.args[2], args[2])
        self.result, self.result_at, self.columns = self._place(signature.args[3], args[3])
        self.vectors = Vectors(builder, self.image.type.pointee)
        lanes, count = self.vectors.lanes, args[1]
        self.mask = self.vectors.lanes_below(count)
        pixels = builder.mul(count, INDEX(2))
        self.halves = [self.vectors.lanes_below(builder.sub(pixels, INDEX(i * lanes))) for i in range(2)]

    def _place(self, kind: Any, value: Any) -> list[Any]:
        parts = cgutils.unpack_tuple(self.builder, value)
        return [data_of(self.context, self.builder, k, p) for k, p in zip(kind.types, parts, strict=True)]

    def _image_row(self, row: Any, second: int) -> list[Any]:
        line = self.builder.add(self.builder.mul(row, INDEX(2)), INDEX(second))
        base = self.builder.gep(
            self.image, [self.builder.add(self.image_at, self.builder.mul(line, self.width))]
        )
        return [base, self.builder.gep(base, [INDEX(self.vectors.lanes)])]

    def result_row(self, array: Any, row: Any) -> Any:
        """Where a row of the result lies in `array`."""
        return self.builder.gep(
            array, [self.builder.add(self.result_at, self.builder.mul(row, self.columns))]
        )

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


def _for_rows(emit: Any) -> Any:
    """A code generator that calls emit(rows, row, other arguments' pointers) for each row."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows = _Rows(context, builder, signature, args)
        others = [data_of(context, builder, signature.args[i], args[i]) for i in range(4, len(args))]
        with cgutils.for_range(builder, args[0], intp=INDEX) as loop:
            emit(rows, loop.index, *others)
        return context.get_dummy_value()

    return codegen


@intrinsic
def largest(typingctx, rows, count, image, result, where):
    """result = largest value of each window; where = its place in the window."""

    def emit(place, row, where):
        builder, vectors = place.builder, place.vectors
        short = ir.VectorType(I32, vectors.lanes)
        best, at = None, ir.Constant(short, None)
        for number, value in enumerate(place.window(row)):
            if best is None:
                best = value
                continue
            larger = builder.fcmp_ordered(">", value, best)
            is_nan, was_nan = (builder.fcmp_unordered("uno", v, v) for v in (value, best))
            better = builder.or_(larger, builder.and_(is_nan, builder.not_(was_nan)))
            best = builder.select(better, value, best)
            at = builder.select(better, ir.Constant(short, [number] * vectors.lanes), at)
        vectors.store(best, place.result_row(place.result, row), place.mask)
        vectors.store(at, place.result_row(where, row), place.mask)

    return types.void(types.intp, types.intp, image, result, where), _for_rows(emit)


@intrinsic
def send_back(typingctx, rows, count, image, result, where):
    """image = the result's value at the place in the window that `where` says, 0 at the others."""

    def emit(place, row, where):
        builder, vectors = place.builder, place.vectors
        short = ir.VectorType(I32, vectors.lanes)
        slope = vectors.load(place.result_row(place.result, row), place.mask)
        at = vectors.load(place.result_row(where, row), place.mask, short)
        values = []
        for number in range(4):
            here = builder.icmp_signed("==", at, ir.Constant(short, [number] * vectors.lanes))
            values.append(builder.select(here, slope, vectors.zero))
        place.spread(row, values)

    return types.void(types.intp, types.intp, image, result, where), _for_rows(emit)


@intrinsic
def mean(typingctx, rows, count, image, result):
    """result = mean of each window, added in scan order."""

    def emit(place, row):
        builder, vectors = place.builder, place.vectors
        values = place.window(row)
        total = values[0]
        for value in values[1:]:
            total = builder.fadd(total, value)
        quarter = builder.fmul(total, ir.Constant(vectors.type, [0.25] * vectors.lanes))
        vectors.store(quarter, place.result_row(place.result, row), place.mask)

    return types.void(types.intp, types.intp, image, result), _for_rows(emit)


@intrinsic
def share_out(typingctx, rows, count, image, result):
    """image = a quarter of the result's value at each place of the window."""

    def emit(place, row):
        builder, vectors = place.builder, place.vectors
        slope = vectors.load(place.result_row(place.result, row), place.mask)
        quarter = builder.fmul(slope, ir.Constant(vectors.type, [0.25] * vectors.lanes))
        place.spread(row, [quarter] * 4)

    return types.void(types.intp, types.intp, image, result), _for_rows(emit)
