"""The micro-kernel: a small block of results kept in registers while a long sum runs over it.

    C[c_row[i] + p]  =  (0 or C)  +  sum_k  S[s_row[i] + s_at[k]] * V[v_at[k] + p]   ( + bias[i] )

for M rows i and V vectors of lanes p. S is read one scalar at a time and broadcast, V as vectors. Rows
and terms are listed in tables of offsets, so that any subset of either is left out at no cost. Each
result is one chain of fused multiply-adds in the order of k, whatever M, V and the lane count.

The division into blocks is derived; `bench/README.md` shows how fast the layers built on it are.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from refimpl.kernels.jit import inlined, intrinsic, kernel, large_kernel, shared
from refimpl.kernels.simd import INDEX, Vectors, clear_runs, emitting, entry, rows_from, summed, switched
from refimpl.kernels.target import ROWS_OF, TILE_SIZES, TILE_VECTORS, VECTOR_BYTES

TERMS = 160  # of a sum at a time: the vectors of a column block, and scalars, that a first-level cache holds
PART = 1 << 18  # bytes of C at a time: what a second-level cache holds beside other things


class _Tile:
    """Emits the code of one tile size."""

    def __init__(self, builder: ir.IRBuilder, rows: int, vectors: int, valid: Any, element: Any) -> None:
        """valid: how many lanes of the last vector exist; None if all do."""
        self.builder, self.rows, self.vectors = builder, rows, vectors
        self.simd = Vectors(builder, element)
        self.mask = None if valid is None else self.simd.lanes_below(valid)

    def _places(self, base: Any) -> list[tuple[Any, Any]]:
        """(pointer, mask) of each vector of a row: only the last one may be partial."""
        masks = [None] * (self.vectors - 1) + [self.mask]
        starts = [INDEX(j * self.simd.lanes) for j in range(self.vectors)]
        return [(self.builder.gep(base, [at]), mask) for at, mask in zip(starts, masks, strict=True)]

    def _either(self, condition: Any, values: list[Any], otherwise: Any) -> list[Any]:
        """`otherwise()` where `condition` holds, else `values`, without evaluating both."""
        before = self.builder.block
        with self.builder.if_then(condition):
            others = otherwise()
            end = self.builder.block
        chosen = [self.builder.phi(value.type) for value in values]
        for phi, value, other in zip(chosen, values, others, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(other, end)
        return chosen

    def fetch(self, c_rows: list[Any]) -> None:
        """Prefetch C, so that it is in the cache when the sum is done (measured gain: up to 6 %)."""
        for row in c_rows:
            for pointer, _ in self._places(row):
                self.simd.prefetch(pointer)

    def begin(self, c_rows: list[Any], add: Any) -> list[Any]:
        """Accumulators: zero, or what C holds if the sum is a continuation."""
        zeros = [self.simd.zero] * (self.rows * self.vectors)
        return self._either(
            add, zeros, lambda: [self.simd.load(p, mask) for row in c_rows for p, mask in self._places(row)]
        )

    def sum(self, start: list[Any], depth: Any, s_rows: list[Any], s_at: Any, v: Any, v_at: Any) -> list[Any]:
        """The loop over the terms."""

        def new(sums: list[Any], k: Any) -> list[Any]:
            offset, vectors = entry(self.builder, s_at, k), entry(self.builder, v_at, k)
            return self._term(sums, s_rows, offset, self.builder.gep(v, [vectors]))

        return summed(self.builder, INDEX(0), depth, start, new)

    def _term(self, sums: list[Any], s_rows: list[Any], offset: Any, v: Any) -> list[Any]:
        vectors = [self.simd.load(p, mask) for p, mask in self._places(v)]
        new = []
        for i, row in enumerate(s_rows):
            scalar = self.simd.splat(self.builder.load(self.builder.gep(row, [offset])))
            for j, vector in enumerate(vectors):
                new.append(self.simd.fma(scalar, vector, sums[i * self.vectors + j]))
        return new

    def shift(self, sums: list[Any], biased: Any, bias: list[Any]) -> list[Any]:
        """The bias, added last."""

        def shifted() -> list[Any]:
            values = [self.simd.splat(self.builder.load(pointer)) for pointer in bias]
            return [self.builder.fadd(s, values[i // self.vectors]) for i, s in enumerate(sums)]

        return self._either(biased, sums, shifted)

    def end(self, sums: list[Any], c_rows: list[Any]) -> None:
        """Write the results."""
        places = [place for row in c_rows for place in self._places(row)]
        for value, (pointer, mask) in zip(sums, places, strict=True):
            self.simd.store(value, pointer, mask)


class _LanesTile(_Tile):
    """A tile in which S, too, is read as vectors: C[c_row[i] + p] = sum_k S[s_row[i] + s_at[k] + p] * V[...].

    All its vectors are whole.
    """

    def _term(self, sums: list[Any], s_rows: list[Any], offset: Any, v: Any) -> list[Any]:
        vectors = [self.simd.load(p) for p, _ in self._places(v)]
        rows = [[self.simd.load(p) for p, _ in self._places(self.builder.gep(r, [offset]))] for r in s_rows]
        factors = [pair for row in rows for pair in zip(row, vectors, strict=True)]
        return [self.simd.fma(s, v, total) for (s, v), total in zip(factors, sums, strict=True)]


class _SteppedTile(_Tile):
    """A tile whose sums are gradients g of weights C: C <- C - eta (g + lam (C - centre)).

    The same arithmetic as `vector.local_step`. A row that is computed twice is stepped once, because all of C
    is read before any of it is written.
    """

    def step(self, sums: list[Any], c_rows: list[Any], goals: list[Any], eta: Any, lam: Any) -> list[Any]:
        """The stepped weights; `goals` are the rows of the centre."""
        builder, eta, lam = self.builder, self.simd.splat(eta), self.simd.splat(lam)
        places = [[place for row in rows for place in self._places(row)] for rows in (c_rows, goals)]
        stepped = []
        for g, (here, mask), (there, _) in zip(sums, *places, strict=True):
            w, goal = self.simd.load(here, mask), self.simd.load(there, mask)
            pull = builder.fadd(g, builder.fmul(lam, builder.fsub(w, goal)))
            stepped.append(builder.fsub(w, builder.fmul(eta, pull)))
        return stepped


@shared
def _number(rows, vectors, partial):
    """The number of a tile size among the cases of the compiled function."""
    return 8 * vectors + rows + partial


def _sizes(*partial: bool) -> list[tuple[int, tuple[int, int, bool]]]:
    """Every tile size (rows, vectors, whether the last vector may be partial) with its `_number`."""
    cases = [(*size, masked) for size, masked in product(TILE_SIZES, partial)]
    return [(_number(*case), case) for case in cases]


def _computing(kind: type[_Tile], *partial: bool) -> Any:
    """The compiled function that computes one tile of a kind; partial: whether the last vector may be so."""

    @intrinsic
    def tile(typingctx, number, first, terms, scalars, panel, result, add, biased, bias):
        """Compute the tile of a `_number`; `first` is its first row in the row tables.

        terms = (first, count) in the term tables; scalars = (S, s_row, s_at); panel = (V, v_start, v_at);
        result = (C, c_row, c_start, valid), `valid` lanes of the last vector exist in C and V;
        add: whether the sum continues C; biased: whether to add bias[row] last.
        """

        def emit(builder, number, first, terms, scalars, panel, result, add, biased, bias):
            (start, depth), (c, c_row, c_start, valid) = terms, result
            (s, s_row, s_at), (v, v_start, v_at) = scalars, panel
            v, c = builder.gep(v, [v_start]), builder.gep(c, [c_start])
            s_at, v_at = builder.gep(s_at, [start]), builder.gep(v_at, [start])
            for rows, vectors, masked in switched(builder, number, _sizes(*partial)):
                block = kind(builder, rows, vectors, valid if masked else None, c.type.pointee)
                row = [builder.add(first, INDEX(i)) for i in range(rows)]
                s_rows = rows_from(builder, s, s_row, first, rows)
                c_rows = rows_from(builder, c, c_row, first, rows)
                block.fetch(c_rows)
                sums = block.sum(block.begin(c_rows, add), depth, s_rows, s_at, v, v_at)
                block.end(block.shift(sums, biased, [builder.gep(bias, [i]) for i in row]), c_rows)

        pair, flag = types.UniTuple(types.intp, 2), types.boolean
        typed = types.void(types.intp, types.intp, pair, scalars, panel, result, flag, flag, bias)
        return typed, emitting(emit)

    return tile


tile, lanes_tile = _computing(_Tile, False, True), _computing(_LanesTile, False)


@intrinsic
def step_tile(typingctx, number, first, depth, scalars, panel, result, pull):
    """Step the weights of the tile of a `_number`; `first` is its first row in the row tables.

    scalars, panel and result are those of `tile`; pull = (centre, eta, lam), with a centre that lies like C.
    """

    def emit(builder, number, first, depth, scalars, panel, result, pull):
        (s, s_row, s_at), (v, v_start, v_at) = scalars, panel
        (c, c_row, c_start, valid), (centre, eta, lam) = result, pull
        v, c, centre = (
            builder.gep(base, [at]) for base, at in ((v, v_start), (c, c_start), (centre, c_start))
        )
        for rows, vectors, masked in switched(builder, number, _sizes(False, True)):
            block = _SteppedTile(builder, rows, vectors, valid if masked else None, c.type.pointee)
            s_rows = rows_from(builder, s, s_row, first, rows)
            c_rows, goals = (rows_from(builder, base, c_row, first, rows) for base in (c, centre))
            block.fetch([*c_rows, *goals])
            sums = block.sum([block.simd.zero] * (rows * vectors), depth, s_rows, s_at, v, v_at)
            block.end(block.step(sums, c_rows, goals, eta, lam), c_rows)

    return types.void(types.intp, types.intp, types.intp, scalars, panel, result, pull), emitting(emit)


@shared
def _vectors_of(left):
    """How many vectors of those left the next tile takes: the most that do not leave a single one of four."""
    if left == 4 and TILE_VECTORS == 3:
        return 2
    return TILE_VECTORS if left >= TILE_VECTORS else min(left, 2)


@shared
def _rows_of(left, vectors):
    """How many of the rows left the next tile takes: the most, but 8 are 4 + 4, which fills the registers."""
    most, even = ROWS_OF[vectors], (left + 1) // 2 * 2
    return even // 4 * 2 if even == most + 2 else min(most, even)


@large_kernel
def sweep(rows, depth, width, scalars, v, v_at, c, c_row, closed, add, biased, bias):
    """All `rows` rows and `width` lanes of C: the tile moved over them.

    `TERMS` terms are summed for all tiles, then the next ones, so that their vectors stay in the first-level
    cache and their scalars in the second; of a large C, `PART` bytes at a time. (Measured with 16 registers:
    5 to 30 % of a pass of 288 terms or more; with 32: up to 11 %.)

    closed = (offsets, count) of rows of C that become zero: a few are cleared after each column block, whose
    arithmetic hides their way to memory (measured with three quarters closed: 2 to 8 % of the pass).

    The row tables hold one entry more than there are rows, a copy of the last: where an odd number of
    rows is left, that row is computed twice, which is cheaper than compiling tiles of odd size. (Callers
    write np.bool_(False), not False: for each combination of literals Numba would compile a copy.)
    """
    lanes, blocks, cleared = VECTOR_BYTES // c.itemsize, max(1, (depth + TERMS - 1) // TERMS), 0
    part = max(1, (depth + blocks - 1) // blocks)
    tile_bytes = max(1, rows) * TILE_VECTORS * VECTOR_BYTES  # of the widest column block
    span = max(1, PART // tile_bytes) * TILE_VECTORS * lanes
    for first in range(0, width, span):
        for term in range(0, max(1, depth), part):
            terms, last = (term, min(part, depth - term)), biased and term + part >= depth
            start, stop = first, min(first + span, width)
            while start < stop:
                vectors = _vectors_of((stop - start + lanes - 1) // lanes)
                _column(rows, vectors, terms, scalars, (v, start, v_at), c, c_row, stop, add, last, bias)
                start += vectors * lanes
                if term == 0 and closed[1] > 0:
                    share = closed[1] * min(start, width) // width
                    clear_runs((closed[0], cleared, share), width, c)
                    cleared = share


@inlined
def _column(rows, vectors, terms, scalars, panel, c, c_row, stop, add, biased, bias):
    """The tiles of all rows in one column block, which ends at lane `stop` at the latest."""
    lanes, row = VECTOR_BYTES // c.itemsize, 0
    valid = min(lanes, stop - panel[1] - (vectors - 1) * lanes)
    while row < rows:
        height = _rows_of(rows - row, vectors)
        number, result = _number(height, vectors, valid < lanes), (c, c_row, panel[1], valid)
        tile(number, row, terms, scalars, panel, result, add or terms[0] > 0, biased, bias)
        row += height


@kernel
def sweep_lanes(rows, depth, width, s, v, v_at, c, c_row, add):
    """`sweep` with the tile whose S = (array, s_row, s_at) is read as vectors; `width` is whole vectors."""
    lanes, start, no = VECTOR_BYTES // c.itemsize, 0, np.bool_(False)
    while start < width:
        vectors, row = _vectors_of((width - start) // lanes), 0
        scalars, panel, result = (s[0][start:], s[1], s[2]), (v, start, v_at), (c, c_row, start, lanes)
        while row < rows:
            height = _rows_of(rows - row, vectors)
            lanes_tile(_number(height, vectors, no), row, (0, depth), scalars, panel, result, add, no, c)
            row += height
        start += vectors * lanes


@kernel
def sweep_steps(rows, depth, width, scalars, panel, result, pull):
    """Step all `rows` rows and `width` columns of weights; panel = (V, v_at), result = (C, c_row).

    No gradient is ever in memory, and the arithmetic of the sums hides the way of C and of the centre.
    (Measured on 100 x 784 weights and 20 samples: 17 us, where storing 128 columns of the gradient takes 22.)
    """
    (v, v_at), (c, c_row) = panel, result
    lanes, start = VECTOR_BYTES // c.itemsize, 0
    while start < width:
        vectors, row = _vectors_of((width - start + lanes - 1) // lanes), 0
        valid = min(lanes, width - start - (vectors - 1) * lanes)
        while row < rows:
            height = _rows_of(rows - row, vectors)
            number = _number(height, vectors, valid < lanes)
            step_tile(number, row, depth, scalars, (v, start, v_at), (c, c_row, start, valid), pull)
            row += height
        start += vectors * lanes
