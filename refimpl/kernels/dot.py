"""The other micro-kernel: a small block of inner products, for the fully connected layer's forward pass.

    Y[y_at[s] + o]  =  bias[o]  +  sum_i X[x_at[s] + i] * W[w_at[o] + i]

Both operands are read in place as vectors along i, so nothing is packed or transposed, however few the
samples. The sum is kept as 16 interleaved partial sums (partial sum j takes i = j, j + 16, ...), which are
added pairwise in the end. Their number is part of the definition, not the vector width of the machine.

Measured on the MNIST layer (784 -> 100, 20 samples) against a single chain on `tile` with the input
transposed: about half the time, because 20 samples fill only 62 % of two vectors of 16.

Source: mathematics.md §2.2 (the linear layer). The order of the sum is derived.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils

from refimpl.kernels.jit import intrinsic, kernel, shared
from refimpl.kernels.simd import INDEX, Vectors, emitting, entry, rows_from
from refimpl.kernels.sums import PARTIAL_SUMS
from refimpl.kernels.target import TARGET

CACHED = 24576  # bytes of samples at a time: what a first-level cache holds beside rows of the weight


@shared
def dot_size(itemsize):
    """(outputs, samples) of a block: its sums fill half of the registers or more, the operands use the rest.

    (Measured with 16 registers of 8 floats and 20 samples: 3 x 2 takes 0.7 of the time of 2 x 2.)
    """
    sums = TARGET.registers * TARGET.vector_bytes // (2 * PARTIAL_SUMS * itemsize)
    if sums >= 16:
        return 4, 4
    return (3, 2) if sums >= 4 else (max(1, sums), 1)


def fold(vectors: Vectors, sums: list[Any]) -> Any:
    """One vector whose lane r is the pairwise sum of the 16 partial sums in sums[r].

    Two vectors are folded into one at each step, which costs half of folding each; `owners` follows
    which result each lane belongs to.
    """
    pool, owners, distance = list(sums), [[r] * PARTIAL_SUMS for r in range(len(sums))], PARTIAL_SUMS // 2
    while distance:
        folded, kept = [], []
        for i in range(0, len(pool), 2):
            j = min(i + 1, len(pool) - 1)
            # Lanes that stay are blended; the others move by the distance. (a + b is b + a, bit for bit.)
            stays = [l if l & distance == 0 else PARTIAL_SUMS + l for l in range(PARTIAL_SUMS)]
            moves = [
                l + distance if l & distance == 0 else PARTIAL_SUMS + l - distance
                for l in range(PARTIAL_SUMS)
            ]
            a, b = (vectors.shuffle(pool[i], pool[j], lanes) for lanes in (stays, moves))
            folded.append(vectors.builder.fadd(a, b))
            both = owners[i] + owners[j]
            kept.append([both[l] for l in stays])
        pool, owners, distance = folded, kept, distance // 2
    lanes = [owners[0].index(r) if r < len(sums) else 0 for r in range(PARTIAL_SUMS)]
    return vectors.shuffle(pool[0], pool[0], lanes)


@intrinsic
def dot_block(typingctx, first, outputs, matrix, rows, blocks, bias, result):
    """Compute one block of `dot_size` outputs and samples from `first` = (output, sample) on.

    Only `outputs` outputs exist; matrix = (W, w_at), rows = (X, x_at), result = (Y, y_at),
    blocks = (offsets of the runs of 16 terms, which of the 16 are summed as bits, number of runs): terms
    left out are not read.
    The tables w_at, x_at, y_at are readable for a whole block; entries beyond the end repeat the last.
    """
    element = result.types[0].dtype
    high, wide = dot_size(element.bitwidth // 8)

    def emit(builder, first, outputs, matrix, rows, blocks, bias, result):
        (output, sample), (block_at, block_lanes, n_blocks) = first, blocks
        (w, w_at), (x, x_at), (y, y_at) = matrix, rows, result
        vectors = Vectors(builder, y.type.pointee, PARTIAL_SUMS)

        w_rows = rows_from(builder, w, w_at, output, high)
        x_rows = rows_from(builder, x, x_at, sample, wide)
        sums = [cgutils.alloca_once_value(builder, vectors.zero) for _ in range(high * wide)]

        def add_terms(at, mask):
            ours = [vectors.load(builder.gep(p, [at]), mask) for p in x_rows]
            for o, pointer in enumerate(w_rows):
                weight = vectors.load(builder.gep(pointer, [at]), mask)
                for s, values in enumerate(ours):
                    place = sums[s * high + o]
                    builder.store(vectors.fma(values, weight, builder.load(place)), place)

        # Runs are almost always whole: then nothing need be masked.
        with cgutils.for_range(builder, n_blocks, intp=INDEX) as loop:
            at, bits = entry(builder, block_at, loop.index), entry(builder, block_lanes, loop.index)
            whole = builder.icmp_signed("==", bits, INDEX(2**PARTIAL_SUMS - 1))
            with builder.if_else(whole) as (then, otherwise):
                with then:
                    add_terms(at, None)
                with otherwise:
                    add_terms(at, vectors.lanes_of(bits))

        total = fold(vectors, [builder.load(place) for place in sums])
        narrow = Vectors(builder, y.type.pointee, high)
        exists = narrow.lanes_below(builder.sub(outputs, output))
        extra = narrow.load(builder.gep(bias, [output]), exists)
        for s, base in enumerate(rows_from(builder, y, y_at, sample, wide)):
            part = vectors.shuffle(total, total, range(s * high, (s + 1) * high))
            narrow.store(builder.fadd(part, extra), builder.gep(base, [output]), exists)

    return types.void(first, types.intp, matrix, rows, blocks, bias, result), emitting(emit)


@kernel
def dot_sweep(outputs, samples, matrix, rows, blocks, bias, result):
    """All outputs of all samples: as many samples at a time as a first-level cache holds, block by block.

    (Measured with 1,875 samples, 784 features and 100 outputs: less than half of the time of all at a time.)
    """
    high, wide = dot_size(bias.itemsize)
    terms = max(1, PARTIAL_SUMS * blocks[2])
    part = max(1, CACHED // (terms * bias.itemsize * wide)) * wide
    for first in range(0, samples, part):
        for output in range(0, outputs, high):
            for sample in range(first, min(first + part, samples), wide):
                dot_block((output, sample), outputs, matrix, rows, blocks, bias, result)
