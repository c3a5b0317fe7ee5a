"""Rows of the tables from the outcomes of a comparison."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refimpl.experiments.compare.work import Outcome, with_nan
from refimpl.experiments.methods import training_key
from refimpl.experiments.replay import spaced_rounds

NAN = math.nan


@dataclass(frozen=True)
class Row:
    """One method or setting over all seeds; each number is a mean over seeds unless stated otherwise.

    Shares lie in 0..1. accuracy_*: mean over target nodes after the last round, of the adapted model, of the
    meta-model before adaptation, and of the model after pruning (NaN for methods that do not prune);
    accuracy_adapted_last_std: standard deviation over seeds (ddof 1); _median, _worst: of the adapted model,
    the median and the lowest over a seed's nodes instead of the mean. sparsity_*: gated channels off on test
    samples, mean and standard deviation over nodes (ddof 0, then the mean over seeds), and over a node's
    samples; conditional_share_mean, class_information_mean, accuracy_frozen_last_mean: of trained gates,
    as in `NodeReport`; weights_off_mean: weights pruned one by one, which skips nothing. flops_*: one
    test sample, forward; adapt_*: one node, all its support samples, all stages. train_*, gradients,
    floats_sent*: a whole training (nonzero: without exact zeros); train_seconds: its rounds alone. gap_*:
    surrogate stationarity gap in the first and last round, geometric mean over seeds (NaN for methods
    without one). diverged: number of seeds whose training diverged, or whose adaptation diverged at any
    target node; the means are over the other seeds. Where the targets rotate, the target nodes of a seed
    are those of all its folds.
    """

    label: str
    method: str
    seeds: int
    diverged: int
    local_steps: int
    rounds: int
    accuracy_adapted_last_mean: float = NAN
    accuracy_adapted_last_std: float = NAN
    accuracy_unadapted_last_mean: float = NAN
    accuracy_pruned_last_mean: float = NAN
    sparsity_mean: float = NAN
    sparsity_std_over_nodes: float = NAN
    weights_off_mean: float = NAN
    flops_dense: float = NAN
    flops_executed: float = NAN
    adapt_seconds: float = NAN
    adapt_flops: float = NAN
    train_seconds: float = NAN
    train_flops: float = NAN
    gradients: float = NAN
    floats_sent: float = NAN
    floats_sent_nonzero: float = NAN
    gap_first: float = NAN
    gap_last: float = NAN
    accuracy_adapted_last_median: float = NAN
    accuracy_adapted_last_worst: float = NAN
    sparsity_std_over_samples: float = NAN
    conditional_share_mean: float = NAN
    class_information_mean: float = NAN
    accuracy_frozen_last_mean: float = NAN


def read_row(table: Mapping[str, Any]) -> Row:
    """A row as JSON holds it, where null is NaN."""
    return Row(**with_nan(table))


def summarise(outcomes: Sequence[Outcome]) -> list[Row]:
    """The rows, in the order in which their labels first appear."""
    return [_row(own) for own in by_label(outcomes).values()]


def by_label(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The runs of each row, in the order in which the labels first appear."""
    labels = dict.fromkeys(outcome.label for outcome in outcomes)
    return {label: [outcome for outcome in outcomes if outcome.label == label] for label in labels}


