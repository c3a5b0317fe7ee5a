"""What a comparison may claim: how far each row is from the baseline, with an interval and a verdict.

Source: mathematics.md §12.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from refimpl.experiments.compare.plan import Claims, Plan
from refimpl.experiments.compare.summary import finished
from refimpl.experiments.compare.work import Outcome
from refimpl.experiments.dealing import build_partition
from refimpl.experiments.differences import Difference, holm, paired_difference

NOTHING = Difference(math.nan, -math.inf, math.inf, math.nan, 0, 0)  # where no run can be paired
Values = Mapping[tuple[int, str], float]


@dataclass(frozen=True)
class Claim:
    """The difference of a row's adapted accuracy to that of the baseline, in percentage points.

    The values are paired by seed and node. points: the mean; low, high: its 95 % interval (infinite if the
    seeds are too few to bound it); p: the p-value of "there is no difference", p_holm: the same adjusted over
    the rows; pairs, seeds: what the numbers rest on; left_out: the other seeds, at which a run diverged.
    """

    label: str
    points: float
    low: float
    high: float
    p: float
    p_holm: float
    pairs: int
    seeds: int
    left_out: int
    verdict: str


def claims_of(outcomes: Sequence[Outcome], wanted: Claims | None) -> list[Claim]:
    """The claim for each row but the baseline, in the order in which the labels first appear."""
    if wanted is None:
        return []
    baseline = _accuracies(outcomes, wanted.baseline)
    labels = [label for label in dict.fromkeys(o.label for o in outcomes) if label != wanted.baseline]
    pairs = {label: (_accuracies(outcomes, label), baseline) for label in labels}
    return judged(pairs, wanted.margin, len({outcome.config.seed for outcome in outcomes}))


def judged(pairs: Mapping[str, tuple[Values, Values]], margin: float, seeds: int) -> list[Claim]:
    """The claim for each label, from its values in percentage points and those that it is compared with.

    p-values are adjusted over the labels; seeds: how many there are in all.
    """
    found = {label: _difference(*one) for label, one in pairs.items()}
    paired = [label for label, one in found.items() if one.pairs]
    adjusted = dict(zip(paired, holm([found[label].p for label in paired]), strict=True))
    return [
        Claim(
            label=label,
            points=one.mean,
            low=one.low,
            high=one.high,
            p=one.p,
            p_holm=adjusted.get(label, math.nan),
            pairs=one.pairs,
            seeds=one.seeds,
            left_out=seeds - one.seeds,
            verdict=_verdict(one, margin, adjusted.get(label)),
        )
        for label, one in found.items()
    ]


def dealt_otherwise(plan: Plan) -> list[str]:
    """The rows whose nodes are not those of the baseline, so that a pair of values is of two nodes."""
    if plan.claims is None:
        return []
    dealt = {
        label: (config.dataset, replace(build_partition(config), support=0))  # samples, whatever their use
        for label, config in plan.rows
    }
    return [label for label, own in dealt.items() if own != dealt[plan.claims.baseline]]


def _accuracies(outcomes: Sequence[Outcome], label: str) -> Values:
    """Adapted accuracy in points by seed and node, at the row's seeds of which no run diverged."""
    return {
        (run.config.seed, report.node): 100 * report.accuracy_after
        for run in itertools.chain(*finished([o for o in outcomes if o.label == label]))
        for report in run.reports
    }


def _difference(values: Values, baseline: Values) -> Difference:
    return paired_difference(values, baseline) if values.keys() & baseline.keys() else NOTHING


def _verdict(one: Difference, margin: float, p: float | None) -> str:
    if not one.pairs:
        return "nothing to pair"
    words = one.verdict(margin, p)
    if math.isfinite(one.high):
        return words
    return f"{words}, {'one seed' if one.seeds == 1 else f'only {one.seeds} seeds'}"
