"""Depths of one network against time and budgets on this machine: `python -m bench.depth_speed`.

For every depth of a residual network on 32x32 images: milliseconds of single calls with 1 and 32 samples, in
float32 and on one core, where the depths take turns. Two things are judged. *Proportion*: milliseconds per
FLOP relative to those of the full depth, which should lie within 15 % of 1. *Budget*: where a budget is what
95 % of new calls are expected to keep, the share of new calls that do, which should be 95 %. Weights are
random, as they have no effect on time. `--out FILE` keeps the numbers as JSON, `--table FILE...` prints such
files as Markdown, kinds of processor side by side. `--clock cpu` measures the time of the processor, for a
machine that is shared; the results say so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench.kept import parser_of, show

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MODELS, WIDTHS = ("resnet20", "resnet32"), [16, 32, 64]
SIZES, CALLS = (1, 32), 200
TOLERANCE, KEPT = 0.15, 0.95
COLUMNS = ("ms", "95 % within", "ms per FLOP", "budget kept")
Row = dict[str, Any]


def rows(model: str, clock: str, calls: int, sizes: Sequence[int] = SIZES) -> list[Row]:
    """All depths of a model, for each size of a call."""
    import numpy as np

    from refimpl.cooperative.measure import call_times, summary
    from refimpl.nn import zoo
    from refimpl.nn.norms import frozen
    from refimpl.nn.predict import Predictor
    from refimpl.nn.work import dense_work
    from refimpl.rng import SeedTree

    network = zoo.network(model, (), widths=WIDTHS)
    depths = range(1, network.depth + 1)
    networks = [frozen(network.at_depth(depth)) for depth in depths]
    predictors = [Predictor(one, one.layout.initialise(SeedTree(0))) for one in networks]
    flops = [dense_work(one, 1).total for one in networks]
    x = np.random.default_rng(0).random((64, 3, 32, 32), dtype="float32")
    found = []
    for size in sizes:
        known, new = (call_times(predictors, x, size, calls, CLOCKS[clock]) for _ in range(2))
        latencies = [summary(size, own) for own in known]
        full = latencies[-1].median / flops[-1]
        for depth, work, latency, times in zip(depths, flops, latencies, new, strict=True):
            _, median, budget = latency
            numbers = {"mflops": work / 1e6, "ms": median, "budget": budget}
            numbers |= {"proportion": median / work / full, "kept": float((times <= budget).mean())}
            found.append({"model": model, "depth": depth, "batch": size, **numbers})
    return found


def table(files: list[dict[str, Any]]) -> str:
    """Kept rows as Markdown, the kinds of processor side by side, with what is not met in words."""
    from refimpl.files.tables import markdown

    head = ["model", "depth", "batch", "MFLOPs"]
    head += [f"{one['kind']}: {what}" for one in files for what in COLUMNS]
    lines = []
    for kinds in zip(*(one["rows"] for one in files), strict=True):
        first = kinds[0]
        case = [first["model"], str(first["depth"]), str(first["batch"]), f"{first['mflops']:.3g}"]
        lines.append([*case, *(cell for row in kinds for cell in cells(row))])
    return "\n\n".join([f"{files[0]['machine']}.", markdown(head, lines), *map(judged, files)])


def cells(row: Row) -> list[str]:
    """The row under COLUMNS."""
    times = [f"{row[what]:.3g}" for what in ("ms", "budget")]
    return [*times, f"{row['proportion']:.2f}", f"{100 * row['kept']:.1f} %"]


def judged(results: dict[str, Any]) -> str:
    """Whether proportions and budgets are met, in words."""
    rows = results["rows"]
    off = [row for row in rows if abs(row["proportion"] - 1) > TOLERANCE]
    kept = [row["kept"] for row in rows]
    worst = "".join(
        f"; depth {row['depth']} of {row['model']} with {row['batch']} samples has {row['proportion']:.2f}"
        for row in off
    )
    near, sound = len(rows) - len(off), sum(share >= KEPT for share in kept)
    return (
        f"{results['kind']}: milliseconds per FLOP, relative to the full depth, are within "
        f"{100 * TOLERANCE:.0f} % of 1 in {near} of {len(rows)} rows{worst}. The time that 95 % of new calls "
        f"should keep was kept by {100 * sum(kept) / len(kept):.1f} % of them, and by at least "
        f"{100 * KEPT:.0f} % in {sound} rows."
    )


def main() -> None:
    parser = parser_of("bench.depth_speed", __doc__)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--calls", type=int, default=CALLS)
    options = parser.parse_args()
    calls = 3 if options.smoke else options.calls

    def measured() -> list[Row]:
        return [row for model in options.models for row in rows(model, options.clock, calls)]

    times = {"wall": "wall time", "cpu": "processor time, shared with other work"}
    show(options, table, measured, f"{times[options.clock]}, {calls} calls a row")


if __name__ == "__main__":
    main()
