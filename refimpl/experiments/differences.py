"""How far a method is from a baseline: paired differences with intervals, and what may be claimed of them.

The two methods are tested at the same nodes under the same seeds, so each pair of values has one difference.
Values of one seed share their training, so a seed is one cluster, and clusters are what is resampled. Of few
clusters the bootstrap says too little; there Student's t takes its place.

Source: mathematics.md §12; Hall 1992, §3.5 (symmetric studentised bootstrap); Cameron, Gelbach and Miller
2008 (clusters); Student 1908; Holm 1979.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.errors import InputError, expect_numbers

DRAWS = 10_000
LEVEL = 0.95
MANY = 8  # seeds from which on the bootstrap covers what it should; with 4 to 6 it covers 97 to 98 %


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
    """Mean of values - baseline over the (seed, node) pairs that both have, with an interval over seeds.

    Both map (seed, node) to a finite number. Raises `InputError` where no pair is shared or a value is not
    finite. From `MANY` seeds on the interval is that of a cluster bootstrap, with fewer that of Student's t.
    With one seed it is unbounded and p is 1.
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
    if len(sizes) < MANY:
        reach, p = _by_student(mean, error, len(sizes), level)
    else:
        ratios = np.abs(_resampled(sums, sizes, mean, draws))
        reach = float(np.quantile(ratios, level, method="higher")) * error if error > 0 else 0.0
        p = float(np.mean(ratios >= abs(mean) / error)) if error > 0 else float(mean == 0)
    return Difference(mean, mean - reach, mean + reach, p, len(shared), len(sizes), level)


def seed_difference(differences: Sequence[float], level: float = LEVEL) -> Difference:
    """The mean of one paired difference for each seed, with the interval of Student's t over seeds."""
    values = np.asarray(differences, dtype=np.float64)
    if not (values.size and np.isfinite(values).all()):
        raise InputError(
            f"seed_difference: expected finite numbers, one for each seed, got {values.tolist()}"
        )
    n, mean = len(values), float(values.mean())
    error = float(values.std(ddof=1)) / n**0.5 if n > 1 else 0.0
    reach, p = _by_student(mean, error, n, level)
    return Difference(mean, mean - reach, mean + reach, p, n, n, level)


def _by_student(mean: float, error: float, clusters: int, level: float) -> tuple[float, float]:
    """How far the interval reaches, and p, where differences are about normal.

    Two or three equal values may be equal by chance, and bound nothing.
    """
    if error == 0:
        return (np.inf, 1.0) if clusters < 4 else (0.0, float(mean == 0))
    from scipy.special import stdtr  # scipy.stats has it too, but loading that takes a second

    p = float(2 * stdtr(clusters - 1, -abs(mean) / error))
    return _quantile(clusters - 1, level) * error, p


def _quantile(free: int, level: float) -> float:
    """The quantile of Student's t for two-sided intervals at `level`."""
    from scipy.special import stdtrit

    return float(stdtrit(free, (1 + level) / 2))


def student_half(values: np.ndarray, level: float = LEVEL) -> float:
    """Half the width of the interval of Student's t around the mean of values (n,), n >= 2."""
    n = len(values)
    return _quantile(n - 1, level) * float(values.std(ddof=1)) / n**0.5


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
