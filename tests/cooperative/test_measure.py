"""Budgets and comparisons: which depth fits, and what the table of schemes says, from numbers given."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from refimpl.cooperative.compare import Outcome, cells, configs, folder_name, lines
from refimpl.cooperative.config import resolve
from refimpl.cooperative.measure import TURN, Latency, Row, call_times, deepest, limit, summary
from refimpl.errors import InputError
from refimpl.experiments.differences import seed_difference

ROWS = [
    Row(d, "a", 0.5, 0.5, 1e6 * d, (Latency(1, 1.0 * d, 1.5 * d), Latency(32, 9.0, 10.0 * d)))
    for d in (1, 2, 3)
]


@pytest.mark.parametrize(
    ("budget", "depth"),
    [
        ({}, 3),
        ({"milliseconds": 4.5}, 3),
        ({"milliseconds": 4.4}, 2),  # by what 95 % of the calls need, and not by the median
        ({"flops": 2e6}, 2),
        ({"flops": 1.9e6, "milliseconds": 100}, 1),
        ({"milliseconds": 25, "batch": 32}, 2),
    ],
)
def test_the_deepest_that_fits(budget, depth):
    assert deepest(ROWS, **budget).depth == depth
    assert deepest(ROWS[::-1], **budget).depth == depth


def test_a_budget_that_nothing_fits_is_said():
    with pytest.raises(InputError, match=r"no depth fits the budget: depth 1 needs 1.5 ms a call"):
        deepest(ROWS, milliseconds=1.4)
    with pytest.raises(InputError, match=r"1e\+06 FLOPs a sample"):
        deepest(ROWS, flops=10)


def test_calls_are_timed_in_turns():
    """Two predictors that take 1 and 3 ms, and every tenth call 8 ms more: median and limit."""
    now, called = [0.0], []

    def slow(seconds):
        def predict(x):
            called.append((seconds, len(x)))
            now[0] += seconds + (0.008 if sum(one == seconds for one, _ in called) % 10 == 0 else 0)

        return predict

    x = np.zeros((10, 1, 2, 2), dtype="float32")
    times = call_times([slow(0.001), slow(0.003)], x, 4, 100, lambda: now[0])
    assert times.shape == (2, 100)
    found = [summary(4, own) for own in times]
    assert [one.median for one in found] == pytest.approx([1.0, 3.0])
    assert [one.high for one in found] == pytest.approx([9.0, 11.0])
    assert {size for _, size in called} == {4}
    timed = [seconds for seconds, _ in called[-100 * 2 :]]  # those before were to warm up
    turns = [len([*calls]) for _, calls in itertools.groupby(timed)]
    assert turns == [TURN] * (2 * (100 // TURN)) + [100 % TURN] * 2
    call_times([slow(0.001)], x, 32, 2)
    assert called[-1][1] == 32  # samples are repeated where there are too few


def test_a_limit_holds_for_95_percent_of_new_calls_in_95_percent_of_cases():
    quantile, rng = -math.log(0.05), np.random.default_rng(0)
    samples = np.sort(rng.exponential(size=(2000, 100)), axis=1)
    held = [limit(rng.permutation(times)) >= quantile for times in samples]
    assert 0.945 < np.mean(held) < 0.98  # the chance is a little above 0.95, as ranks are whole numbers
    lower = [times[times < limit(times)].max() >= quantile for times in samples]
    assert np.mean(lower) < 0.95
    assert [limit(np.arange(n)) for n in (1, 58, 60)] == [0, 57, 59]  # the largest of few


def outcome(scheme, seed, accuracy, cost):
    rows = [row._replace(test=value) for row, value in zip(ROWS, accuracy, strict=True)]
    return Outcome(scheme, seed, cost, 1.0, rows)


def test_lines_are_means_and_paired_differences():
    found = [
        outcome("alone", 0, (0.50, 0.6, 0.7), 2.0), outcome("team", 0, (0.53, 0.6, 0.7), 6.0),
        outcome("team", 1, (0.56, 0.6, 0.7), 6.0), outcome("alone", 1, (0.52, 0.6, 0.7), 2.0),
    ]  # fmt: skip
    first = next(line for line in lines(found) if (line.scheme, line.depth) == ("team", 1))
    assert (first.seeds, first.cost, first.flops) == (2, 6.0, 1e6)
    assert first.accuracy == pytest.approx(54.5)
    assert first.spread == pytest.approx(3 / math.sqrt(2))
    assert first.difference == pytest.approx(3.5)
    half = stats.t.ppf(0.975, 1) * 0.5  # differences 3 and 4: standard error 1/2
    assert (first.low, first.high) == pytest.approx((3.5 - half, 3.5 + half))
    base = next(line for line in lines(found) if line.scheme == "alone")
    assert math.isnan(base.difference)
    assert cells(base)[3] == "-"
    assert cells(first)[3] == f"+3.50 [{3.5 - half:+.2f}, {3.5 + half:+.2f}]"
    assert cells(lines(found[:2])[-1])[3].endswith("[one seed]")
    assert (first.verdict, base.verdict, lines(found[:2])[-1].verdict) == (
        "not separated",
        "",
        "not separated",
    )
    near = [outcome("alone", seed, (0.5, 0.5, 0.5), 2.0) for seed in range(3)]
    for seed, more in enumerate((0.0, 0.001, 0.002)):  # intervals of +-0.25 points around the mean
        near.append(outcome("team", seed, (0.55 + more, 0.5005 + more, 0.4 + more), 6.0))
    words = [line.verdict for line in lines(near, margin=0.5) if line.scheme == "team"]
    assert words == ["above", "within the margin", "below"]
    for seed, more in enumerate((-0.001, 0.0, 0.001)):  # p = 0.03, adjusted over three depths 0.09
        near.append(outcome("other", seed, (0.5033 + more, 0.5 + more, 0.5 + more), 6.0))
    alone = [line for line in lines([*near[:3], *near[-3:]]) if line.scheme == "other"]
    assert alone[0].low > 0
    assert [line.verdict for line in alone] == ["not separated"] * 3


def test_the_interval_over_seeds_is_that_of_a_t_test():
    values = np.random.default_rng(0).normal(0.4, 1.0, 7)
    ours, theirs = seed_difference(values), stats.ttest_1samp(values, 0.0)
    assert (ours.p, ours.mean) == pytest.approx((theirs.pvalue, values.mean()))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert seed_difference([1.0]).verdict() == "not separated"
    with pytest.raises(InputError, match="expected finite numbers, one for each seed"):
        seed_difference([1.0, math.nan])


def test_runs_of_a_comparison():
    found = configs(resolve(None, "demo"), ("alone", "led"), (3, 4))
    assert [folder_name(config) for config in found] == ["alone-3", "led-3", "alone-4", "led-4"]
    assert len({config.epochs for config in found}) == 1
