"""The kernel benchmark: for every case, check all candidates against the oracle, then time the right ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from refimpl.bench.candidates import Candidate, Maker
from refimpl.bench.cases import Case, layer_data
from refimpl.bench.oracle import Reference, WrongResultError, check, reference
from refimpl.bench.timing import Effort, Timing, interleave

Row = dict[str, Any]  # one candidate on one case, as in the JSON file


def measure(
    candidates: Iterable[Candidate], wanted: Reference, effort: Effort
) -> tuple[dict[str, Timing], dict[str, float], dict[str, str]]:
    """Timings and errors of the candidates whose result is right, and why the others were refused."""
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for candidate in candidates:
        try:
            arrays = candidate.arrays(candidate.run())
            errors[candidate.name] = check(candidate.name, arrays, candidate.own or wanted)
            runs[candidate.name] = candidate.run
        except WrongResultError as error:
            refused[candidate.name] = str(error)
    return interleave(runs, effort), errors, refused


def time_case(case: Case, makers: Iterable[Maker], effort: Effort) -> list[Row]:
    """One row for each candidate that can run this case; a refused one has `refused` instead of times."""
    data = layer_data(case)
    made = [candidate for make in makers if (candidate := make(case, data)) is not None]
    return timed_rows(_facts(case), made, reference(case, data), case.flops, effort)


def timed_rows(
    facts: Row, candidates: Sequence[Candidate], wanted: Reference, executed: float, effort: Effort
) -> list[Row]:
    """`facts` with what was measured of each candidate, or with the reason why it was refused.

    executed: FLOPs of a candidate that skips closed channels; others execute `facts["dense_flops"]`.
    """
    timings, errors, refused = measure(candidates, wanted, effort)
    skips = {candidate.name: candidate.skips for candidate in candidates}
    rows = [
        facts
        | {"candidate": name, "error": errors[name]}
        | _timed_columns(timing, executed if skips[name] else facts["dense_flops"])
        for name, timing in timings.items()
    ]
    return rows + [facts | {"candidate": name, "refused": why} for name, why in refused.items()]


def _timed_columns(timing: Timing, flops: float) -> Row:
    """A timing as columns, with the rate at which `flops` were executed."""
    return timing._asdict() | {
        "noise": timing.noise,
        "executed_flops": flops,
        "gflops": 1e-9 * flops / timing.seconds,
    }


def _facts(case: Case) -> Row:
    return {
        "layer": case.geometry.label,
        "channels": case.geometry.channels,
        "pass": case.pass_,
        "batch": case.batch,
        "off": case.off,
        "dtype": case.dtype,
        "dense_flops": case.dense_flops,
    }
