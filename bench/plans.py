"""What is measured beside the peers: the whole grid, or the smoke test."""

from __future__ import annotations

from dataclasses import replace

from bench.peers import available
from refimpl.bench import candidates, endtoend, sizes
from refimpl.bench.peaks import SIZES, blas
from refimpl.bench.programs import Program, Round
from refimpl.bench.session import Plan
from refimpl.bench.timing import SMOKE, Effort

LAYER_EFFORT = Effort(rounds=11, seconds=1.0)
PROGRAM_EFFORT = Effort(rounds=7, seconds=3.0)

CASES = {"smallest": sizes.smallest_cases, "usual": sizes.usual_cases, "all": sizes.all_cases}
PROGRAMS = {"smallest": sizes.smallest_programs, "usual": sizes.usual_programs, "all": sizes.all_programs}


def plan(section: str, threads: int, peers: list[str], size: str, clock: str) -> Plan:
    """section: `kernels` (on one thread) or `end-to-end`; more threads than one are for rounds only.

    size: `smallest`, `usual` (batch 32, one-step rounds) or `all`.
    """
    offers = available(peers, threads)
    kernels = section == "kernels"
    effort = replace(LAYER_EFFORT if kernels else PROGRAM_EFFORT, clock=clock if threads == 1 else "wall")
    return Plan(
        CASES[size]() if kernels else [],
        _programs(size, threads) if not kernels else [],
        SMOKE if size == "smallest" else effort,
        threads,
        (*candidates.INSTALLED, *offers.layers),
        (*endtoend.INSTALLED, *offers.programs),
        (blas, *offers.products),
        (64,) if size == "smallest" else SIZES,
    )


def _programs(size: str, threads: int) -> list[Program]:
    return [p for p in PROGRAMS[size]() if threads == 1 or isinstance(p, Round)]
