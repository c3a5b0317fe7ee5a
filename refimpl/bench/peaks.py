"""The peak speed of this machine: the best dense matrix product, and the micro-kernel in registers.

Each is checked before it is timed. The figures are for one core, to which `process` confines the process.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from refimpl.bench.candidates import Candidate
from refimpl.bench.oracle import Reference, check, rounding
from refimpl.bench.timing import Effort, interleave
from refimpl.kernels.target import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES
from refimpl.kernels.tile import TERMS, sweep

SIZES = (256, 512, 1024, 1536)

MatrixProduct = Callable[[np.ndarray, np.ndarray], Candidate]  # result {"c": a @ b}


class Peak(NamedTuple):
    """GFLOP/s of one candidate at its best size, with the quartiles' distance relative to the median."""

    name: str
    dtype: str
    size: int
    gflops: float
    noise: float


def blas(a: np.ndarray, b: np.ndarray) -> Candidate:
    """NumPy's matrix product."""
    c = np.empty((a.shape[0], b.shape[1]), dtype=a.dtype)
    return Candidate("numpy matmul", lambda: np.matmul(a, b, out=c), lambda c: {"c": c})


def matrix_peaks(
    products: Iterable[MatrixProduct], dtype: str, effort: Effort, sizes: Iterable[int] = SIZES
) -> list[Peak]:
    """The best of square products of several sizes, for each candidate."""
    rng, found = np.random.default_rng(0), []
    for size in sizes:
        a, b = (rng.standard_normal((size, size)).astype(dtype) for _ in range(2))
        wanted = Reference({"c": a.astype(np.float64) @ b.astype(np.float64)}, rounding(dtype, size))
        candidates = [make(a, b) for make in products]
        for candidate in candidates:
            check(candidate.name, candidate.arrays(candidate.run()), wanted)
        timings = interleave({candidate.name: candidate.run for candidate in candidates}, effort)
        found += [
            Peak(name, dtype, size, 2e-9 * size**3 / timing.seconds, timing.noise)
            for name, timing in timings.items()
        ]
    names = dict.fromkeys(peak.name for peak in found)
    return [max((p for p in found if p.name == name), key=lambda p: p.gflops) for name in names]


DISTINCT, BLOCKS = 32, 128


def tile_peak(dtype: str, effort: Effort) -> Peak:
    """The micro-kernel on operands in the first-level cache: its accumulators never leave registers.

    There are `BLOCKS` tiles of `TERMS` terms each; the terms repeat `DISTINCT` vectors, so that only the
    arithmetic and its loads are measured.
    """
    width, rows = TILE_VECTORS * VECTOR_BYTES // np.dtype(dtype).itemsize, TILE_ROWS * BLOCKS
    rng = np.random.default_rng(0)
    scalars = rng.standard_normal((TILE_ROWS, DISTINCT)).astype(dtype)
    panel = rng.standard_normal((DISTINCT, width)).astype(dtype)
    result = np.empty((TILE_ROWS, width), dtype=dtype)
    turn = np.arange(TERMS, dtype=np.int32) % DISTINCT
    row = np.append(np.arange(rows), rows - 1).astype(np.int32) % TILE_ROWS
    c, off = result.ravel(), np.bool_(False)

    def run() -> None:
        sweep(
            rows, TERMS, width, (scalars.ravel(), row * np.int32(DISTINCT), turn), panel.ravel(),
            turn * np.int32(width), c, row * np.int32(width), (row, np.int64(0)), off, off, c,
        )  # fmt: skip

    run()
    wanted = TERMS // DISTINCT * (scalars.astype(np.float64) @ panel.astype(np.float64))
    check("tile on registers", {"c": result}, Reference({"c": wanted}, rounding(dtype, TERMS)))
    timing = interleave({"tile": run}, effort)["tile"]
    return Peak("tile on registers", dtype, TERMS, 2e-9 * rows * TERMS * width / timing.seconds, timing.noise)
