"""The two micro-kernels of pruned convolutions: sums of a row's kept terms, and sums at kept weights.

Source: mathematics.md §2.1, §14.1. Derived.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.dot import fold
from refimpl.kernels.jit import intrinsic, shared
from refimpl.kernels.simd import INDEX, Vectors, emitting, entry, rows_from, summed, switched
from refimpl.kernels.sparse_tables import SUMS
from refimpl.kernels.sums import PARTIAL_SUMS
from refimpl.kernels.target import VECTOR_BYTES

LONG = 512  # pixels of a sum that does not fit into the first-level cache with its neighbours

# --- one row: the sums of one target channel


class _Row:
    """Emits the sums of one row for some vectors of each of some samples."""

    def __init__(self, builder: ir.IRBuilder, element: Any, vectors: int, samples: int) -> None:
        self.builder, self.simd = builder, Vectors(builder, element)
        self.vectors, self.samples = vectors, samples

    def places(self, base: Any, apart: Any) -> list[Any]:
        """Pointers to the vectors of all samples, which are `apart` entries from each other."""
        starts = [self.builder.gep(base, [self.builder.mul(INDEX(s), apart)]) for s in range(self.samples)]
        lanes = self.simd.lanes
        return [self.builder.gep(start, [INDEX(j * lanes)]) for start in starts for j in range(self.vectors)]

    def begin(self, add: Any, places: list[Any], valid: Any) -> list[Any]:
        """Zeros, or what C holds if the sums are continued."""
        builder, before, mask = self.builder, self.builder.block, self.simd.lanes_below(valid)
        with builder.if_then(add):
            masks = [mask if (i + 1) % self.vectors == 0 else None for i in range(len(places))]
            held = [self.simd.load(place, mask) for place, mask in zip(places, masks, strict=True)]
            after = builder.block
        starts = [builder.phi(self.simd.type) for _ in held]
        for phi, value in zip(starts, held, strict=True):
            phi.add_incoming(self.simd.zero, before)
            phi.add_incoming(value, after)
        return starts

    def sums(self, starts: list[Any], terms: list[Any], v: Any, apart: Any) -> list[Any]:
        """The loop over the row's terms."""
        values, offsets, first, last = terms

        def new(sums: list[Any], k: Any) -> list[Any]:
            scalar = self.simd.splat(self.builder.load(self.builder.gep(values, [k])))
            places = self.places(self.builder.gep(v, [entry(self.builder, offsets, k)]), apart)
            return [self.simd.fma(scalar, self.simd.load(p), s) for p, s in zip(places, sums, strict=True)]

        return summed(self.builder, first, last, starts, new)

    def store(self, values: list[Any], c: Any, apart: Any, valid: Any) -> None:
        """Write the results; of each sample's last vector only `valid` lanes."""
        whole = self.builder.icmp_signed("==", valid, INDEX(self.simd.lanes))
        masks = (None, self.simd.lanes_below(valid))
        with self.builder.if_else(whole) as branches:
            for branch, mask in zip(branches, masks, strict=True):
                with branch:
                    for i, (value, place) in enumerate(zip(values, self.places(c, apart), strict=True)):
                        self.simd.store(value, place, mask if (i + 1) % self.vectors == 0 else None)


POWERS = tuple(1 << i for i in range(SUMS.bit_length()))
CASES = tuple((v, s) for v in range(1, SUMS + 1) for s in POWERS if v * s <= SUMS)  # vectors, samples
NUMBERS = np.array(
    [[CASES.index((v, s)) if (v, s) in CASES else -1 for s in range(SUMS + 1)] for v in range(1, SUMS + 1)]
)


