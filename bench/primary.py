"""When PMT would stop, for other settings than it had: `python -m bench.primary --out FILE`.

Trains one dense network of few-shot learning, keeps the first layer's weights after every iteration, and asks
PMT's own rule afterwards where it would have stopped. A mask that is stable is worth something if it is more
like the mask at the end of training than the one of the first weights is; so both are shown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.federated.pruning.snip import best
from refimpl.fewshot.config import resolve
from refimpl.fewshot.experiment import FewShot, prepare
from refimpl.fewshot.tickets.finders import PMT
from refimpl.fewshot.tickets.masks import counts_in, prunable
from refimpl.files.tables import markdown

GAMMAS, DELTAS = (50, 100, 200, 500), (0.9, 0.95, 0.97, 0.98, 0.99)
SETTINGS: dict[str, Any] = {"method": "fomaml", "validate_every": 0}


def first_layers(run: FewShot) -> Iterator[np.ndarray]:
    """The first layer's weights before training and after every iteration."""
    slot, state = prunable(run.network.layout)[0], run.start()
    yield state["w"][slot.start : slot.stop]
    for after, _ in run.rounds(state, range(1, run.config.rounds + 1), threads=1):
        yield after["w"][slot.start : slot.stop]


def stop(finder: PMT, weights: np.ndarray, count: int) -> int | None:
    """The iteration at which PMT stops, of weights (iterations + 1, n); None if it never does."""
    queue, mask = np.full(finder.length, np.nan), np.zeros(weights.shape[1], dtype=bool)
    for iteration in range(finder.gamma, len(weights), finder.gamma):
        queue, mask = finder.look(queue, mask, np.abs(weights[iteration]), count)
        if finder.stable(queue):
            return iteration
    return None


def judge(weights: np.ndarray, count: int) -> dict[str, Any]:
    """Where PMT stops for each setting, and the share of the last mask that the mask there has."""
    last = best(np.abs(weights[-1]), count)

    def share(iteration: int) -> float:
        return float((best(np.abs(weights[iteration]), count) & last).sum() / count)

    rows = []
    for gamma in GAMMAS:
        for delta in DELTAS:
            at = stop(PMT(gamma=gamma, delta=delta), weights, count)
            rows.append(
                {"gamma": gamma, "delta": delta, "stop": at, "share": None if at is None else share(at)}
            )
    sizes = {"weights": weights.shape[1], "kept": count, "iterations": len(weights) - 1}
    return {**sizes, "first": share(0), "rows": rows}


def table(results: dict[str, Any]) -> str:
    """A line for each gamma, a column for each delta."""
    at = {(row["gamma"], row["delta"]): row for row in results["rows"]}
    rows = [[str(gamma), *(_cell(at[gamma, delta]) for delta in DELTAS)] for gamma in GAMMAS]
    kept, size = results["kept"], results["weights"]
    about = (
        f"{kept} of {size} weights kept, {results['iterations']} iterations. Of the last mask, "
        f"{kept / size:.0%} are in a random one, and {results['first']:.0%} in that of the first weights."
    )
    return f"{about}\n\n{markdown(['gamma', *(f'delta {delta:g}' for delta in DELTAS)], rows)}"


def _cell(row: dict[str, Any]) -> str:
    return "never" if row["stop"] is None else f"{row['stop']}: {row['share']:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.primary", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--preset", default="omniglot-5way-1shot", help="settings of the dense network")
    parser.add_argument("--widths", type=int, nargs="+", default=[32] * 4, help="channels")
    parser.add_argument("--rounds", type=int, default=13000, help="iterations")
    parser.add_argument("--alpha", type=float, default=0.4, help="inner learning rate")
    parser.add_argument("--pruned", type=float, default=0.8, help="share of weights that is pruned")
    options = parser.parse_args()
    own = {"widths": options.widths, "rounds": options.rounds, "alpha": options.alpha}
    run = prepare(resolve(None, options.preset, **SETTINGS, **own))
    count = counts_in(run.network.layout, "smart", options.pruned)[0]
    results = {"settings": run.config.table(), "pruned": options.pruned}
    results |= judge(np.array([*first_layers(run)]), count)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
