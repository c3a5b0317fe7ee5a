"""A benchmark session as a stream of events, and the results gathered from it.

Events: ("total", steps), ("machine", facts), (a section, row), ("done", label).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from refimpl.bench import candidates, endtoend
from refimpl.bench.candidates import Maker
from refimpl.bench.cases import Case
from refimpl.bench.endtoend import ProgramMaker, time_program
from refimpl.bench.layers import time_case
from refimpl.bench.peaks import SIZES, MatrixProduct, blas, matrix_peaks, tile_peak
from refimpl.bench.process import Event
from refimpl.bench.programs import Program
from refimpl.bench.timing import Effort
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
