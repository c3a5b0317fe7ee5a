"""Decide how many samples of each class a node gets, as tables of counts (nodes, classes).

A partition is made in two steps: these tables first, then the choice of samples that fill them. So sizes
are exact, and nodes cannot overlap: the samples of a class are dealt out without putting any back. `stock`
is the number of samples of each class in the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refimpl.errors import InputError

Counts = NDArray[np.int64]

_JITTERS = (0.5, 0.5, 0.35, 0.35, 0.2, 0.2, 0.1, 0.1, 0.05, 0.0)


def spread_sizes(smallest: int, largest: int, nodes: int, rng: np.random.Generator) -> Counts:
    """Sizes (nodes,) evenly spaced from `smallest` to `largest`, both attained, in random order.

    Even spacing, unlike independent draws, gives exactly the range of the papers and the same total for every
    seed, so that whether the data suffice does not depend on the seed.
    """
    sizes = np.rint(np.linspace(smallest, largest, nodes)).astype(np.int64)
    return rng.permutation(sizes)


def deal_classes(
    stock: Counts, sizes: Counts, classes_per_node: int, targets: int, rng: np.random.Generator
) -> Counts:
    """Each node gets its size (nodes,) in equal shares from `classes_per_node` classes of `stock` (classes,).

    Nodes choose from the largest to the smallest. Each takes the classes used least so far by nodes of its
    kind (training or target nodes), so that both kinds see every class if possible; among those, the classes
    with most samples left, after a random perturbation that makes the choice depend on the seed. If the data
    do not suffice, weaker perturbations are tried, then none, then the same again by samples left only. No
    set of classes is given both to one of the last `targets` nodes and to one of the others, if exchanging
    one class can avoid it. Raises `InputError` saying how many samples of which class are missing.

    Source: mathematics.md §11; the procedure is ours.
    """
    if not 1 <= classes_per_node <= len(stock):
        raise InputError(
            f"partition: {classes_per_node} classes per node asked for, but there are {len(stock)} classes"
        )
    if sizes.min() < classes_per_node:
        raise InputError(
            f"partition: a node of {sizes.min()} samples cannot have {classes_per_node} classes; "
            "make nodes larger"
        )
    _check_total(stock, sizes)
    for even, jitter in itertools.product((True, False), _JITTERS):
        counts = _deal_once(stock, sizes, classes_per_node, targets, rng, jitter, even)
        missing = np.maximum(counts.sum(axis=0) - stock, 0)
        if not missing.any():
            return counts
    raise InputError(_shortage(missing))


def _deal_once(
    stock: Counts, sizes: Counts, k: int, targets: int, rng: np.random.Generator, jitter: float, even: bool
) -> Counts:
    used = np.zeros((2, len(stock)), dtype=np.int64)  # times each class serves training, target nodes
    left = stock.astype(np.float64)
    counts = np.zeros((len(sizes), len(stock)), dtype=np.int64)
    taken: tuple[set[frozenset[int]], set[frozenset[int]]] = (set(), set())
    for node in np.argsort(-sizes, kind="stable"):
        is_target = int(node >= len(sizes) - targets)
        score = left * (1.0 + jitter * rng.random(len(stock)))
        order = np.lexsort((-score, used[is_target] * even))
        chosen = _choose(order, k, taken[1 - is_target])
        used[is_target, chosen] += 1
        taken[is_target].add(frozenset(chosen))
        counts[node, chosen] = _even_shares(int(sizes[node]), k)
        left -= counts[node]
    return counts


def _choose(order: NDArray[np.intp], k: int, avoid: set[frozenset[int]]) -> list[int]:
    """The first k classes of `order`, the last of them exchanged if that avoids a set in `avoid`."""
    ranked = [int(c) for c in order]
    for last in ranked[k - 1 :]:
        chosen = [*ranked[: k - 1], last]
        if frozenset(chosen) not in avoid:
            return chosen
    return ranked[:k]


def deal_dirichlet(stock: Counts, sizes: Counts, alpha: float, rng: np.random.Generator) -> Counts:
    """Each node draws class proportions from Dirichlet(alpha, ..., alpha) and gets its samples in them.

    Samples that a class no longer has are taken from other classes, first in the node's proportions, then in
    those of the stock; so sizes are exact, but proportions are not when the data run low. With a small alpha
    a node has few classes, with a large alpha all nodes are alike. Raises `InputError` if the
    sizes exceed the data in total.

    Source: Hsu, Qi & Brown 2019 (arXiv 1909.06335), with exact sizes; mathematics.md §11.
    """
    if not (np.isfinite(alpha) and alpha > 0):
        raise InputError(f"partition: expected alpha as a positive number, got {alpha}")
    _check_total(stock, sizes)
    left = stock.astype(np.int64)
    counts = np.zeros((len(sizes), len(stock)), dtype=np.int64)
    for node, size in enumerate(sizes):
        wish = rng.dirichlet(np.full(len(stock), float(alpha)))
        counts[node] = _fill(int(size), wish, left)
        left = left - counts[node]
    return counts


def _fill(size: int, wish: NDArray[np.float64], left: Counts) -> Counts:
    """`size` samples in the proportions `wish`, at most `left` of each class."""
    counts = np.zeros_like(left)
    while (need := size - int(counts.sum())) > 0:
        room = left - counts
        weight = np.where(room > 0, wish, 0.0)
        if weight.sum() <= 1e-12:  # no wanted class has samples left, or the weights underflowed
            weight = room.astype(np.float64)
        counts += np.minimum(_proportional(need, weight), room)
    return counts


def _proportional(total: int, weight: NDArray[np.float64]) -> Counts:
    """Whole numbers adding up to `total` in the proportions of `weight` (largest remainders)."""
    exact = total * weight / weight.sum()
    counts = np.floor(exact).astype(np.int64)
    rest = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return counts


def deal_iid(stock: Counts, sizes: Counts, rng: np.random.Generator) -> Counts:
    """Each node gets its size drawn uniformly without replacement: class counts are hypergeometric."""
    _check_total(stock, sizes)
    left = stock.astype(np.int64)
    counts = np.zeros((len(sizes), len(stock)), dtype=np.int64)
    for node, size in enumerate(sizes):
        counts[node] = rng.multivariate_hypergeometric(left, int(size))
        left = left - counts[node]
    return counts


def fill_counts(y: NDArray[np.int64], counts: Counts, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Sample numbers for each node of `counts` (nodes, classes); each class is shuffled and dealt once."""
    piles: list[list[NDArray[np.intp]]] = [[] for _ in counts]
    for label in np.flatnonzero(counts.sum(axis=0)):
        pile = rng.permutation(np.flatnonzero(y == label))
        ends = np.cumsum(counts[:, label])
        for node, (end, count) in enumerate(zip(ends, counts[:, label], strict=True)):
            piles[node].append(pile[end - count : end])
    return [np.concatenate(parts) for parts in piles]


def _even_shares(total: int, parts: int) -> Counts:
    return np.array([(total + i) // parts for i in range(parts)][::-1], dtype=np.int64)


def _check_total(stock: Counts, sizes: Counts) -> None:
    if sizes.sum() > stock.sum():
        raise InputError(
            f"partition: the nodes ask for {sizes.sum()} samples in all, the data has {stock.sum()}: "
            f"{sizes.sum() - stock.sum()} are missing; ask for fewer or smaller nodes"
        )


def _shortage(missing: Counts) -> str:
    lacking: Sequence[str] = [f"{missing[c]} of class {c}" for c in np.flatnonzero(missing)]
    listed = ", ".join(lacking[:8]) + (f" and {len(lacking) - 8} more classes" if len(lacking) > 8 else "")
    return (
        f"partition: the sizes do not fit: missing {listed}; ask for fewer or smaller nodes, "
        "a smaller test share, or more classes per node"
    )
