"""What is measured beside the peers: the whole grid, or the smoke test."""

from __future__ import annotations

from dataclasses import replace

from bench.peers import available
from refimpl.bench import candidates, endtoend, session
from refimpl.bench.cases import FIRST_LAYER, GRID, LINEARS, OFF_SHARES, Case, grid
from refimpl.bench.peaks import SIZES, blas
from refimpl.bench.programs import FULL_ROUND, MLP_ROUND, Adaptation, Inference, Model, Program, Round
from refimpl.bench.session import Plan
from refimpl.bench.timing import SMOKE, Effort

LAYER_EFFORT = Effort(rounds=11, seconds=1.0)
PROGRAM_EFFORT = Effort(rounds=7, seconds=3.0)

BATCHES = (1, 32, 256)
CONVS = ("conv1", "conv2", "conv3")


def all_cases() -> list[Case]:
    """Every batch size in float32, and dense float64."""
    layers = (FIRST_LAYER, *GRID, *LINEARS)
    return grid(layers, BATCHES, OFF_SHARES) + grid(GRID, BATCHES, (0.0,), "float64")


def all_programs() -> list[Program]:
    """Rounds of one and five steps, adaptations, inference at every batch size."""
    gated = [session.gated(off) for off in session.GATED]
    models = [Model("cnn3"), *gated, Model("cnn3", CONVS, 0.75)]
    inferences = [Inference(model, batch) for model in models for batch in BATCHES]
    rounds = [MLP_ROUND, FULL_ROUND, *session.rounds(1), *session.rounds(5)]
    return [*rounds, *map(Adaptation, gated), *inferences]


CASES = {"smallest": session.smallest_cases, "usual": session.usual_cases, "all": all_cases}
PROGRAMS = {"smallest": session.smallest_programs, "usual": session.usual_programs, "all": all_programs}


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
