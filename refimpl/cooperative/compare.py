"""Schemes side by side: the same depths under the same seeds, and how far each is from a baseline.

Source: mathematics.md §12, §15.3.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from refimpl.cooperative.config import CooperativeConfig
from refimpl.cooperative.measure import Row
from refimpl.experiments.differences import Difference, holm, seed_difference

BASELINE = "alone"


class Outcome(NamedTuple):
    """A finished run.

    scheme, seed: which run it is; cost: what a step costs, as a multiple of the full network's (§15.3);
    seconds: how long the training took; rows: its depths.
    """

    scheme: str
    seed: int
    cost: float
    seconds: float
    rows: Sequence[Row]

    def table(self) -> dict[str, Any]:
        """The run for JSON."""
        return {**self._asdict(), "rows": [row.table() for row in self.rows]}


class Line(NamedTuple):
    """A scheme at a depth, over its seeds.

    accuracy: mean over seeds, in percent; spread: its standard deviation (ddof 1); flops, milliseconds: of a
    sample and of a call with one sample, means over seeds; cost: of a training step, as a multiple of the
    full network's; difference: percentage points above the baseline at that depth, paired by seed; low, high:
    its 95 % interval of Student's t over seeds; verdict: what may be claimed of it, if anything; p-values
    are adjusted over all lines.
    """

    scheme: str
    depth: int
    seeds: int
    accuracy: float
    spread: float
    flops: float
    milliseconds: float
    cost: float
    difference: float
    low: float
    high: float
    verdict: str


def configs(base: CooperativeConfig, schemes: Iterable[str], seeds: Iterable[int]) -> list[CooperativeConfig]:
    """One run for each seed and scheme, seed by seed."""
    return [replace(base, scheme=scheme, seed=seed) for seed in seeds for scheme in schemes]


def folder_name(config: CooperativeConfig) -> str:
    """The name of a run's folder within the comparison's."""
    return f"{config.scheme}-{config.seed}"


Place = dict[int, tuple[Outcome, Row]]  # a scheme at a depth, by seed


def lines(found: Sequence[Outcome], baseline: str = BASELINE, margin: float = 0.0) -> list[Line]:
    """The comparison: schemes in their order, each with its depths, the least first.

    Differences are paired by seed; they are NaN for the baseline, and where it was not run. margin: a
    difference of so many points counts as none.
    """
    places: dict[tuple[str, int], Place] = {}
    for run in found:
        for row in run.rows:
            places.setdefault((run.scheme, row.depth), {})[run.seed] = (run, row)
    gaps = {key: _gap(own, places.get((baseline, key[1]), {})) for key, own in places.items()}
    known = {key: gap for key, gap in gaps.items() if gap}
    adjusted = dict(zip(known, holm([gap.p for gap in known.values()]), strict=True))
    verdicts = {key: gap.verdict(margin, adjusted[key]) for key, gap in known.items()}
    return [_line(*key, own, gaps[key], verdicts.get(key, "")) for key, own in places.items()]


def _gap(own: Place, base: Place) -> Difference | None:
    """The difference to the baseline over the seeds that both have; None for the baseline itself."""
    shared = [seed for seed in own if seed in base and own is not base]
    gaps = [100 * (own[seed][1].test - base[seed][1].test) for seed in shared]
    return seed_difference(gaps) if gaps else None


def _line(scheme: str, depth: int, own: Place, gap: Difference | None, verdict: str) -> Line:
    accuracy = [100 * row.test for _, row in own.values()]
    return Line(
        scheme,
        depth,
        seeds=len(own),
        accuracy=float(np.mean(accuracy)),
        spread=float(np.std(accuracy, ddof=1)) if len(accuracy) > 1 else np.nan,
        flops=float(np.mean([row.flops for _, row in own.values()])),
        milliseconds=float(np.mean([row.latencies[0].median for _, row in own.values()])),
        cost=float(np.mean([run.cost for run, _ in own.values()])),
        difference=gap.mean if gap else np.nan,
        low=gap.low if gap else np.nan,
        high=gap.high if gap else np.nan,
        verdict=verdict,
    )


HEADER = (
    "scheme",
    "depth",
    "accuracy %",
    "minus baseline, points",
    "verdict",
    "MFLOPs",
    "ms",
    "training cost",
)


def cells(one: Line) -> list[str]:
    """A line as text, under HEADER."""
    spread = f" +- {one.spread:.2f}" if one.seeds > 1 else ""
    interval = f" [{one.low:+.2f}, {one.high:+.2f}]" if np.isfinite(one.low) else " [one seed]"
    return [
        one.scheme,
        str(one.depth),
        f"{one.accuracy:.2f}{spread}",
        "-" if np.isnan(one.difference) else f"{one.difference:+.2f}{interval}",
        one.verdict,
        f"{one.flops / 1e6:.3g}",
        f"{one.milliseconds:.3g}",
        f"{one.cost:.2f}",
    ]
