"""The programs run by this package, the float64 reference for them, and their timing beside candidates.

Source: mathematics.md §3, §4 (round), §6 (adaptation).
"""

from collections.abc import Callable, Iterable

import numpy as np

from refimpl.bench.candidates import OURS, Candidate, Row, timed_rows
from refimpl.bench.oracle import Arrays, Reference, length
from refimpl.bench.programs import SEED, Adaptation, Program, Round
from refimpl.bench.timing import Effort
from refimpl.contracts import State
from refimpl.federated.adapt import AdaptSettings, adapt
from refimpl.federated.local import LocalSettings
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.rounds import Participation, RoundRecord, run_rounds
from refimpl.nn.context import Gating
from refimpl.nn.predict import Predictor
from refimpl.nn.task import NetworkTask
from refimpl.nn.work import dense_work
from refimpl.optim.accel import GhadimiLan
from refimpl.rng import SeedTree

# Float32 against float64 over a whole program, in the norm of what changed: rounding of a layer
# (oracle.rounding, about 1e-5) and the rare sample whose ReLU or pooling decides otherwise. That changes few
# entries, but by much: the largest error would show which decisions were close, not which program is wrong.
# A step that is 1 % too long is wrong by 0.01, a wrong sign by 1 or more.
TOLERANCE = 2e-3

ProgramMaker = Callable[[Program, int], Candidate | None]  # program, threads


def ours(program: Program, threads: int = 1, dtype: str = "float32", readable: bool = False) -> Candidate:
    """This package; `readable` runs a round layer by layer instead of in compiled code."""
    if isinstance(program, Round):
        return _round(program, threads, dtype, readable)
    network, w = program.model.network, program.model.parameters(dtype)
    if isinstance(program, Adaptation):
        x, y = program.model.samples(program.support, dtype)
        settings = AdaptSettings(program.eta, program.eta, threads=threads)
        return Candidate(
            OURS, lambda: adapt(network, w, x, y, settings), lambda found: {"moved": found.w - w}, skips=True
        )
    x, _ = program.model.samples(program.batch, dtype)
    predictor = Predictor(network, w, threads=threads)
    return Candidate(OURS, lambda: predictor(x), lambda found: {"logits": found.logits}, skips=True)


def _round(program: Round, threads: int, dtype: str, readable: bool) -> Candidate:
    local = LocalSettings(program.lam, program.eta, program.steps)
    method = MetaGater(local, GhadimiLan(program.beta), program.penalty)
    network, w = program.model.network, program.model.parameters(dtype)
    how, each = (Gating(), program.train, program.batch, not readable), threads // program.nodes
    xs, ys = program.data(dtype)
    first = NetworkTask(network, xs[0], ys[0], *how, threads=each)
    tasks = [first.on(x, y) for x, y in zip(xs, ys, strict=True)]
    start = method.start(w)

    def run() -> tuple[State, RoundRecord]:
        return next(run_rounds(method, tasks, start, range(1, 2), Participation(), SeedTree(SEED), threads))

    def arrays(result: tuple[State, RoundRecord]) -> Arrays:
        state, record = result
        return round_arrays(record.loss, w, state["x"], state["ag"])

    return Candidate(OURS, run, arrays, skips=True)


def round_arrays(loss: float, w: np.ndarray, x: np.ndarray, ag: np.ndarray) -> Arrays:
    """A round's result for comparison: mean first loss, and how far x and xag moved from w."""
    return {"loss": np.array([loss]), "x": x - w, "ag": ag - w}


def program_reference(program: Program) -> Reference:
    """The result in float64, layer by layer."""
    candidate = ours(program, 1, "float64", readable=True)
    return Reference(candidate.arrays(candidate.run()), TOLERANCE, length)


def executed_flops(program: Program) -> float:
    """FLOPs that this package executes; gates are constant, so one run is enough to know them."""
    result = ours(program).run()
    if isinstance(program, Round):
        return float(result[1].flops)
    if isinstance(program, Adaptation):
        return float(result.flops_gate + result.flops_backbone)
    return float(result.flops)


def dense_flops(program: Program) -> float:
    """FLOPs of the same program on the network without gates, whose adaptation has one stage only."""
    network = program.model.network
    if isinstance(program, Round):
        work, times = dense_work(network, program.batch, ("theta",)), program.nodes * program.steps
    elif isinstance(program, Adaptation):
        work, times = dense_work(network, program.support, ("theta",)), 1
    else:
        work, times = dense_work(network, program.batch), 1
    return float(work.total * times)


def time_program(program: Program, makers: Iterable[ProgramMaker], threads: int, effort: Effort) -> list[Row]:
    """One row for each candidate that can run this program; a refused one has `refused` instead of times."""
    made = [candidate for make in makers if (candidate := make(program, threads)) is not None]
    facts: Row = {
        "program": program.label,
        "kind": type(program).__name__.lower(),
        "model": program.model.label,
        "off": program.model.off if program.model.gates else None,
        "threads": threads,
        "dense_flops": dense_flops(program),
    }
    return timed_rows(facts, made, program_reference(program), executed_flops(program), effort)


INSTALLED: tuple[ProgramMaker, ...] = (ours,)
