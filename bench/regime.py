"""In which regime acceleration helps: `python -m bench.regime --out bench/results/regime.json`.

FedAvg and MetaGater without gates, under three schedules of the server, on the embedded digits: 20 nodes of
two classes, 5 a round, every node a target once. In each regime, which is a number of local steps and a size
of batch, each of the four gets its own rates by the same search on validation nodes of two other seeds. Then
all are compared with FedAvg at new seeds. What is in the file already is not computed again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from refimpl.errors import DivergenceError
from refimpl.experiments.config import Config, resolve
from refimpl.experiments.differences import paired_difference
from refimpl.experiments.experiment import adapt_targets, prepare, train
from refimpl.experiments.tune.search import Search, ranges_of
from refimpl.experiments.tune.trial import best, jobs, run_trials
from refimpl.files.tables import markdown

BASELINE = "fedavg"
SCHEDULES = ("ghadimi-lan", "bounded", "nesterov")
STEPS, BATCHES = (1, 2, 5, 20), (0, 20)
SETTING: dict[str, Any] = {
    "dataset": "digits", "model": "mlp", "nodes": 15, "targets": 5, "folds": 4, "per_round": 5, "rounds": 40,
    "node_min": 60, "node_max": 66, "test_share": 0.25, "support": 0,
}  # fmt: skip
RATES = {"eta": (0.03, 1.0), "eta_theta": (0.03, 1.0)}
TRAININGS, ADAPTATIONS, TUNING, VALIDATION = 6, 3, (100, 101), 5
REACH = 6.0  # points that the figure shows; with few seeds intervals go far beyond
Cell = dict[str, Any]


def tuned(config: Config) -> Config:
    """The configuration with the rates that are best at the validation nodes of the tuning seeds."""
    alone = replace(config, folds=1)
    search = Search(
        alone,
        {**ranges_of(config.method), **RATES},
        budget=TRAININGS * ADAPTATIONS,
        seeds=TUNING,
        validation=VALIDATION,
        adaptations=ADAPTATIONS,
    )
    wanted = [(search, number) for number in range(search.budget)]
    found = [run_trials(job, lambda record: None, lambda: False) or [] for job in jobs(wanted, None, 1)]
    return replace(config, **best(list(itertools.chain(*found))).setting)


def accuracies(config: Config, seeds: Iterable[int]) -> dict[tuple[int, str], float]:
    """Adapted accuracy in points by seed and node; a seed at which a fold diverges is left out."""
    values = {}
    for seed in seeds:
        try:
            runs = [prepare(replace(config, seed=seed, fold=fold)) for fold in range(config.folds)]
            found = [
                report for run in runs for report in adapt_targets(run, train(run, threads=1).w, threads=1)
            ]
        except DivergenceError:
            continue
        values.update({(seed, report.node): 100 * report.accuracy_after for report in found})
    return values


def _rates(config: Config) -> Cell:
    """What the search has chosen."""
    return {key: getattr(config, key) for key in {**ranges_of(config.method), **RATES}}


def regime(steps: int, batch: int, seeds: Sequence[int]) -> list[Cell]:
    """The four methods under one kind of local work, each with its difference to FedAvg."""
    chosen = [(BASELINE, BASELINE), *(("metagater-ungated", name) for name in SCHEDULES)]
    cells, baseline = [], {}
    for method, name in chosen:
        own = {} if method == BASELINE else {"schedule": name}
        config = tuned(resolve(method=method, local_steps=steps, batch_size=batch, **SETTING, **own))
        values = accuracies(config, seeds)
        baseline = baseline or values
        cell: Cell = {"local_steps": steps, "batch": batch, "name": name, **_rates(config)}
        cell["accuracy"] = sum(values.values()) / len(values) if values else None
        if method != BASELINE and values.keys() & baseline.keys():
            one = paired_difference(values, baseline)
            cell |= {"points": one.mean, "low": one.low, "high": one.high, "seeds": one.seeds}
        cells.append(cell)
    return cells


def table(results: dict[str, Any]) -> str:
    """A line for each regime: FedAvg's accuracy, and each schedule's difference to it with its interval."""
    header = ["local steps", "batch", "FedAvg %", *(f"{name}: points" for name in SCHEDULES)]
    rows = []
    for (steps, batch), group in itertools.groupby(
        results["cells"], lambda c: (c["local_steps"], c["batch"])
    ):
        first, *others = group
        cells = [f"{c['points']:+.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in others]
        rows.append([str(steps), "all" if batch == 0 else str(batch), f"{first['accuracy']:.2f}", *cells])
    return markdown(header, rows)


def draw(results: dict[str, Any], path: Path) -> Path:
    """The differences with their intervals over local steps: a panel for each size of batch."""
    from refimpl.report.canvas import save

    def figure() -> Any:
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(9.0, 3.6), layout="constrained")
        for panel, batch in zip(canvas.subplots(1, len(BATCHES), sharey=True), BATCHES, strict=True):
            for shift, name in enumerate(SCHEDULES):
                cells = [c for c in results["cells"] if c["name"] == name and c["batch"] == batch]
                at = [STEPS.index(c["local_steps"]) + 0.12 * (shift - 1) for c in cells]
                reach = [c["high"] - c["points"] for c in cells]
                panel.errorbar(at, [c["points"] for c in cells], reach, fmt="o", capsize=3, label=name)
            panel.set_ylim(-REACH, REACH)
            panel.axhline(0.0, color="black", linewidth=0.8)
            title = "all samples of a node" if batch == 0 else f"batches of {batch}"
            panel.set(title=title, xlabel="local steps", xticks=range(len(STEPS)), xticklabels=STEPS)
        canvas.axes[0].set_ylabel("accuracy above FedAvg, points")
        canvas.axes[0].legend()
        return canvas

    return save(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.regime", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; what it has is kept")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    options = parser.parse_args()
    seeds = list(range(options.seeds))
    results = {"setting": SETTING, "seeds": seeds, "tuning seeds": TUNING, "cells": []}
    results = json.loads(options.out.read_text()) if options.out.exists() else results
    done = {(cell["local_steps"], cell["batch"]) for cell in results["cells"]}
    for steps, batch in itertools.product(STEPS, BATCHES):
        if (steps, batch) not in done:
            results["cells"] += regime(steps, batch, seeds)
            options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
