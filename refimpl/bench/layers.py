"""The kernel benchmark: for every case, check all candidates against the oracle, then time the right ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from refimpl.bench.candidates import Candidate, Maker
from refimpl.bench.cases import Case, layer_data
from refimpl.bench.oracle import Reference, WrongResultError, check, reference
from refimpl.bench.timing import Effort, interleave

Row = dict[str, Any]  # one candidate on one case, as in the JSON file


def time_case(case: Case, makers: Iterable[Maker], effort: Effort) -> list[Row]:
    """One row for each candidate that can run this case; a refused one has `refused` instead of times."""
    data = layer_data(case)
    made = [candidate for make in makers if (candidate := make(case, data)) is not None]
    return timed_rows(_facts(case), made, reference(case, data), case.flops, effort)


def timed_rows(
    facts: Row, candidates: Iterable[Candidate], wanted: Reference, executed: float, effort: Effort
) -> list[Row]:
    """`facts` with what was measured of each candidate, or with the reason why it was refused.

    executed: FLOPs of a candidate that skips closed channels; others execute `facts["dense_flops"]`.
    """
    errors: dict[str, float] = {}
    right: dict[str, Candidate] = {}
    refused: list[Row] = []
    for candidate in candidates:
        try:
            arrays = candidate.arrays(candidate.run())
            errors[candidate.name] = check(candidate.name, arrays, candidate.own or wanted)
            right[candidate.name] = candidate
        except WrongResultError as error:
            refused.append(facts | {"candidate": candidate.name, "refused": str(error)})
    rows = []
    for name, timing in interleave({name: one.run for name, one in right.items()}, effort).items():
        flops = executed if right[name].skips else facts["dense_flops"]
        rates = {"noise": timing.noise, "executed_flops": flops, "gflops": 1e-9 * flops / timing.seconds}
        rows.append(facts | {"candidate": name, "error": errors[name]} | timing._asdict() | rates)
    return rows + refused


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
