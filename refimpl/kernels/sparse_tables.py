"""Tables of the kept weights of a convolution, from which `sparse.py` reads what it multiplies.

A pass goes over source channels in blocks, so that the shifted copies that it reads stay in the first-level
cache. The weight gradient, which reads whole planes and not strips of them, has blocks of its own; where only
a few weights of a row would be in one, it takes all channels at once. `tables_of` makes the lists of terms,
once for each mask.

Source: mathematics.md §2.1, §14.1. Derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refimpl.kernels.arrays import INTS, Pair, check_offsets, output_size
from refimpl.kernels.jit import shared
from refimpl.kernels.target import VECTOR_BYTES

SUMS = 8  # independent chains, which hide the latency of a multiply-add
HEAD = 14  # entries at the beginning of a part of the tables
ALIGNED = 16  # entries: planes of a panel start at whole vectors of every machine
FIRST_LEVEL = 32 << 10  # bytes of copies that are read at a time: they stay in the first-level cache
FEW = 8  # terms of a row in a block, on average, for which blocks pay in the weight gradient


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

    kept (target, source, kh, kw): which weights are kept; number: the place of each among all weights;
    plane_of, row_of: the copy of the plane that a tap reads (-1: none) and its first row there; planes: how
    far each copy is moved down and to the right. The part consists of

    * a head and these shifts;
    * where the terms of each block of source channels start in each target's row, and where the last end;
    * the same for the blocks of the weight gradient;
    * the offset of each term in the panel, with zeros behind them, which a last block of weights may read;
    * the weight of each term.
    """
    chosen = kept & (plane_of >= 0)
    target, source, ky, kx = np.nonzero(chosen)
    targets, sources = kept.shape[:2]
    reach, pixels = int(row_of[plane_of >= 0].max(initial=0)), grid[0] * grid[1]
    rows = grid[0] + reach
    plane = -(-rows * grid[1] // ALIGNED) * ALIGNED
    offsets = (source * len(planes) + plane_of[ky, kx]) * plane + row_of[ky, kx] * grid[1]
    check_offsets("conv", copies=sources * len(planes) * plane)
    strip = min(pixels, SUMS * VECTOR_BYTES // 4) * together(pixels, 4) + reach * grid[1]
    block, whole = (FIRST_LEVEL // (4 * max(1, len(planes)) * max(1, size)) for size in (strip, plane))
    if whole * len(target) < FEW * targets * sources:
        whole = sources
    firsts = [_equal(sources, most) for most in (block, whole)]
    row, starts = target * sources + source, np.arange(targets) * sources
    edges = [np.searchsorted(row, starts + first[:, None]).ravel() for first in firsts]
    blocks = [len(first) - 1 for first in firsts]
    top = (len(planes), rows, *grid, plane, *stride, *origin, *spread, *blocks, len(target))
    down, right = zip(*planes, strict=True) if planes else ((), ())
    return np.concatenate([top, down, right, *edges, offsets, np.zeros(ALIGNED), number[chosen]]).astype(INTS)


def _equal(sources: int, most: int) -> np.ndarray:
    """The first channel of each of equal blocks of at most so many, and one past the last."""
    blocks = -(-sources // max(1, most))
    return np.append(np.arange(0, sources, -(-sources // blocks)), sources)


def parts_of(tables: np.ndarray, targets: int) -> Iterator[np.ndarray]:
    """The heads of the parts of a pass."""
    while tables.size:
        planes, *blocks, count = tables[0], tables[HEAD - 3] + 1, tables[HEAD - 2] + 1, tables[HEAD - 1]
        yield tables[:HEAD]
        tables = tables[HEAD + 2 * planes + targets * sum(blocks) + 2 * count + ALIGNED :]


def sparse_scratch(tables: np.ndarray, sources: int, targets: int, itemsize: int) -> tuple[int, int]:
    """(floats, ints) that a pass needs, between so many channels."""
    needs = [(1, 1)]
    for planes, _, rows, cols, plane, _, _, _, _, *spread, _, _, count in map(
        np.ndarray.tolist, parts_of(tables, targets)
    ):
        panel = together(rows * cols, itemsize) * sources * planes * plane + ALIGNED
        part = 0 if spread == [1, 1] else targets * rows * cols
        needs.append((panel + count + ALIGNED + part, max(sources, targets) + 5 * planes))
    return max(need[0] for need in needs), max(need[1] for need in needs)


@shared
def together(pixels, itemsize):
    """How many samples are treated at a time: a power of two, as many as fill the accumulators."""
    vectors, count = max(1, (pixels * itemsize + VECTOR_BYTES - 1) // VECTOR_BYTES), 1
    while 2 * count * vectors <= SUMS:
        count *= 2
    return count
