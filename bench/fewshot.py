"""Few-shot runs side by side: `python -m bench.fewshot --out FILE --runs RUN ... --tests TEST.json ...`.

Each TEST.json is what `refimpl fewshot test --json` printed; the file has the tests of all of them, and how
the validation accuracy of the runs went.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from refimpl.experiments.record import RunFolder
from refimpl.files.tables import markdown

Curve = dict[str, Any]
TRAINING = ("filters", "iterations x tasks")
SHOWN = 1000  # iterations from one line of the table to the next


def curve(path: Path) -> Curve:
    """The validation accuracy of a run by iteration; None where adaptation diverged."""
    with RunFolder.open(path, lock=False) as folder:
        config, records = folder.config, folder.metrics()
    every, about = config["validate_every"], ("ways", "shots", "alpha")
    checked = [record for record in records if every and record["round"] % every == 0]
    points = [[one["round"], one["validation"]] for one in checked]
    return {name: config[name] for name in about} | {"points": points}


def table(results: dict[str, Any]) -> str:
    """How the validation accuracy went, and a line for each test."""
    return f"{_validation(results['curves'])}\n\n{_tests(results['runs'])}"


def _validation(curves: list[Curve]) -> str:
    """A line for each thousand iterations, a column for each run, the longest first."""
    curves = sorted(curves, key=lambda one: -len(one["points"]))
    kinds = [f"{one['ways']}-way {one['shots']}-shot, alpha {one['alpha']:g}" for one in curves]
    columns = [
        {at: "diverged" if v is None else f"{100 * v:.1f}" for at, v in one["points"] if at % SHOWN == 0}
        for one in curves
    ]
    header = ["validation % after", *kinds]
    return markdown(header, [[str(at), *(column.get(at, "") for column in columns)] for at in columns[0]])


def trained_cells(what: str, run: dict[str, Any]) -> list[str]:
    """What was trained on which episodes, and then the columns of `TRAINING`."""
    filters = "-".join(str(width) for width in run["widths"])
    return [f"{what}, {run['ways']}-way {run['shots']}-shot", filters, f"{run['rounds']} x {run['tasks']}"]


def _tests(runs: list[dict[str, Any]]) -> str:
    """How it was trained, on which episodes it was tested, and what came out."""
    header = [
        "method",
        *TRAINING,
        "alpha",
        "episodes",
        "queries of a class",
        "accuracy %",
    ]
    rows = [
        [
            *trained_cells(run["method"], run),
            f"{run['alpha']:g}",
            str(run["episodes"]),
            str(run["test_queries"] or run["shots"]),
            f"{100 * run['accuracy']:.2f} +- {100 * run['half']:.2f}",
        ]
        for run in runs
    ]
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fewshot", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all runs")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of the runs")
    parser.add_argument("--tests", type=Path, nargs="+", required=True, help="what their tests printed")
    options = parser.parse_args()
    runs = [run for path in options.tests for run in json.loads(path.read_text())["runs"]]
    results = {"curves": [curve(path) for path in options.runs], "runs": runs}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
