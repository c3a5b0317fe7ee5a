"""First-order MAML in PyTorch beside runs of ours: `python -m bench.fewshot_twin RUN ... --out FILE`.

Each RUN is a finished `refimpl fewshot train --method fomaml` with Conv-4. PyTorch trains from the same first
weights on the same episodes, and both models are tested on the same test episodes. So what differs is
rounding, which a long training magnifies.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.fewshot import TRAINING, trained_cells
from refimpl.errors import InputError
from refimpl.experiments.experiment import meta_model
from refimpl.experiments.record import RunFolder
from refimpl.fewshot.evaluate import accuracies, interval
from refimpl.fewshot.experiment import FewShot, reopen
from refimpl.files.tables import markdown

SETTINGS = ("dataset", "seed", "ways", "shots", "widths", "rounds", "tasks", "inner_steps", "alpha", "dtype")


def compare(path: Path) -> dict[str, Any]:
    """Train and test in PyTorch what the run in `path` trained, and compare."""
    from bench.peers import torch_fewshot

    with RunFolder.open(path, lock=False) as folder:
        run, records = reopen(folder), folder.metrics()
        w = meta_model(run, folder)
    _expect_conv4(run)
    model, losses = torch_fewshot.train(run)
    ours, theirs = accuracies(run.test(), w), torch_fewshot.test(run, model)
    return {
        "settings": {name: getattr(run.config, name) for name in (*SETTINGS, "test_steps", "test_queries")},
        "losses": [[one["loss"], loss] for one, loss in zip(records, losses, strict=True)][:3],
        "ours": _interval(ours),
        "theirs": _interval(theirs),
        "difference": _interval(ours - theirs),
    }


def _expect_conv4(run: FewShot) -> None:
    """Refuse what the twin does not compute."""
    config = run.config
    if (config.model, config.method, config.statistics) != ("conv4", "fomaml", "transductive"):
        raise InputError("fewshot_twin: expected a run of fomaml with conv4 and transductive statistics")


def _interval(values: np.ndarray) -> dict[str, float]:
    found = interval(values)
    return {"mean": found.mean, "half": found.half}


def table(results: dict[str, Any]) -> str:
    """A line for each run."""
    header = ["episodes", *TRAINING, "numbers", "ours %", "PyTorch %", "ours - PyTorch, points"]
    return markdown(header, [_row(one) for one in results["runs"]])


def _row(one: dict[str, Any]) -> list[str]:
    said, sides = one["settings"], (one["ours"], one["theirs"])
    mean, half = (100 * one["difference"][name] for name in ("mean", "half"))
    return [
        *trained_cells(said["dataset"], said),
        said["dtype"],
        *(f"{100 * side['mean']:.2f} +- {100 * side['half']:.2f}" for side in sides),
        f"{mean:+.2f} [{mean - half:.2f}, {mean + half:.2f}]",
    ]


def main() -> None:
    """Read the command line, compare, write the file and print its table."""
    parser = argparse.ArgumentParser(prog="python -m bench.fewshot_twin", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="JSON of what is found")
    options = parser.parse_args()
    found = {"runs": [compare(path) for path in options.runs]}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