def seeds_of(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """A row's runs by seed: one of each seed, or one for each fold."""
    seeds = dict.fromkeys(outcome.config.seed for outcome in outcomes)
    return [[outcome for outcome in outcomes if outcome.config.seed == seed] for seed in seeds]


def finished(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """A row's runs by seed, without the seeds of which a run diverged: what means are over."""
    return [runs for runs in seeds_of(outcomes) if not any(run.failure for run in runs)]


def _row(outcomes: Sequence[Outcome]) -> Row:
    good, config, seeds = finished(outcomes), outcomes[0].config, len(seeds_of(outcomes))
    return Row(
        label=outcomes[0].label,
        method=config.method,
        seeds=seeds,
        diverged=seeds - len(good),
        local_steps=config.local_steps,
        rounds=config.rounds,
        **(_numbers(good) if good else {}),
    )


def _numbers(seeds: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    """The numbers of a row by name, from its runs by seed."""
    outcomes = list(itertools.chain(*seeds))
    reports = [[report for run in runs for report in run.reports] for runs in seeds]
    adapted = [[report.accuracy_after for report in own] for own in reports]
    accuracies = list(map(statistics.fmean, adapted))
    spreads = [spread([report.sparsity_mean for report in own], statistics.pstdev) for own in reports]

    def nodes(field: str) -> float:
        return statistics.fmean(
            statistics.fmean(getattr(report, field) for report in outcome.reports) for outcome in outcomes
        )

    def rounds(field: str) -> float:
        return statistics.fmean(math.fsum(getattr(r, field) for r in outcome.records) for outcome in outcomes)

    return {
        "accuracy_adapted_last_mean": statistics.fmean(accuracies),
        "accuracy_adapted_last_std": spread(accuracies, statistics.stdev),
        "accuracy_unadapted_last_mean": nodes("accuracy_before"),
        "accuracy_pruned_last_mean": nodes("accuracy_pruned"),
        "sparsity_mean": nodes("sparsity_mean"),
        "sparsity_std_over_nodes": statistics.fmean(spreads),
        "weights_off_mean": nodes("weights_off"),
        "flops_dense": nodes("flops_dense"),
        "flops_executed": nodes("flops_executed"),
        "adapt_seconds": nodes("seconds_gate") + nodes("seconds_backbone"),
        "adapt_flops": nodes("adapt_flops_executed"),
        "train_seconds": rounds("seconds"),
        "train_flops": rounds("flops"),
        "gradients": rounds("gradients"),
        "floats_sent": rounds("floats_sent"),
        "floats_sent_nonzero": rounds("floats_sent_sparse"),
        "gap_first": _geometric(outcome.records[0].gap for outcome in outcomes),
        "gap_last": _geometric(outcome.records[-1].gap for outcome in outcomes),
        "accuracy_adapted_last_median": statistics.fmean(map(statistics.median, adapted)),
        "accuracy_adapted_last_worst": statistics.fmean(map(min, adapted)),
        "sparsity_std_over_samples": nodes("sparsity_spread"),
        "conditional_share_mean": nodes("conditional_share"),
        "class_information_mean": nodes("class_information"),
        "accuracy_frozen_last_mean": nodes("accuracy_frozen"),
    }


def spread(values: Sequence[float], deviation: Callable[[Sequence[float]], float]) -> float:
    """The standard deviation; NaN for a sample of one value, or if a value is NaN."""
    few = len(values) < 2 and deviation is statistics.stdev
    return NAN if few or any(map(math.isnan, values)) else deviation(values)


def _geometric(values: Iterable[float]) -> float:
    positive = [value for value in values if value > 0]
    return statistics.geometric_mean(positive) if positive else NAN


# --- by round


@dataclass(frozen=True)
class Curve:
    """Adapted accuracy of a row by round: mean and standard deviation (ddof 1; NaN for one seed) over seeds.

    Both are NaN after rounds whose meta-model diverged in adaptation at some node of some seed. left_out: the
    number of seeds that are not in it, since they diverged.
    """

    label: str
    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    left_out: int = 0


def curves(outcomes: Sequence[Outcome]) -> list[Curve]:
    """A curve for each row whose accuracy was measured by round, at the rounds that all its seeds share."""
    found = []
    for label, runs in by_label(outcomes).items():
        own = [[dict(run.accuracy_by_round) for run in seed] for seed in finished(runs)]
        known = [set(curve) for seed in own for curve in seed]
        rounds = sorted(set.intersection(*known)) if known else []
        if rounds:
            values = [[statistics.fmean(c[round_] for c in seed) for seed in own] for round_ in rounds]
            std = tuple(spread(v, statistics.stdev) for v in values)
            mean = tuple(map(statistics.fmean, values))
            found.append(Curve(label, tuple(rounds), mean, std, len(seeds_of(runs)) - len(own)))
    return found


GAP_ROWS = 8  # number of rounds shown for a run


def gaps(outcomes: Sequence[Outcome]) -> tuple[list[str], list[tuple[int, list[float]]]]:
    """Labels, and the surrogate stationarity gap of each at some logarithmically spaced rounds.

    Only the first seed is shown, in its first fold, only methods that have such a gap, each training once.
    """
    runs: dict[str, Outcome] = {}
    shown_run = (outcomes[0].config.seed, outcomes[0].config.fold) if outcomes else None
    for outcome in outcomes:
        if outcome.records and (outcome.config.seed, outcome.config.fold) == shown_run:
            runs.setdefault(training_key(outcome.config), outcome)
    shown = [run for run in runs.values() if not math.isnan(run.records[0].gap)]
    last = max((len(run.records) for run in shown), default=0)
    rounds = spaced_rounds(last, GAP_ROWS) if last else []
    series = [[record.gap for record in run.records] + [NAN] * (last - len(run.records)) for run in shown]
    return [run.label for run in shown], [(r, [own[r - 1] for own in series]) for r in rounds]
