"""Shuffle samples so that the first samples, however many, have about the class proportions of all."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def stratified_order(y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.intp]:
    """Permutation of 0..n-1, random within each class of y (n,) and evenly interleaved between classes.

    First comes one sample of every class, in random class order; then the rest, sorted by
    (j + offset_k) / c_k for sample j of the c_k samples of class k, the offsets spread over (0, 1).
    So the first samples contain every class if there are at least as many of them as classes, and if
    the order is cut into parts, each part has the classes in their overall proportions, as nearly as
    whole samples allow.
    """
    order = rng.permutation(len(y))
    _, group, counts = np.unique(y[order], return_inverse=True, return_counts=True)
    offset = ((rng.permutation(len(counts)) + 0.5) / max(len(counts), 1))[group]
    rank = _rank_within(group, counts)
    keys = np.where(rank == 0, offset - 1.0, (rank + offset) / counts[group])
    return order[np.argsort(keys, kind="stable")]


def _rank_within(group: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.intp]:
    """For each entry of group (n,) the number of earlier entries of the same group."""
    by_group = np.argsort(group, kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(group), dtype=np.intp)
    rank[by_group] = np.arange(len(group)) - np.repeat(starts, counts)
    return rank
