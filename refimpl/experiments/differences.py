"""How far a method is from a baseline: paired differences with intervals, and what may be claimed of them.

The two methods are tested at the same nodes under the same seeds, so each pair of values has one difference.
Values of one seed share their training, so a seed is one cluster, and clusters are what is resampled.

Source: mathematics.md §12; Hall 1992, §3.5 (symmetric studentised bootstrap); Cameron, Gelbach and Miller
2008 (clusters); Holm 1979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.errors import InputError, expect_numbers

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its interval at `level`, and the p-value of "there is none".

    The interval excludes zero exactly where p < 1 - level. pairs and seeds count what it rests on.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int
    seeds: int
    level: float = LEVEL

    def verdict(self, margin: float = 0.0, p: float | None = None) -> str:
        """`above`, `below` or `not separated`, and whether the interval lies within +-margin.

        p: the p-value to judge by, where it was adjusted for several comparisons (`holm`).
        """
        separated = (self.p if p is None else p) < 1 - self.level
        words = ("above" if self.mean > 0 else "below") if separated else "not separated"
        within = margin > 0 and -margin < self.low and self.high < margin
        if not within:
            return words
        return f"{words}, within the margin" if separated else "within the margin"


def paired_difference(
    values: Mapping[tuple[int, str], float],
    baseline: Mapping[tuple[int, str], float],
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Difference:
    """Mean of values - baseline over the (seed, node) pairs that both have, with a cluster bootstrap.

    Both map (seed, node) to a finite number. Raises `InputError` where no pair is shared or a value is not
    finite. With one seed nothing can be resampled: the interval is unbounded and p is 1. With two or three
    seeds it is unbounded as well, since one of them is often drawn over and over.
    """
    expect_numbers("paired_difference", positive=True, whole=True, draws=draws)
    shared = sorted(values.keys() & baseline.keys())
    if not shared:
        raise InputError("paired_difference: the two share no (seed, node) pair; test both at the same nodes")
    differences = np.array([values[pair] - baseline[pair] for pair in shared])
    if not np.isfinite(differences).all():
        raise InputError("paired_difference: a value is not finite; leave diverged runs out and count them")
    _, cluster = np.unique([seed for seed, _ in shared], return_inverse=True)
    sums, sizes = np.bincount(cluster, differences), np.bincount(cluster)
    mean, error = (float(part[0]) for part in _mean_and_error(sums[None], sizes[None]))
    ratios = np.abs(_resampled(sums, sizes, mean, draws))
    reach = np.quantile(ratios, level, method="higher") * error if error > 0 else 0.0
    p = float(np.mean(ratios >= abs(mean) / error)) if error > 0 else float(mean == 0)
    unbounded = float(np.mean(np.isinf(ratios)))
    if unbounded >= 1 - level:  # too few clusters, even if their differences are equal by chance
        reach, p = np.inf, max(p, unbounded)
    return Difference(mean, mean - float(reach), mean + float(reach), p, len(shared), len(sizes), level)


def seed_difference(differences: Sequence[float], level: float = LEVEL) -> Difference:
    """The mean of one paired difference for each seed, with the interval of Student's t over seeds.

    With few seeds it says more than a bootstrap can, but assumes differences that are about normal. With one
    seed it is unbounded. Source: mathematics.md §12; Student 1908.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not (values.size and np.isfinite(values).all()):
        raise InputError(
            f"seed_difference: expected finite numbers, one for each seed, got {values.tolist()}"
        )
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Difference(mean, -np.inf, np.inf, 1.0, n, n, level)
    from scipy.special import stdtr  # scipy.stats has it too, but loading that takes a second

    error, half = float(values.std(ddof=1)) / n**0.5, student_half(values, level)
    p = float(2 * stdtr(n - 1, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, n, n, level)


def student_half(values: np.ndarray, level: float = LEVEL) -> float:
    """Half the width of the interval of Student's t around the mean of values (n,), n >= 2."""
    from scipy.special import stdtrit

    n = len(values)
    return float(stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / n**0.5)


def _mean_and_error(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over all pairs and its cluster-robust standard error; sums and sizes (draws, clusters)."""
    clusters, total = sums.shape[1], sizes.sum(axis=1)
    mean = sums.sum(axis=1) / total
    squares = ((sums - mean[:, None] * sizes) ** 2).sum(axis=1)
    return mean, np.sqrt(squares * clusters / max(clusters - 1, 1)) / total


def _resampled(sums: np.ndarray, sizes: np.ndarray, mean: float, draws: int) -> np.ndarray:
    """(mean* - mean) / error* of `draws` samples of clusters with replacement; infinite where error* is 0."""
    rng = np.random.default_rng(0)  # the same figures for the same results
    chosen = rng.integers(0, len(sums), (draws, len(sums)))
    means, errors = _mean_and_error(sums[chosen], sizes[chosen])
    alone = (chosen == chosen[:, :1]).all(axis=1)  # one cluster over and over has no spread
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(alone, np.inf, (means - mean) / errors)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false claim among them keeps its level."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(np.asarray(p_values, float)[order] * factors), 1.0)
    out = np.empty(len(p_values))
    out[order] = adjusted
    return out.tolist()
