"""Claims of order: intervals that cover, verdicts that are seldom false, and figures known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.experiments.differences import holm, paired_difference

TRUE = 0.7
SEEDS = 8  # from here on by the bootstrap, with fewer by Student's t


def drawn(rng, seeds, true, skewed=False):
    """Accuracies of two methods; trainings of one seed share an error, nodes have errors of their own."""
    shared = rng.exponential(size=seeds) - 1 if skewed else rng.standard_normal(seeds)
    ours, theirs = {}, {}
    for seed in range(seeds):
        for node in range(rng.integers(5, 20)):
            theirs[seed, str(node)] = rng.normal(90, 3)
            ours[seed, str(node)] = theirs[seed, str(node)] + true + shared[seed] + rng.normal() * 2
    return ours, theirs


@pytest.mark.parametrize(("seeds", "skewed"), [(3, False), (5, False), (SEEDS, False), (SEEDS, True)])
def test_the_interval_covers_the_true_difference_in_95_of_100_experiments(seeds, skewed):
    rng = np.random.default_rng(5)
    found = [paired_difference(*drawn(rng, seeds, TRUE, skewed), draws=999) for _ in range(500)]
    assert 0.93 <= np.mean([one.low <= TRUE <= one.high for one in found]) <= 0.97


@pytest.mark.parametrize("seeds", [4, SEEDS])
def test_an_order_that_is_not_there_is_seldom_claimed(seeds):
    rng = np.random.default_rng(3)
    words = [paired_difference(*drawn(rng, seeds, 0.0), draws=999).verdict() for _ in range(500)]
    assert np.mean([word != "not separated" for word in words]) <= 0.05


def test_among_ten_comparisons_a_false_claim_stays_rare():
    rng, false = np.random.default_rng(4), 0
    for _ in range(60):
        found = [paired_difference(*drawn(rng, SEEDS, 0.0), draws=500) for _ in range(10)]
        false += any(
            one.verdict(p=p) != "not separated"
            for one, p in zip(found, holm([one.p for one in found]), strict=True)
        )
    assert false <= 6  # at most 3 expected; 6 is the 97th percentile


def test_a_large_difference_is_found_and_its_sign_is_right():
    rng = np.random.default_rng(6)
    ours, theirs = drawn(rng, SEEDS, 5.0)
    assert paired_difference(ours, theirs).verdict() == "above"
    assert paired_difference(theirs, ours).verdict() == "below"


def test_mean_and_bounds_lie_symmetrically_and_agree_with_the_p_value():
    rng = np.random.default_rng(7)
    for _ in range(50):
        one = paired_difference(*drawn(rng, 8, 0.5), draws=500)
        assert (one.low + one.high) / 2 == pytest.approx(one.mean)
        assert (one.low > 0 or one.high < 0) == (one.p < 0.05)


def test_only_shared_pairs_count_and_each_counts_once():
    ours = {(0, "a"): 3.0, (0, "b"): 5.0, (1, "a"): 9.0, (2, "z"): 0.0}
    theirs = {(0, "a"): 1.0, (0, "b"): 2.0, (1, "a"): 2.0, (7, "a"): 50.0}
    one = paired_difference(ours, theirs)
    assert (one.mean, one.pairs, one.seeds) == (4.0, 3, 2)  # (2 + 3 + 7) / 3


def test_one_seed_separates_nothing():
    one = paired_difference({(0, "a"): 9.0}, {(0, "a"): 1.0})
    assert (one.low, one.high, one.p, one.verdict()) == (-np.inf, np.inf, 1.0, "not separated")


def test_equal_methods_and_constant_differences():
    values = {(seed, "a"): float(seed) for seed in range(9)}
    equal = paired_difference(values, values)
    assert (equal.mean, equal.low, equal.high, equal.p) == (0.0, 0.0, 0.0, 1.0)
    assert equal.verdict(margin=1.0) == "within the margin"
    more = paired_difference({pair: value + 2 for pair, value in values.items()}, values)
    assert (more.low, more.high, more.p) == (2.0, 2.0, 0.0)


@pytest.mark.parametrize("seeds", [2, 3])
def test_differences_of_few_seeds_that_are_equal_by_chance_separate_nothing(seeds):
    one = paired_difference(
        dict.fromkeys([(seed, "a") for seed in range(seeds)], 1.0),
        dict.fromkeys([(seed, "a") for seed in range(seeds)], 0.0),
    )
    assert (one.low, one.high, one.verdict(margin=9.0)) == (-np.inf, np.inf, "not separated")


def test_the_margin_is_judged_by_the_whole_interval():
    rng = np.random.default_rng(8)
    one = paired_difference(*drawn(rng, 20, 0.0))
    assert one.verdict(margin=max(-one.low, one.high) * 1.01) == "within the margin"
    assert one.verdict(margin=max(-one.low, one.high) * 0.99) == "not separated"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []


def test_values_that_cannot_be_compared():
    with pytest.raises(InputError, match="share no"):
        paired_difference({(0, "a"): 1.0}, {(1, "a"): 1.0})
    with pytest.raises(InputError, match="not finite"):
        paired_difference({(0, "a"): np.nan}, {(0, "a"): 1.0})
