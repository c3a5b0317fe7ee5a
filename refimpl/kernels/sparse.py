"""Convolutions most of whose weights are pruned: only the kept weights are multiplied.

The weights stay where they are, in an array (K, C, kh, kw); `kept` is a boolean array of that shape, and
`tables_of` turns it, once for each mask, into lists of the kept terms of every result channel.

* Forward and input gradient: each result is the chain of the dense kernels (`plain.conv_forward`,
  `plain.conv_input_grad`) without the terms of pruned weights. A term w * x with w = 0 changes no finite sum,
  so the bits are those of the dense kernels at weights that are zero where they are pruned. Only the sign of
  a zero may differ, and results of NaN or infinity in x, which the dense kernels multiply by zero.
* Weight gradient: only at the kept weights, in an order of its own (`plain.kept_weight_grad`): for each
  sample 16 chains over the pixels i, i + 16, ..., added pairwise; then one sample after the other. So vectors
  run along pixels and any weight is left out at no cost; in the dense order they run along the weights.

In all passes vectors run along pixels of shifted copies of the planes, as in `tiled_conv`, and one kept
weight takes part at a time. Results do not depend on the vector width.

Source: mathematics.md §2.1, §14.1. Derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels import plain
from refimpl.kernels.arrays import (
    INTS,
    Pair,
    check_offsets,
    check_shape,
    check_target,
    output_size,
    tidy_floats,
)
from refimpl.kernels.dot import fold
from refimpl.kernels.jit import (
    USE_TILE,
    inlined,
    intrinsic,
    kernel,
    large_kernel,
    optimise_for_size,
    shared,
)
from refimpl.kernels.panels import clear, clear_rows, copy_planes, cut, multiples, shift_table, whole_vectors
from refimpl.kernels.simd import INDEX, Vectors, data_of, entry, unpacked
from refimpl.kernels.sums import PARTIAL_SUMS, total
from refimpl.kernels.target import VECTOR_BYTES
from refimpl.kernels.workspace import scratch

SUMS = 8  # independent chains, which hide the latency of a multiply-add
HEAD = 13  # entries at the beginning of a part of the tables
ALIGNED = 16  # entries: planes of a panel start at whole vectors of every machine
FIRST_LEVEL = 24 << 10  # bytes of the panel that are read at a time: they stay in the first-level cache


# --- tables, made once for each mask


class Geometry(NamedTuple):
    """Height and width of a convolution's input, and how its window moves."""

    size: Pair
    stride: Pair = (1, 1)
    pad: Pair = (0, 0)


class Tables(NamedTuple):
    """The kept terms of each pass; the weight gradient reads those of the forward pass."""

    forward: np.ndarray
    backward: np.ndarray


