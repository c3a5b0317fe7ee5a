"""A benchmark session as a stream of events, and the results gathered from it.

Events: ("total", steps), ("machine", facts), (a section, row), ("done", label).
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from refimpl.bench import candidates, endtoend
from refimpl.bench.candidates import Maker, time_case
from refimpl.bench.cases import FIRST_LAYER, GRID, LINEARS, OFF_SHARES, Case, Geometry, grid, linear
from refimpl.bench.endtoend import ProgramMaker, time_program
from refimpl.bench.peaks import SIZES, MatrixProduct, blas, matrix_peaks, tile_peak
from refimpl.bench.process import Event
from refimpl.bench.programs import (
    FULL_ROUND,
    MLP_ROUND,
    Adaptation,
    Inference,
    Model,
    Program,
    Round,
    cnn3_round,
)
from refimpl.bench.timing import SMOKE, Effort
from refimpl.files import environment

Results = dict[str, Any]
SCHEMA = 1
SECTIONS = ("peaks", "kernels", "end_to_end", "interpreter", "memory")


class Plan(NamedTuple):
    """What a session measures, with which candidates, and for how long."""

    cases: list[Case]
    programs: list[Program]
    effort: Effort
    threads: int = 1
    makers: tuple[Maker, ...] = candidates.INSTALLED
    program_makers: tuple[ProgramMaker, ...] = endtoend.INSTALLED
    products: tuple[MatrixProduct, ...] = (blas,)
    peak_sizes: tuple[int, ...] = SIZES


def play(plan: Plan) -> Iterator[Event]:
    """Measure everything in the plan; single layers and peaks only with one thread."""
    dtypes = list(dict.fromkeys(case.dtype for case in plan.cases))
    yield "total", len(dtypes) + len(plan.cases) + len(plan.programs)
    yield "machine", environment.environment(plan.threads) | {"clock": plan.effort.clock}
    for dtype in dtypes:
        peaks = matrix_peaks(plan.products, dtype, plan.effort, plan.peak_sizes)
        for peak in [*peaks, tile_peak(dtype, plan.effort)]:
            yield "peaks", peak._asdict()
        yield "done", f"peak {dtype}"
    for case in plan.cases:
        for row in time_case(case, plan.makers, plan.effort):
            yield "kernels", row
        yield "done", case.label
    for program in plan.programs:
        for row in time_program(program, plan.program_makers, plan.threads, plan.effort):
            yield "end_to_end", row
        yield "done", program.label


def gather(events: Iterable[Event]) -> Results:
    """The results in the form of the JSON file."""
    results: Results = {"schema": SCHEMA, "machine": {}} | {section: [] for section in SECTIONS}
    for kind, value in events:
        if kind == "machine":
            results["machine"] = value
        elif kind in SECTIONS:
            results[kind].append(value)
    return results


def refused(results: Results) -> list[str]:
    """The reasons why candidates were not timed; empty if all results were right."""
    return [row["refused"] for section in SECTIONS for row in results.get(section, ()) if "refused" in row]


# --- how much is measured by the smoke test and by `refimpl bench`

GATED = (0.0, 0.5, 0.75)


def smallest_cases() -> list[Case]:
    """One tiny convolution and one tiny linear layer, dense and half closed."""
    return grid((Geometry(3, 8, 8), linear(12, 8)), (2,), (0.0, 0.5))


def usual_cases() -> list[Case]:
    """The layers of the paper's networks at batch 32."""
    return grid((FIRST_LAYER, *GRID, *LINEARS), (32,), OFF_SHARES)


def gated(off: float) -> Model:
    """The paper's CIFAR network with a share of conv 3's channels off."""
    return Model("cnn3", ("conv3",), off)


def smallest_programs() -> list[Program]:
    """One program of each kind, as small as possible."""
    model = Model("digits", ("conv2",), 0.5)
    return [
        Round(model, nodes=2, steps=2, batch=3, samples=5),
        Adaptation(model, support=4),
        Inference(model, 2),
    ]


def rounds(steps: int) -> list[Program]:
    """Rounds of the CIFAR network: without gates, with gates that learn, with gates that are fixed."""
    learning = [cnn3_round(steps, off) for off in GATED]
    return [cnn3_round(steps, None), *learning, *(cnn3_round(steps, off, ("theta",)) for off in GATED)]


def usual_programs() -> list[Program]:
    """One round of each network, an adaptation, inference of one batch."""
    models = [Model("cnn3"), *(gated(off) for off in GATED)]
    return [
        MLP_ROUND,
        FULL_ROUND,
        *rounds(1),
        *(Adaptation(gated(off)) for off in GATED),
        *(Inference(m, 32) for m in models),
    ]


def installed_plan(smallest: bool, only: str | None, threads: int, clock: str) -> Plan:
    """What `refimpl bench` measures; `only`: "kernels" or "end-to-end". Layers are timed on one thread."""
    cases = smallest_cases() if smallest else usual_cases()
    programs = smallest_programs() if smallest else usual_programs()
    effort = SMOKE if smallest else Effort(rounds=5, seconds=0.4, clock=clock)
    return Plan(
        cases if only != "end-to-end" and threads == 1 else [],
        programs if only != "kernels" else [],
        effort,
        threads,
        peak_sizes=(64,) if smallest else (512, 1024),
    )
