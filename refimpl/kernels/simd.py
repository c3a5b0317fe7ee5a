"""Vectors of the machine's width inside compiled code, from which `tile` and `panels` are built.

Nothing outside an array is ever read or written: partial vectors use LLVM's masked loads and stores.
The width comes from `target`; LLVM turns the same description into AVX-512, AVX2, NEON or plain code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.jit import intrinsic
from refimpl.kernels.target import VECTOR_BYTES

INDEX = ir.IntType(64)
I32 = ir.IntType(32)
Case = TypeVar("Case")


def _size_of(kind: ir.VectorType) -> int:
    """Bytes of one element."""
    return 8 if isinstance(kind.element, ir.DoubleType) else 4


def _suffix(kind: ir.VectorType) -> str:
    """How LLVM's intrinsics call the type: v16f32, v8f64, v16i32."""
    letter = "i" if isinstance(kind.element, ir.IntType) else "f"
    return f"v{kind.count}{letter}{8 * _size_of(kind)}"


class Vectors:
    """Emits vector instructions for one element type (float or double) with an LLVM builder."""

    def __init__(self, builder: ir.IRBuilder, element: Any, lanes: int | None = None) -> None:
        self.builder = builder
        self.lanes = lanes or VECTOR_BYTES // (4 if isinstance(element, ir.FloatType) else 8)
        self.type = ir.VectorType(element, self.lanes)
        self.zero = ir.Constant(self.type, None)

    def splat(self, scalar: Any) -> Any:
        """A vector holding `scalar` in every lane."""
        kind = ir.VectorType(scalar.type, self.lanes)
        undefined = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, I32(0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, self.lanes), None))

    def shuffle(self, a: Any, b: Any, lanes: Any) -> Any:
        """The listed lanes of a (0, 1, ...) and b (counted on from a's)."""
        pattern = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return self.builder.shuffle_vector(a, b, pattern)

    def lanes_below(self, count: Any) -> Any:
        """The mask of lanes 0 .. count - 1 (all, if count is larger; none, if it is negative)."""
        short = self.builder.trunc(count, I32)
        numbers = ir.Constant(ir.VectorType(I32, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.splat(short))

    def lanes_of(self, bits: Any) -> Any:
        """The mask of the lanes i whose bit i is set."""
        single = ir.Constant(ir.VectorType(I32, self.lanes), [1 << i for i in range(self.lanes)])
        ours = self.builder.and_(self.splat(self.builder.trunc(bits, I32)), single)
        return self.builder.icmp_signed("!=", ours, ir.Constant(ours.type, None))

    def load(self, pointer: Any, mask: Any = None, kind: Any = None) -> Any:
        """The vector (or one of type `kind`) at `pointer`; lanes outside `mask` are not read but zero."""
        kind = kind or self.type
        pointer, align = self.builder.bitcast(pointer, kind.as_pointer()), _size_of(kind)
        if mask is None:
            return self.builder.load(pointer, align=align)
        arguments = [pointer, I32(align), mask, ir.Constant(kind, None)]
        return self._call(f"llvm.masked.load.{_suffix(kind)}.p0", kind, arguments)

    def store(self, value: Any, pointer: Any, mask: Any = None) -> None:
        """Write the vector to `pointer`; lanes outside `mask` stay as they are."""
        kind = value.type
        pointer, align = self.builder.bitcast(pointer, kind.as_pointer()), _size_of(kind)
        if mask is None:
            self.builder.store(value, pointer, align=align)
        else:
            arguments = [value, pointer, I32(align), mask]
            self._call(f"llvm.masked.store.{_suffix(kind)}.p0", ir.VoidType(), arguments)

    def prefetch(self, pointer: Any) -> None:
        """Bring the line at `pointer` into the cache, for writing."""
        pointer = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        self._call("llvm.prefetch.p0", ir.VoidType(), [pointer, I32(1), I32(3), I32(1)])

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c in every lane, rounded once."""
        return self._call(f"llvm.fma.{_suffix(self.type)}", self.type, [a, b, c])

    def each(self, count: Any, body: Callable[[Any, Any], None]) -> None:
        """body(at, mask) for the vectors of `count` entries: whole ones, without a mask, then the rest."""
        builder, lanes = self.builder, INDEX(self.lanes)
        whole = builder.and_(count, INDEX(-self.lanes))
        with cgutils.for_range(builder, builder.udiv(count, lanes), intp=INDEX) as loop:
            body(builder.mul(loop.index, lanes), None)
        with builder.if_then(builder.icmp_signed("<", whole, count)):
            body(whole, self.lanes_below(builder.sub(count, whole)))

    def _call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(result, [a.type for a in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)


def unpacked(context: Any, builder: ir.IRBuilder, kind: Any, value: Any) -> Any:
    """An array as the pointer to its first element, a tuple as the list of its parts, others as they are."""
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value).data
    if isinstance(kind, types.BaseTuple):
        parts = zip(kind.types, cgutils.unpack_tuple(builder, value), strict=True)
        return [unpacked(context, builder, own, part) for own, part in parts]
    return value


def emitting(emit: Callable[..., Any]) -> Callable[..., Any]:
    """What an intrinsic gives to Numba so that emit(builder, *arguments) writes its code.

    The arguments are `unpacked`. The intrinsic returns what `emit` does; nothing, if that is None.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pairs = zip(signature.args, args, strict=True)
        result = emit(builder, *[unpacked(context, builder, kind, value) for kind, value in pairs])
        return context.get_dummy_value() if result is None else result

    return codegen


def rows_from(builder: ir.IRBuilder, base: Any, table: Any, first: Any, count: int) -> list[Any]:
    """Pointers to the `count` rows of `base` that begin where `table` says from its entry `first` on."""
    numbers = [builder.add(first, INDEX(i)) for i in range(count)]
    return [builder.gep(base, [entry(builder, table, number)]) for number in numbers]


def summed(
    builder: ir.IRBuilder, first: Any, last: Any, start: list[Any], new: Callable[..., list[Any]]
) -> list[Any]:
    """Sums that begin at `start`, in registers: new(sums, k) gives those with term k, first <= k < last."""
    before = builder.block
    body, after = builder.append_basic_block("terms"), builder.append_basic_block("summed")
    builder.cbranch(builder.icmp_signed("<", first, last), body, after)
    builder.position_at_end(body)
    k, sums = builder.phi(INDEX), [builder.phi(value.type) for value in start]
    added, following = new(sums, k), builder.add(k, INDEX(1))
    builder.cbranch(builder.icmp_signed("<", following, last), body, after)
    builder.position_at_end(after)
    results = [builder.phi(value.type) for value in start]
    rounds = ((k, first, following), *zip(sums, start, added, strict=True))
    for phi, once, again in (*rounds, *zip(results, start, added, strict=True)):
        phi.add_incoming(once, before)
        phi.add_incoming(again, body)
    return results


def switched(builder: ir.IRBuilder, number: Any, cases: Iterable[tuple[int, Case]]) -> Iterator[Case]:
    """Go through numbered cases; what is emitted for a case runs only if `number` is its number."""
    after = builder.append_basic_block("after")
    switch = builder.switch(number, after)
    for own, case in cases:
        block = builder.append_basic_block(f"case{own}")
        switch.add_case(own, block)
        builder.position_at_end(block)
        yield case
        builder.branch(after)
    builder.position_at_end(after)


@intrinsic
def copy_rows(typingctx, rows, lanes, source, source_at, target, target_at):
    """For r < rows: target[to + r * step + q] = source[from + r * step + q] for a vector's lanes q.

    lanes = (first, last, count): lanes q < count are written; first <= q < last are read, the others 0.
    source_at = (from, step), target_at = (to, step). Nothing else is read or written.
    """

    def emit(builder, rows, lanes, source, source_at, target, target_at):
        (first, last, count), (s_from, s_step), (t_to, t_step) = lanes, source_at, target_at
        vectors = Vectors(builder, source.type.pointee)
        read = builder.and_(builder.not_(vectors.lanes_below(first)), vectors.lanes_below(last))
        write = vectors.lanes_below(count)
        with cgutils.for_range(builder, rows, intp=INDEX) as loop:
            here = builder.gep(source, [builder.add(s_from, builder.mul(loop.index, s_step))])
            there = builder.gep(target, [builder.add(t_to, builder.mul(loop.index, t_step))])
            vectors.store(vectors.load(here, read), there, write)

    triple, pair = types.UniTuple(types.intp, 3), types.UniTuple(types.intp, 2)
    return types.void(types.intp, triple, source, pair, target, pair), emitting(emit)


@intrinsic
def split_pairs(typingctx, count, source, target):
    """target[k] = source[2 k] and target[count + k] = source[2 k + 1] for k < count."""

    def emit(builder, count, source, target):
        vectors = Vectors(builder, source.type.pointee)
        lanes, whole = vectors.lanes, builder.udiv(count, INDEX(vectors.lanes))

        def part(k, valid):
            masks, mask, first = [None, None], None, builder.gep(source, [builder.mul(k, INDEX(2))])
            if valid is not None:
                pairs, mask = builder.mul(valid, INDEX(2)), vectors.lanes_below(valid)
                masks = [vectors.lanes_below(builder.sub(pairs, INDEX(i * lanes))) for i in range(2)]
            low, high = (vectors.load(builder.gep(first, [INDEX(i * lanes)]), masks[i]) for i in range(2))
            for odd, at in ((0, k), (1, builder.add(count, k))):
                value = vectors.shuffle(low, high, range(odd, 2 * lanes, 2))
                vectors.store(value, builder.gep(target, [at]), mask)

        with cgutils.for_range(builder, whole, intp=INDEX) as loop:
            part(builder.mul(loop.index, INDEX(lanes)), None)
        done = builder.mul(whole, INDEX(lanes))
        part(done, builder.sub(count, done))

    return types.void(types.intp, source, target), emitting(emit)


@intrinsic
def spread_pairs(typingctx, rows, count, source, source_at, target, target_at):
    """target[to + r * step + 2 k] = source[from + r * count + k] for r < rows, k < count.

    source_at = from, target_at = (to, step). Nothing else is written.
    """

    def emit(builder, rows, count, source, source_at, target, target_at):
        (to, step), vectors = target_at, Vectors(builder, source.type.pointee)
        lanes = vectors.lanes
        blocks = builder.udiv(builder.add(count, INDEX(lanes - 1)), INDEX(lanes))
        even = ir.Constant(ir.VectorType(ir.IntType(1), lanes), [1 - lane % 2 for lane in range(lanes)])
        with cgutils.for_range(builder, rows, intp=INDEX) as row:
            ours = builder.gep(source, [builder.add(source_at, builder.mul(row.index, count))])
            line = builder.gep(target, [builder.add(to, builder.mul(row.index, step))])
            with cgutils.for_range(builder, blocks, intp=INDEX) as block:
                k = builder.mul(block.index, INDEX(lanes))
                left = builder.sub(count, k)
                value = vectors.load(builder.gep(ours, [k]), vectors.lanes_below(left))
                for half in range(2):
                    spread = vectors.shuffle(value, value, [(half * lanes + i) // 2 for i in range(lanes)])
                    beyond = builder.sub(builder.mul(left, INDEX(2)), INDEX(half * lanes))
                    place = builder.gep(line, [builder.add(builder.mul(k, INDEX(2)), INDEX(half * lanes))])
                    vectors.store(spread, place, builder.and_(even, vectors.lanes_below(beyond)))

    pair = types.UniTuple(types.intp, 2)
    return types.void(types.intp, types.intp, source, types.intp, target, pair), emitting(emit)


@intrinsic
def copy_run(typingctx, count, length, source, source_at, target, target_at):
    """target[to + there[i] + q] = source[from + here[i] + q] for i < count, q < length or a vector's lanes.

    source_at = (from, table here), target_at = (to, table there).
    """

    def emit(builder, count, length, source, source_at, target, target_at):
        vectors = Vectors(builder, source.type.pointee)
        mask = vectors.lanes_below(length)
        with cgutils.for_range(builder, count, intp=INDEX) as loop:
            here, there = (
                builder.gep(base, [builder.add(start, entry(builder, table, loop.index))])
                for base, (start, table) in ((source, source_at), (target, target_at))
            )
            vectors.store(vectors.load(here, mask), there, mask)

    return types.void(types.intp, types.intp, source, source_at, target, target_at), emitting(emit)


@intrinsic
def clear_runs(typingctx, starts, length, target):
    """target[start[i] + q] = 0 for first <= i < last, q < length; starts = (table start, first, last)."""

    def emit(builder, starts, length, target):
        (table, first, last), vectors = starts, Vectors(builder, target.type.pointee)

        def clear(at, mask):
            vectors.store(vectors.zero, builder.gep(run, [at]), mask)

        with cgutils.for_range_slice(builder, first, last, INDEX(1), INDEX, inc=True) as (i, _):
            run = builder.gep(target, [entry(builder, table, i)])
            vectors.each(length, clear)

    return types.void(starts, types.intp, target), emitting(emit)


def _transposed(vectors: Vectors, rows: list[Any]) -> list[Any]:
    """The transpose of a square block held in vectors: swap off-diagonal blocks of size 1, 2, 4, ..."""
    size, distance = vectors.lanes, 1
    while distance < size:
        out = list(rows)
        for i in range(size):
            if i & distance == 0:
                a, b = rows[i], rows[i + distance]
                low = [j if j & distance == 0 else size + j - distance for j in range(size)]
                high = [j + distance if j & distance == 0 else size + j for j in range(size)]
                out[i], out[i + distance] = vectors.shuffle(a, b, low), vectors.shuffle(a, b, high)
        rows, distance = out, 2 * distance
    return rows


@intrinsic
def transpose_block(typingctx, counts, source, source_at, target, target_at):
    """target[to + column[b + j] + i] = source[from + row[a + i] + j] for i < rows, j < cols.

    counts = (rows, cols), at most the lanes of a vector each; source_at = (from, row table, a),
    target_at = (to, column table, b). Nothing else is read or written.
    """

    def emit(builder, counts, source, source_at, target, target_at):
        def move(whole):
            def masked(i, limit, mask):
                inside = builder.icmp_signed("<", INDEX(i), limit)
                return None if whole else builder.select(inside, mask, nothing)

            def pointer(base, at, i, limit):
                start, table, first = at
                i, last = INDEX(i), builder.sub(limit, INDEX(1))
                i = i if whole else builder.select(builder.icmp_signed("<", i, last), i, last)
                return builder.gep(base, [builder.add(start, entry(builder, table, builder.add(first, i)))])

            lanes = range(vectors.lanes)
            block = [
                vectors.load(pointer(source, source_at, i, rows), masked(i, rows, col_mask)) for i in lanes
            ]
            for j, column in enumerate(_transposed(vectors, block)):
                vectors.store(column, pointer(target, target_at, j, cols), masked(j, cols, row_mask))

        (rows, cols), vectors = counts, Vectors(builder, source.type.pointee)
        nothing = ir.Constant(ir.VectorType(ir.IntType(1), vectors.lanes), None)
        row_mask, col_mask = vectors.lanes_below(rows), vectors.lanes_below(cols)
        full = builder.icmp_signed("==", builder.add(rows, cols), INDEX(2 * vectors.lanes))
        with builder.if_else(full) as (then, otherwise):
            with then:
                move(True)
            with otherwise:
                move(False)

    return types.void(types.UniTuple(types.intp, 2), source, source_at, target, target_at), emitting(emit)


def entry(builder: ir.IRBuilder, table: Any, i: Any) -> Any:
    """Entry i of a table of 32-bit offsets, widened to an index."""
    return builder.sext(builder.load(builder.gep(table, [i])), INDEX)
