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


def plan(section: str, threads: int, peers: list[str], smallest: bool, clock: str) -> Plan:
    """section: `kernels` (on one thread) or `end-to-end`; more threads than one are for rounds only."""
    offers = available(peers, threads)
    kernels = section == "kernels"
    effort = replace(LAYER_EFFORT if kernels else PROGRAM_EFFORT, clock=clock if threads == 1 else "wall")
    return Plan(
        (sizes.smallest_cases() if smallest else sizes.all_cases()) if kernels else [],
        _programs(smallest, threads) if not kernels else [],
        SMOKE if smallest else effort,
        threads,
        (*candidates.INSTALLED, *offers.layers),
        (*endtoend.INSTALLED, *offers.programs),
        (blas, *offers.products),
        (64,) if smallest else SIZES,
    )


def _programs(smallest: bool, threads: int) -> list[Program]:
    programs = sizes.smallest_programs() if smallest else sizes.all_programs()
    return [program for program in programs if threads == 1 or isinstance(program, Round)]
