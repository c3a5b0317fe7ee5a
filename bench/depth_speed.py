"""Depths of one network against time and budgets on this machine: `python -m bench.depth_speed`.

For every depth of a residual network on 32x32 images: milliseconds of single calls with 1 and 32 samples, in
float32 and on one core, where the depths take turns. Two things are judged. *Proportion*: milliseconds per
FLOP relative to those of the full depth, which should lie within 15 % of 1. *Budget*: where a budget is what
95 % of the calls needed, the share of new calls that keep it, which should be 95 %. Weights are random, as
they have no effect on time. `--out FILE` keeps the numbers as JSON, `--table FILE` prints such a file as
Markdown. `--clock cpu` measures the time of the processor, for a machine that is shared; the results say so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refimpl.bench.process import pin
from refimpl.files.tables import markdown

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MODELS, WIDTHS = ("resnet20", "resnet32"), [16, 32, 64]
SIZES, CALLS = (1, 32), 200
TOLERANCE = 0.15
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


def table(results: dict[str, Any]) -> str:
    """The rows as Markdown, with what is not met in words."""
    header = ["model", "depth", "batch", "MFLOPs", "ms", "95 % within, ms", "ms per FLOP", "budget kept"]
    lines = [
        [
            row["model"], str(row["depth"]), str(row["batch"]), f"{row['mflops']:.3g}", f"{row['ms']:.3g}",
            f"{row['budget']:.3g}", f"{row['proportion']:.2f}", f"{100 * row['kept']:.1f} %",
        ]
        for row in results["rows"]
    ]  # fmt: skip
    within = sum(abs(row["proportion"] - 1) <= TOLERANCE for row in results["rows"])
    kept = sum(row["kept"] for row in results["rows"]) / len(lines)
    about = (
        f"{results['cpu']}, {results['clock']} time, {results['calls']} calls a row. Milliseconds per FLOP "
        f"are relative to the full depth, and within 15 % of it in {within} of {len(lines)} rows. On average "
        f"{100 * kept:.1f} % of new calls kept the budget that 95 % of the first ones did."
    )
    return f"{markdown(header, lines)}\n\n{about}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.depth_speed", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--table", type=Path, help="print a file's rows as Markdown, and measure nothing")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--calls", type=int, default=CALLS)
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return 0
    pin(1)
    from refimpl.files.environment import environment

    found = [row for model in options.models for row in rows(model, options.clock, options.calls)]
    cpu = environment()["cpu"]["model"]
    results = {"cpu": cpu, "clock": options.clock, "calls": options.calls, "rows": found}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
