"""Decide how many samples of each class a node gets, as tables of counts (nodes, classes).

A partition is made in two steps: these tables first, then the choice of samples that fill them. So sizes
are exact, and nodes cannot overlap: the samples of a class are dealt out without putting any back. `stock`
is the number of samples of each class in the data.

Every partition that `--partition` names is a subclass of `Rule` under `@PARTITIONS.register("name")`. The
package's own are in this file. A file of yours that `refimpl --use FILE.py` imports may register others.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from refimpl.errors import InputError
from refimpl.registry import PARTITIONS, key

Counts = NDArray[np.int64]

_JITTERS = (0.5, 0.5, 0.35, 0.35, 0.2, 0.2, 0.1, 0.1, 0.05, 0.0)


@dataclass(frozen=True)
class Rule:
    """How nodes get their classes. A subclass has `deal`; its fields made with `key` configure it."""

    def deal(self, stock: Counts, sizes: Counts, targets: int, rng: np.random.Generator) -> Counts:
        """Samples of each class (nodes, classes) of nodes of these sizes, of which the last are `targets`.

        If all nodes are target nodes, each is one in a fold of its own, and a training node in the others.

        `stock` (classes,) has enough samples in total. Raises `InputError` if they do not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method deal")

    def room(self, stock: Counts, nodes: int) -> Fraction:
        """How many samples, training and test together, each of `nodes` nodes can have."""
        return Fraction(int(stock.sum()), nodes)


@PARTITIONS.register("classes")
@dataclass(frozen=True)
class Classes(Rule):
    """Each node gets its samples in equal shares from `classes_per_node` classes.

    Nodes choose from the largest to the smallest. Each takes the classes used least so far by nodes of its
    kind (training or target nodes), so that both kinds see every class if possible; among those, the classes
    with most samples left, after a random perturbation that makes the choice depend on the seed. If the data
    do not suffice, weaker perturbations are tried, then none, then the same again by samples left only. No
    set of classes is given both to a target node and to a training node, if exchanging one class can avoid
    it; where every node is a target node in its turn, none is given to two nodes. `deal` raises `InputError`
    saying how many samples of which class are missing.

    Source: mathematics.md §11; the procedure is ours.
    """

    classes_per_node: int = key(2, "classes at each node", at_least=1)

    def __post_init__(self) -> None:
        whole("classes_per_node", self.classes_per_node, 1)

    def deal(self, stock: Counts, sizes: Counts, targets: int, rng: np.random.Generator) -> Counts:
        """See the class."""
        k = self.classes_per_node
        if k > len(stock):
            raise InputError(f"partition: {k} classes per node asked for, but there are {len(stock)} classes")
        if sizes.min() < k:
            raise InputError(
                f"partition: a node of {sizes.min()} samples cannot have {k} classes; make nodes larger"
            )
        for even, jitter in itertools.product((True, False), _JITTERS):
            counts = _deal_once(stock, sizes, k, targets, rng, jitter, even)
            missing = np.maximum(counts.sum(axis=0) - stock, 0)
            if not missing.any():
                return counts
        lacking = [f"{missing[c]} of class {c}" for c in np.flatnonzero(missing)]
        more = f" and {len(lacking) - 8} more classes" if len(lacking) > 8 else ""
        raise InputError(
            f"partition: the sizes do not fit: missing {', '.join(lacking[:8])}{more}; ask for fewer or "
            "smaller nodes, a smaller test share, or more classes per node"
        )

    def room(self, stock: Counts, nodes: int) -> Fraction:
        """Not more than its classes have, if they are of median size."""
        return min(super().room(stock, nodes), self.classes_per_node * Fraction(float(np.median(stock))))


@PARTITIONS.register("two-class")
@dataclass(frozen=True)
class TwoClass(Classes):
    """Two classes at every node: the partition of the papers for MNIST and CIFAR-10."""

    def __post_init__(self) -> None:
        if self.classes_per_node != 2:
            raise InputError(
                f"partition: two-class contradicts classes_per_node {self.classes_per_node}; "
                "choose the partition classes, or classes_per_node 2"
            )