def tables_of(kept: np.ndarray, geometry: Geometry) -> Tables:
    """The tables of a boolean mask (K, C, kh, kw), int32, which `convolve` and `weight_grad` read.

    The forward pass has one part, the input gradient one for each residue of its pixels modulo the stride.
    """
    (height, width), (sy, sx), (top, left) = geometry
    kh, kw = kept.shape[2:]
    ky, kx = np.mgrid[:kh, :kw]
    number = np.arange(kept.size).reshape(kept.shape)
    phase = np.arange(min(sy, kh))
    planes = [(top - down, left - right) for right in range(kw) for down in phase]
    grid = output_size(geometry.size, (kh, kw), geometry.stride, geometry.pad)
    forward = _part(kept, number, kx * phase.size + ky % sy, ky // sy, planes, grid, geometry.stride)
    backward = []
    for a in range(min(sy, height)):
        for b in range(min(sx, width)):
            down, right = (
                (a + top - ky) // sy,
                (b + left - kx) // sx,
            )  # the pixel of dy, relative to the first
            meet = ((a + top - ky) % sy == 0) & ((b + left - kx) % sx == 0)
            columns, lowest = np.unique(right[meet]), down[meet].min(initial=kh)
            plane = np.where(meet, np.searchsorted(columns, right), -1)
            grid = ((height - a + sy - 1) // sy, (width - b + sx - 1) // sx)
            mask, numbers = (array.transpose(1, 0, 2, 3) for array in (kept, number))
            shifts = [(-lowest, -column) for column in columns.tolist()]
            place = (a, b), geometry.stride
            backward.append(_part(mask, numbers, plane, down - lowest, shifts, grid, (1, 1), *place))
    return Tables(forward, np.concatenate(backward))


def _part(
    kept: np.ndarray,
    number: np.ndarray,
    plane_of: np.ndarray,
    row_of: np.ndarray,
    planes: Sequence[Pair],
    grid: Pair,
    stride: Pair,
    origin: Pair = (0, 0),
    spread: Pair = (1, 1),
) -> np.ndarray:
    """The terms of the results on a grid of pixels, `spread` apart from `origin` on.

    kept (target, source, kh, kw) and each weight's number; plane_of, row_of: the plane copy that a tap reads
    (-1: none) and its first row there; planes: how far each copy is moved down and to the right. The part is
    a head, these shifts, where the terms of each block of source channels start in each target's row (and the
    last ones end), each term's offset in the panel, and its weight.
    """
    chosen = kept & (plane_of >= 0)
    target, source, ky, kx = np.nonzero(chosen)
    targets, sources = kept.shape[:2]
    reach = int(row_of[plane_of >= 0].max(initial=0))
    rows, strip = grid[0] + reach, min(grid[0] * grid[1], SUMS * VECTOR_BYTES // 4) + reach * grid[1]
    block = max(1, FIRST_LEVEL // (4 * max(1, len(planes)) * strip))  # source channels at a time
    plane = -(-rows * grid[1] // ALIGNED) * ALIGNED
    offsets = (source * len(planes) + plane_of[ky, kx]) * plane + row_of[ky, kx] * grid[1]
    check_offsets("conv", copies=sources * len(planes) * plane)
    firsts = np.append(np.arange(0, sources, block), sources)
    edges = np.searchsorted(target * sources + source, np.arange(targets) * sources + firsts[:, None]).ravel()
    top = (len(planes), rows, *grid, plane, *stride, *origin, *spread, len(firsts) - 1, len(target))
    down, right = zip(*planes, strict=True) if planes else ((), ())
    return np.concatenate([top, down, right, edges, offsets, number[chosen]]).astype(INTS)


def parts_of(tables: np.ndarray, targets: int) -> Iterator[np.ndarray]:
    """The heads of the parts of a pass."""
    while tables.size:
        yield tables[:HEAD]
        tables = tables[HEAD + 2 * tables[0] + targets * (tables[HEAD - 2] + 1) + 2 * tables[HEAD - 1] :]


def sparse_scratch(tables: np.ndarray, sources: int, targets: int, itemsize: int) -> tuple[int, int]:
    """(floats, ints) that a pass needs, between so many channels."""
    needs = [(1, 1)]
    for planes, _, rows, cols, plane, _, _, _, _, *spread, _, count in map(
        np.ndarray.tolist, parts_of(tables, targets)
    ):
        panel = together(rows * cols, itemsize) * sources * planes * plane + ALIGNED
        part = 0 if spread == [1, 1] else targets * rows * cols
        needs.append((panel + count + ALIGNED + part, max(sources, targets) + 5 * planes))
    return max(need[0] for need in needs), max(need[1] for need in needs)


@shared
def together(pixels, itemsize):
    """How many samples are treated at a time: as many as fill the accumulators."""
    return max(1, SUMS // max(1, whole_vectors(pixels, itemsize) * itemsize // VECTOR_BYTES))


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

    def sums(
        self, starts: list[Any], first: Any, last: Any, values: Any, offsets: Any, v: Any, apart: Any
    ) -> list[Any]:
        """The loop over the row's terms."""
        builder, before = self.builder, self.builder.block
        body, after = builder.append_basic_block("terms"), builder.append_basic_block("summed")
        builder.cbranch(builder.icmp_signed("<", first, last), body, after)
        builder.position_at_end(body)
        k = builder.phi(INDEX)
        sums = [builder.phi(self.simd.type) for _ in range(self.vectors * self.samples)]
        scalar = self.simd.splat(builder.load(builder.gep(values, [k])))
        places = self.places(builder.gep(v, [entry(builder, offsets, k)]), apart)
        new = [self.simd.fma(scalar, self.simd.load(p), s) for p, s in zip(places, sums, strict=True)]
        following = builder.add(k, INDEX(1))
        builder.cbranch(builder.icmp_signed("<", following, last), body, after)
        builder.position_at_end(after)
        results = [builder.phi(self.simd.type) for _ in sums]
        loop = (
            (k, first, following),
            *zip(sums, starts, new, strict=True),
            *zip(results, starts, new, strict=True),
        )
        for phi, start, again in loop:
            phi.add_incoming(start, before)
            phi.add_incoming(again, body)
        return results

    def store(self, values: list[Any], c: Any, apart: Any, valid: Any) -> None:
        """Write the results; of each sample's last vector only `valid` lanes."""
        whole = self.builder.icmp_signed("==", valid, INDEX(self.simd.lanes))
        masks = (None, self.simd.lanes_below(valid))
        with self.builder.if_else(whole) as branches:
            for branch, mask in zip(branches, masks, strict=True):
                with branch:
                    for i, (value, place) in enumerate(zip(values, self.places(c, apart), strict=True)):
                        self.simd.store(value, place, mask if (i + 1) % self.vectors == 0 else None)


CASES = tuple((v, s) for v in range(1, SUMS + 1) for s in sorted({1, SUMS // v}))  # vectors, samples
NUMBERS = np.array([[CASES.index((v, s)) for s in (1, SUMS // v)] for v in range(1, SUMS + 1)])


@intrinsic
def sparse_row(typingctx, number, terms, panel, result, add, shift):
    """C[c + p] = (0 or C) + sum_k values[k] * V[v + offsets[k] + p] + shift; p: the vectors of CASES[number].

    terms = (values, offsets, first, last); panel = (V, v, how far samples are apart);
    result = (C, c, how far samples are apart, lanes of each sample's last vector that exist). add: whether
    the sum continues C. The panel is readable for whole vectors.
    """

    def codegen(context, builder, signature, args):
        (values, offsets, first, last), (v, v_start, v_apart), (c, c_start, c_apart, valid) = (
            unpacked(context, builder, signature.args[i], args[i]) for i in (1, 2, 3)
        )
        v, c = builder.gep(v, [v_start]), builder.gep(c, [c_start])
        after = builder.append_basic_block("done")
        switch = builder.switch(args[0], after)
        for number, (vectors, samples) in enumerate(CASES):
            case = builder.append_basic_block(f"row{vectors}x{samples}")
            switch.add_case(number, case)
            builder.position_at_end(case)
            row = _Row(builder, c.type.pointee, vectors, samples)
            results, extra = row.places(c, c_apart), row.simd.splat(args[5])
            for place in results:
                row.simd.prefetch(place)
            starts = row.begin(args[4], results, valid)
            sums = row.sums(starts, first, last, values, offsets, v, v_apart)
            row.store([builder.fadd(value, extra) for value in sums], c, c_apart, valid)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.intp, terms, panel, result, types.boolean, shift), codegen


@inlined
def _opened(tables, targets):
    """The first part of the tables: head, shifts, edges, offsets, places; and what follows it."""
    head, rest = cut(tables, HEAD)
    down, rest = cut(rest, head[0])
    right, rest = cut(rest, head[0])
    edges, rest = cut(rest, targets * (head[HEAD - 2] + 1))
    offsets, rest = cut(rest, head[HEAD - 1])
    places, rest = cut(rest, head[HEAD - 1])
    return head, (down, right), edges, offsets, places, rest


@inlined
def _prepared(source, head, shifts, samples, floats, ints):
    """Panels for so many samples with the rows cleared that no copy fills, and the rest of the scratch."""
    planes, plane, channels = np.int64(head[0]), np.int64(head[4]), source.shape[1]
    image = channels * planes * plane
    panel, floats = cut(floats, samples * image + ALIGNED)
    every, ints = cut(ints, channels)
    table, ints = cut(ints, 5 * planes)
    shape, stride = (np.int64(head[1]), np.int64(head[3])), (np.int64(head[5]), np.int64(head[6]))
    multiples(channels, np.int64(1), every)
    shift_table((source.shape[2], source.shape[3]), shifts[0], shifts[1], stride, shape, table)
    for s in range(samples):
        clear_rows(shape, table, panel[s * image :], plane, channels * planes)
    return panel, image, every, table, floats


@inlined
def _copy(source, n, head, every, table, panel):
    """Fill the panel of one sample."""
    size, stride = (source.shape[2], source.shape[3]), (np.int64(head[5]), np.int64(head[6]))
    cols, plane = np.int64(head[3]), np.int64(head[4])
    columns = (np.int64(0), cols, cols)
    copy_planes(source[n].reshape(-1), every, source.shape[1], size, stride, columns, table, panel, plane)


@large_kernel
def convolve(source, weights, bias, tables, floats, ints, target):
    """As `tiled_conv.convolve` where all channels take part, in the direction that the tables are for.

    weights: flat; bias: empty where there is none; floats, ints: scratch of the size that `sparse_scratch`
    says, the floats best aligned to a cache line.
    """
    optimise_for_size()
    targets = target.shape[1]
    while tables.size > 0:
        head, shifts, edges, offsets, places, tables = _opened(tables, targets)
        _convolve_part(source, weights, bias, head, shifts, (edges, offsets, places), floats, ints, target)


@kernel
def _convolve_part(source, weights, bias, head, shifts, lists, floats, ints, target):
    """One part of `convolve`. The results of a grid with gaps are computed side by side and then spread."""
    n_samples, targets, lanes = target.shape[0], target.shape[1], VECTOR_BYTES // source.itemsize
    edges, offsets, places = lists
    rows, cols = np.int64(head[2]), np.int64(head[3])
    pixels, area = rows * cols, target.shape[2] * target.shape[3]
    direct, group = head[9] == 1 and head[10] == 1, together(pixels, source.itemsize)
    group = group if direct else 1
    panel, image, every, table, floats = _prepared(source, head, shifts, group, floats, ints)
    values, part = cut(floats, whole_vectors(places.size, source.itemsize))
    for k in range(places.size):
        values[k] = weights[places[k]]
    out = target.reshape(-1) if direct else part
    vectors = whole_vectors(pixels, source.itemsize) // lanes
    strips = (vectors + SUMS - 1) // SUMS
    each, n = (vectors + strips - 1) // strips, 0
    while n < n_samples:
        count = group if n + group <= n_samples else 1
        for s in range(count):
            _copy(source, n + s, head, every, table, panel[s * image :])
        to = n * targets * area if direct else 0
        for start in range(0, vectors, each):
            wide = min(each, vectors - start)
            valid = min(lanes, pixels - (start + wide - 1) * lanes)
            number = NUMBERS[wide - 1, min(1, count - 1)]
            for block in range(0, edges.size - targets, targets):
                last = block == edges.size - 2 * targets
                for t in range(targets):
                    terms = (
                        values,
                        offsets,
                        np.int64(edges[block + t]),
                        np.int64(edges[block + targets + t]),
                    )
                    result = (out, to + t * pixels + start * lanes, targets * pixels, valid)
                    shift = bias[t] if last and bias.size > 0 else bias.dtype.type(0)
                    sparse_row(number, terms, (panel, start * lanes, image), result, block > 0, shift)
        if not direct:
            _spread(part, head, target[n])
        n += count


@kernel
def _spread(part, head, target):
    """target[c, origin + spread * (p, q)] = part[c, p, q]."""
    rows, cols = np.int64(head[2]), np.int64(head[3])
    for c in range(target.shape[0]):
        for p in range(rows):
            for q in range(cols):
                target[c, head[7] + p * head[9], head[8] + q * head[10]] = part[(c * rows + p) * cols + q]


# --- weight gradient


@shared
def weights_together(itemsize):
    """How many weights' sums are kept in registers at a time."""
    return max(1, SUMS * VECTOR_BYTES // (PARTIAL_SUMS * itemsize))


@intrinsic
def add_sums(typingctx, count, gradient, panel, offsets, result):
    """C[k] += sum_p D[d + p] * V[offsets[k] + p], for a block of weights k from `first` on.

    gradient = (D, d, pixels); panel: V; result = (C, first). A block has `weights_together` weights, of which
    only `count` exist.
    """
    wide = weights_together(result.types[0].dtype.bitwidth // 8)

    def codegen(context, builder, signature, args):
        (dy, start, pixels), (c, first) = (
            unpacked(context, builder, signature.args[i], args[i]) for i in (1, 4)
        )
        v, offsets = (data_of(context, builder, signature.args[i], args[i]) for i in (2, 3))
        vectors, dy = Vectors(builder, v.type.pointee, PARTIAL_SUMS), builder.gep(dy, [start])
        rows = []
        for i in range(wide):
            exists = builder.icmp_signed("<", INDEX(i), args[0])
            number = builder.add(first, builder.select(exists, INDEX(i), INDEX(0)))
            rows.append(builder.gep(v, [entry(builder, offsets, number)]))
        sums = [cgutils.alloca_once_value(builder, vectors.zero) for _ in rows]

        def add(at, mask):
            ours = vectors.load(builder.gep(dy, [at]), mask)
            for place, row in zip(sums, rows, strict=True):
                values = vectors.load(builder.gep(row, [at]), mask)
                builder.store(vectors.fma(ours, values, builder.load(place)), place)

        for place in sums:
            builder.store(vectors.zero, place)
        whole = builder.and_(pixels, INDEX(-PARTIAL_SUMS))
        with cgutils.for_range(builder, builder.udiv(pixels, INDEX(PARTIAL_SUMS)), intp=INDEX) as loop:
            add(builder.mul(loop.index, INDEX(PARTIAL_SUMS)), None)
        with builder.if_then(builder.icmp_signed("<", whole, pixels)):
            add(whole, vectors.lanes_below(builder.sub(pixels, whole)))
        totals = fold(vectors, [builder.load(place) for place in sums])
        narrow, place = Vectors(builder, v.type.pointee, wide), builder.gep(c, [first])
        exists = narrow.lanes_below(args[0])
        ours = vectors.shuffle(totals, totals, range(wide))
        narrow.store(builder.fadd(narrow.load(place, exists), ours), place, exists)
        return context.get_dummy_value()

    return types.void(types.intp, gradient, panel, offsets, result), codegen


@large_kernel
def weight_grad(x, dy, more, tables, floats, ints, dweight, dbias):
    """dweight (flat) at the kept weights, zero at the others, and dbias: `plain.kept_weight_grad`.

    tables: of the forward pass; more: add to what dweight and dbias hold, for further samples of a batch;
    floats, ints: scratch as for the forward pass.
    """
    optimise_for_size()
    if not more:
        clear(dweight)
        clear(dbias)
    head, shifts, edges, offsets, places, _ = _opened(tables, dbias.size)
    panel, _, every, table, sums = _prepared(x, head, shifts, 1, floats, ints)
    pixels = dy.shape[2] * dy.shape[3]
    for k in range(places.size):
        sums[k] = dweight[places[k]]
    for n in range(x.shape[0]):
        gradient = dy[n].reshape(-1)
        _copy(x, n, head, every, table, panel)
        _add_weights(gradient, pixels, panel, edges[: dbias.size], edges[-dbias.size :], offsets, sums)
        for t in range(dbias.size):
            dbias[t] += total(gradient, t * pixels, pixels)
    for k in range(places.size):
        dweight[places[k]] = sums[k]


@kernel
def _add_weights(gradient, pixels, panel, starts, ends, offsets, sums):
    """Add one sample's share to the sum of every kept weight."""
    wide = weights_together(sums.itemsize)
    for t in range(ends.size):
        for k in range(starts[t], ends[t], wide):
            count = min(wide, ends[t] - k)
            add_sums(count, (gradient, t * pixels, pixels), panel, offsets, (sums, np.int64(k)))


# --- what the layers call


def kept_weight_grad(
    x: np.ndarray,
    dy: np.ndarray,
    stride: Pair,
    pad: Pair,
    kept: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
) -> None:
    """Write dweight (K,C,kh,kw), zero where `kept` is False, and dbias (K,), summed over the batch."""
    who = "sparse.kept_weight_grad"
    x, dy = tidy_floats(who, x=x, dy=dy)
    filters, channels = kept.shape[:2]
    size = output_size(x.shape[2:], kept.shape[2:], stride, pad)
    check_shape(who, "x", x, (len(x), channels, *x.shape[2:]))
    check_shape(who, "dy", dy, (len(x), filters, *size))
    check_target(who, "dweight", dweight, x.dtype, kept.shape)
    check_target(who, "dbias", dbias, x.dtype, (filters,))
    if not USE_TILE:
        plain.kept_weight_grad(x, dy, stride, pad, kept, dweight, dbias)
        return
    tables = tables_of(kept, Geometry(x.shape[2:], stride, pad)).forward
    memory = scratch(x.dtype, *sparse_scratch(tables, channels, filters, x.itemsize))
    weight_grad(x, dy, False, tables, *memory, dweight.reshape(-1), dbias)
