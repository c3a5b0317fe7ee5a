"""Vector width and register count of the machine Numba compiles for, and the tile sizes that follow.

The compiler itself tells: it compiles a sixteen-lane fused multiply-add for Numba's target (which
`NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` may override), and the assembly text shows which registers it
uses. Numba's cache distinguishes targets by the same name and features, so the constants below
never disagree with cached machine code.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from numba.core.registry import cpu_target

PROBE = """
define void @probe(ptr %a) {
  %x = load <16 x float>, ptr %a
  %y = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %x, <16 x float> %x)
  store <16 x float> %y, ptr %a
  ret void
}
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
"""


class Target(NamedTuple):
    """What the tile needs to know of a processor."""

    vector_bytes: int
    registers: int


def _machine() -> Any:
    return cpu_target.target_context.codegen()._tm


@lru_cache(maxsize=1)
def detect() -> Target:
    """The target of Numba's compiler: AVX-512, AVX or AVX2, or any machine with 16-byte vectors."""
    assembly = _machine().emit_assembly(llvm.parse_assembly(PROBE))
    if "zmm" in assembly:
        return Target(vector_bytes=64, registers=32)
    if "ymm" in assembly:
        return Target(vector_bytes=32, registers=16)
    arm = str(_machine().triple).startswith(("aarch64", "arm64"))
    return Target(vector_bytes=16, registers=32 if arm else 16)


def tile_rows(registers: int, vectors: int) -> int:
    """The rows of a tile of so many vectors whose accumulators, vectors and one broadcast fit into registers.

    The number is even, and at most 6: a higher tile loads more scalars for each vector.
    """
    return min(6, (registers - 1 - vectors) // vectors // 2 * 2)


def tile_size(registers: int) -> tuple[int, int]:
    """(rows, vectors) of the widest tile: 6 x 4 of 32 registers, 4 x 3 of 16.

    With M rows and V vectors a step does M*V multiply-adds for M + V loads, so M*V should be large and
    M, V balanced; and M*V >= 8 independent chains hide a latency of four cycles on two units. (Measured with
    16 registers: 4 x 3 does 1.1 times as much a second as 6 x 2, because it loads and decodes less.)
    """
    vectors = 4 if registers >= 32 else 3
    return tile_rows(registers, vectors), vectors


def tile_sizes(registers: int) -> tuple[tuple[int, int], ...]:
    """Every (rows, vectors) that is compiled: few, because each costs compilation time.

    An odd number of rows left over is rounded up by computing one row twice.
    """
    widths = (tile_size(registers)[1], 2, 1)
    return tuple((m, v) for v in widths for m in range(tile_rows(registers, v), 0, -2))


TARGET = detect()
VECTOR_BYTES = TARGET.vector_bytes
TILE_ROWS, TILE_VECTORS = tile_size(TARGET.registers)
TILE_SIZES = tile_sizes(TARGET.registers)
ROWS_OF = tuple(max((m for m, v in TILE_SIZES if v == vectors), default=0) for vectors in range(5))