@PARTITIONS.register("dirichlet")
@dataclass(frozen=True)
class Dirichlet(Rule):
    """Each node draws class proportions from a symmetric Dirichlet distribution and gets its samples in them.

    Samples that a class no longer has are taken from other classes, first in the node's proportions, then in
    those of the stock; so sizes are exact, but proportions are not when the data run low. With a small
    concentration a node has few classes, with a large one all nodes are alike.

    Source: Hsu, Qi & Brown 2019 (arXiv 1909.06335), with exact sizes; mathematics.md §11.
    """

    concentration: float = key(0.5, "of the Dirichlet distribution; small: few classes", above=0.0)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.concentration) and self.concentration > 0):
            raise InputError(
                f"partition: expected concentration as a positive number, got {self.concentration}"
            )

    def deal(self, stock: Counts, sizes: Counts, targets: int, rng: np.random.Generator) -> Counts:
        """See the class."""
        alpha = np.full(len(stock), float(self.concentration))
        return _deal_in_turn(stock, sizes, lambda size, left: _fill(size, rng.dirichlet(alpha), left))


@PARTITIONS.register("iid")
@dataclass(frozen=True)
class Iid(Rule):
    """Each node's samples are drawn uniformly without replacement: class counts are hypergeometric."""

    def deal(self, stock: Counts, sizes: Counts, targets: int, rng: np.random.Generator) -> Counts:
        """See the class."""
        return _deal_in_turn(
            stock, sizes, lambda size, left: rng.multivariate_hypergeometric(left, size).astype(np.int64)
        )


def spread_sizes(smallest: int, largest: int, nodes: int, rng: np.random.Generator) -> Counts:
    """Sizes (nodes,) evenly spaced from `smallest` to `largest`, both attained, in random order.

    Even spacing, unlike independent draws, gives exactly the range of the papers and the same total for every
    seed, so that whether the data suffice does not depend on the seed.
    """
    sizes = np.rint(np.linspace(smallest, largest, nodes)).astype(np.int64)
    return rng.permutation(sizes)


def whole(what: str, value: object, least: int) -> None:
    """Raise `InputError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise InputError(f"partition: expected {what} as a whole number of at least {least}, got {value!r}")


def check_total(stock: Counts, sizes: Counts) -> None:
    """Raise `InputError` if nodes of these sizes need more samples than there are."""
    if sizes.sum() > stock.sum():
        raise InputError(
            f"partition: the nodes ask for {sizes.sum()} samples in all, the data has {stock.sum()}: "
            f"{sizes.sum() - stock.sum()} are missing; ask for fewer or smaller nodes"
        )


def _deal_in_turn(stock: Counts, sizes: Counts, draw: Callable[[int, Counts], Counts]) -> Counts:
    """The counts that `draw` gives each node of its size, out of what the nodes before have left."""
    left, counts = stock.astype(np.int64), np.zeros((len(sizes), len(stock)), dtype=np.int64)
    for node, size in enumerate(sizes):
        counts[node] = draw(int(size), left)
        left = left - counts[node]
    return counts


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
        chosen = _choose(order, k, taken[1 if targets == len(sizes) else 1 - is_target])
        used[is_target, chosen] += 1
        taken[is_target].add(frozenset(chosen))
        counts[node, chosen] = [(int(sizes[node]) + i) // k for i in range(k)][::-1]  # equal shares
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


def fill_counts(y: NDArray[np.int64], counts: Counts, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Sample numbers for each node of `counts` (nodes, classes); each class is shuffled and dealt once."""
    piles: list[list[NDArray[np.intp]]] = [[] for _ in counts]
    for label in np.flatnonzero(counts.sum(axis=0)):
        pile = rng.permutation(np.flatnonzero(y == label))
        ends = np.cumsum(counts[:, label])
        for node, (end, count) in enumerate(zip(ends, counts[:, label], strict=True)):
            piles[node].append(pile[end - count : end])
    return [np.concatenate(parts) for parts in piles]
