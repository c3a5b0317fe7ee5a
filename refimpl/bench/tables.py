"""Results as tables of text: header and rows, for the terminal and for Markdown alike."""

from collections.abc import Iterable, Sequence
from typing import Any

from refimpl.bench.candidates import OURS, Row
from refimpl.bench.session import Results

Table = tuple[list[str], list[list[str]]]


def pivot(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Timed rows by their `keys`, then by candidate."""
    out: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if "seconds" in row:
            out.setdefault(tuple(row[key] for key in keys), {})[row["candidate"]] = row
    return out


CASE = ("layer", "pass", "batch", "dtype", "off")
PROGRAM = ("program", "threads")


def duration(seconds: float) -> str:
    """Three digits, in s, ms or us."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.2g} us"


def amount(number: float) -> str:
    """A number with four digits and, where it is large, k for thousands, M for millions or G for billions."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.4g}{name}"
    return f"{number:.4g}"


def layer_table(results: Results) -> Table:
    """A line per case: our time and rate, our time as a share of the dense one, and others' times."""
    cases = pivot(results["kernels"], CASE)
    others = other_names(cases.values())
    header = ["layer", "pass", "batch", "off", "MFLOP", OURS, "GFLOP/s", "of dense", *others]
    lines = []
    for (layer, pass_, batch, dtype, off), found in cases.items():
        if OURS not in found:
            continue
        mine = found[OURS]
        dense = cases.get((layer, pass_, batch, dtype, 0.0), {}).get(OURS)
        wide = "" if dtype == "float32" else f" {dtype}"
        lines.append(
            [
                layer + wide, pass_, str(batch), f"{off:.0%}", f"{mine['executed_flops'] / 1e6:.3g}",
                duration(mine["seconds"]), f"{mine['gflops']:.3g}",
                f"{mine['seconds'] / dense['seconds']:.2f}" if dense else "-",
                *(ratio(found.get(name), mine) for name in others),
            ]
        )  # fmt: skip
    return header, lines


def own_table(rows: Iterable[Row], peak: float) -> Table:
    """A line per pass, batch and share of one layer or network, in this order, with the FLOPs of one sample.

    `of peak`: our rate relative to `peak` GFLOP/s; `of dense`: our time relative to that with nothing closed.
    """
    cases = pivot(rows, CASE)
    passes = list(dict.fromkeys(key[1] for key in cases))
    cases = dict(sorted(cases.items(), key=lambda one: (passes.index(one[0][1]), one[0])))
    others = other_names(cases.values())
    header = ["pass", "batch", "off", "dense", "executed", "time", "GFLOP/s", "of peak", "of dense", *others]
    lines = []
    for (layer, pass_, batch, dtype, off), found in cases.items():
        mine, whole = found.get(OURS), cases.get((layer, pass_, batch, dtype, 0.0), {}).get(OURS)
        if mine is None or whole is None:
            continue
        flops = [amount(mine[name] / batch) for name in ("dense_flops", "executed_flops")]
        rate = [f"{mine['gflops']:.3g}", f"{mine['gflops'] / peak:.0%}"]
        rest = (ratio(found.get(name), mine) for name in others)
        spent = f"{mine['seconds'] / whole['seconds']:.2f}"
        lines.append(
            [pass_, str(batch), f"{off:.0%}", *flops, duration(mine["seconds"]), *rate, spent, *rest]
        )
    return header, lines


def program_table(results: Results) -> Table:
    """A line per program: executed FLOPs, our time and rate, and others' time relative to ours."""
    programs = {key: row for key, row in pivot(results["end_to_end"], PROGRAM).items() if OURS in row}
    others = other_names(programs.values())
    header = ["program", "threads", "MFLOP", "dense", OURS, "GFLOP/s", *others]
    lines = []
    for (program, threads), found in programs.items():
        mine = found[OURS]
        flops = [f"{mine[name] / 1e6:.3g}" for name in ("executed_flops", "dense_flops")]
        times = [duration(mine["seconds"]), f"{mine['gflops']:.3g}"]
        rest = (ratio(found.get(name), mine) for name in others)
        lines.append([program, str(threads), *flops, *times, *rest])
    return header, lines


def peak_table(results: Results) -> Table:
    """The peak speeds of the machine."""
    header = ["peak of one core", "type", "size", "GFLOP/s"]
    return header, [
        [peak["name"], peak["dtype"], str(peak["size"]), f"{peak['gflops']:.3g}"] for peak in results["peaks"]
    ]


def other_names(groups: Iterable[dict[str, Row]]) -> list[str]:
    """All candidates but ours, in order of appearance."""
    names = dict.fromkeys(name for group in groups for name in group)
    return [name for name in names if name != OURS]


def ratio(other: Row | None, mine: Row) -> str:
    """How many times our time the other takes."""
    return f"{other['seconds'] / mine['seconds']:.2f}x" if other else "-"


def largest_noise(results: Results) -> float:
    """The largest distance between quartiles relative to a median: how far the times can be trusted."""
    rows = [*results["peaks"], *results["kernels"], *results["end_to_end"]]
    return max((row["noise"] for row in rows if "noise" in row), default=0.0)