@intrinsic
def sparse_row(typingctx, number, terms, panel, result, add, shift):
    """C[c + p] = (0 or C) + sum_k values[k] * V[v + offsets[k] + p] + shift; p: the vectors of CASES[number].

    terms = (values, offsets, first, last); panel = (V, v, how far samples are apart);
    result = (C, c, how far samples are apart, lanes of each sample's last vector that exist). add: whether
    the sum continues C. The panel is readable for whole vectors.
    """

    def emit(builder, number, terms, panel, result, add, shift):
        (v, v_start, v_apart), (c, c_start, c_apart, valid) = panel, result
        v, c = builder.gep(v, [v_start]), builder.gep(c, [c_start])
        for vectors, samples in switched(builder, number, enumerate(CASES)):
            row = _Row(builder, c.type.pointee, vectors, samples)
            results, extra = row.places(c, c_apart), row.simd.splat(shift)
            for place in results:
                row.simd.prefetch(place)
            sums = row.sums(row.begin(add, results, valid), terms, v, v_apart)
            row.store([builder.fadd(value, extra) for value in sums], c, c_apart, valid)

    return types.void(types.intp, terms, panel, result, types.boolean, shift), emitting(emit)


# --- sums at kept weights


@shared
def weights_together(itemsize):
    """How many weights' sums are kept in registers at a time."""
    return max(1, SUMS * VECTOR_BYTES // (PARTIAL_SUMS * itemsize))


@intrinsic
def add_sums(typingctx, count, gradient, panel, offsets, result):
    """C[k] += sum_p D[d + p] * V[offsets[k] + p], for a block of weights k from `first` on.

    gradient = (D, d, pixels); panel: V; result = (C, first). A block has `weights_together` weights, of which
    only `count` exist: `offsets` is readable for a whole block, and V wherever it points to. Half of them or
    less have code of their own; but where sums are long they wait for memory, and more loads at a time hide
    more of that. (Measured at 16x16 pixels: up to a tenth of a pass.)
    """
    most = weights_together(result.types[0].dtype.bitwidth // 8)

    def emit(builder, count, gradient, panel, offsets, result):
        (dy, start, pixels), (c, first) = gradient, result
        dy, half = builder.gep(dy, [start]), max(1, most // 2)
        few = builder.icmp_signed("<=", count, INDEX(half))
        short = builder.icmp_signed("<=", pixels, INDEX(LONG))
        with builder.if_else(builder.and_(few, short)) as branches:
            for branch, wide in zip(branches, (half, most), strict=True):
                with branch:
                    weights = _Weights(builder, panel.type.pointee, wide, count, first)
                    weights.add(weights.sums(dy, pixels, panel, offsets), c)

    return types.void(types.intp, gradient, panel, offsets, result), emitting(emit)


class _Weights:
    """Emits the sums of `wide` weights from `first` on, of which `count` exist."""

    def __init__(self, builder: ir.IRBuilder, element: Any, wide: int, count: Any, first: Any) -> None:
        self.builder, self.vectors = builder, Vectors(builder, element, PARTIAL_SUMS)
        self.wide, self.count, self.first = wide, count, first

    def sums(self, dy: Any, pixels: Any, v: Any, offsets: Any) -> list[Any]:
        """The partial sums over all pixels."""
        builder, vectors = self.builder, self.vectors
        rows = rows_from(builder, v, offsets, self.first, self.wide)
        sums = [cgutils.alloca_once_value(builder, vectors.zero) for _ in rows]

        def add(at: Any, mask: Any) -> None:
            ours = vectors.load(builder.gep(dy, [at]), mask)
            for place, row in zip(sums, rows, strict=True):
                values = vectors.load(builder.gep(row, [at]), mask)
                builder.store(vectors.fma(ours, values, builder.load(place)), place)

        for place in sums:
            builder.store(vectors.zero, place)
        vectors.each(pixels, add)
        return [builder.load(place) for place in sums]

    def add(self, sums: list[Any], c: Any) -> None:
        """Add their totals to C."""
        builder, vectors = self.builder, self.vectors
        narrow, place = Vectors(builder, vectors.type.element, self.wide), builder.gep(c, [self.first])
        totals, exists = fold(vectors, sums), narrow.lanes_below(self.count)
        ours = vectors.shuffle(totals, totals, range(self.wide))
        narrow.store(builder.fadd(narrow.load(place, exists), ours), place, exists)
