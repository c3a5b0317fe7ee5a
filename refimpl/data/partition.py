"""Deal the samples of a data set to the nodes of a federation, in a way that a seed determines.

Meta-training nodes and target nodes are different nodes, and no sample belongs to two nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refimpl.data.dataset import DataSet
from refimpl.data.deal import Classes, Counts, Rule, check_total, fill_counts, spread_sizes, whole
from refimpl.data.node import Node, stratified_order
from refimpl.errors import InputError, one_of
from refimpl.rng import SeedTree
from refimpl.shares import at_most, exact, nearest

POOLS = ("all", "tuning", "report")
LARGEST_SHARE = Fraction(4, 5)  # of what fits, for the largest node of data without usual sizes
_DEFAULT_NODES = 20  # for which the usual sizes of a data set are meant


@dataclass(frozen=True)
class Partition:
    """How to deal a data set to nodes.

    rule: how nodes get their classes: `Classes(5)` (five at each node), `Dirichlet(0.5)`, `Iid()`, or one of
    your own (see `deal`).
    nodes, targets: numbers of meta-training and of target nodes.
    sizes: training samples (support and query) per node: a pair (smallest, largest) for evenly
    spread sizes, or one number per node, training nodes first; None for the data set's default.
    (With two nodes in all, a pair is one number per node.)
    target_sizes: the pair (smallest, largest) for target nodes, where `sizes` is not for them too.
    test: share of a node's samples held out for testing, on top of `sizes`.
    support: samples for adaptation out of the training samples, as a whole number or a share; 0 for all.
    They are stratified: a class has as many of a node's support samples as its share of the node's samples.
    folds, fold: if there are several folds, all nodes are dealt as one kind, and every node is a target node
    in one of the folds; `fold` says in which of them we are. A target node has the same name in every seed.
    pool: which samples are dealt: `all`, or those for `tuning`, about the share `pool_share` of them, or the
    others, for a `report`. Which sample is in which pool depends on its number and the share alone.
    Shares become the nearest whole number, but at least one; halves are rounded to even (`refimpl.shares`).

    Raises `InputError` for values out of range.

    Source: mathematics.md §11.
    """

    rule: Rule = Classes(2)
    nodes: int = 16
    targets: int = 4
    sizes: tuple[int, ...] | None = None
    test: float = 0.25
    support: int | float = 20
    target_sizes: tuple[int, int] | None = None
    folds: int = 1
    fold: int = 0
    pool: str = "all"
    pool_share: float = 0.3

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise InputError(f"partition: expected a rule, such as Classes(2) or Iid(), got {self.rule!r}")
        whole("nodes", self.nodes, 1)
        whole("targets", self.targets, 0)
        if not 0.0 <= self.test < 1.0:
            raise InputError(f"partition: expected test as a share from 0 to below 1, got {self.test!r}")
        if isinstance(self.support, float) and not 0.0 < self.support <= 1.0:
            raise InputError(f"partition: expected support as a share above 0 up to 1, got {self.support!r}")
        if not isinstance(self.support, float):
            whole("support", self.support, 0)
        self._check_sizes()
        self._check_folds()

    def _check_folds(self) -> None:
        whole("folds", self.folds, 1)
        whole("fold", self.fold, 0)
        if self.fold >= self.folds:
            raise InputError(f"partition: expected fold below folds {self.folds}, got {self.fold}")
        if self.folds > 1 and (self.folds * self.targets != self.total or self.target_sizes):
            raise InputError(
                f"partition: {self.folds} folds of {self.targets} target nodes must be all {self.nodes} + "
                f"{self.targets} nodes, of one range of sizes; set nodes to folds - 1 times targets"
            )

    def _check_sizes(self) -> None:
        if self.target_sizes is not None:
            whole("the smallest target node", self.target_sizes[0], 1)
            whole("the largest target node", self.target_sizes[1], self.target_sizes[0])
            if self.sizes is not None and len(self.sizes) != 2:
                raise InputError("partition: sizes of each node and target_sizes exclude each other")
        if self.sizes is None:
            return
        for size in self.sizes:
            whole("sizes", size, 1)
        pair = len(self.sizes) == 2 and self.sizes[0] <= self.sizes[1]  # a range
        if not pair and len(self.sizes) != self.total:
            raise InputError(
                f"partition: expected sizes as (smallest, largest) or one for each of {self.nodes} + "
                f"{self.targets} nodes, got {len(self.sizes)} numbers"
            )

    @property
    def total(self) -> int:
        """Number of training and target nodes together."""
        return self.nodes + self.targets


class Share(NamedTuple):
    """The samples of one node: their numbers in the data set, ordered [support | query | test]."""

    name: str
    samples: NDArray[np.intp]
    n_support: int
    n_query: int


class Statistics(NamedTuple):
    """The sizes and classes of the nodes of a partition, and the number of samples in more than one node (0).

    `class_counts` has, for each node, the number of samples of each of its `classes`.
    """

    names: tuple[str, ...]
    support_sizes: tuple[int, ...]
    train_sizes: tuple[int, ...]
    test_sizes: tuple[int, ...]
    classes: tuple[tuple[int, ...], ...]
    class_counts: tuple[tuple[int, ...], ...]
    nodes_per_class: tuple[int, ...]
    used: int
    overlap: int


def make_nodes(
    dataset: DataSet,
    partition: Partition | None = None,
    seeds: SeedTree | int = 0,
    dtype: DTypeLike = np.float32,
) -> tuple[list[Node], list[Node]]:
    """(training nodes, target nodes) of `dataset`, normalised, as float32 or float64.

    The same data, partition and seed give the same nodes, bit for bit. `partition` defaults to two classes
    at each of 16 + 4 nodes. Raises `InputError` if the data are too few for the sizes.

    Source: mathematics.md §11.
    """
    partition = partition or Partition()
    nodes = fill(dataset, plan(dataset, partition, seeds), dtype)
    return nodes[: partition.nodes], nodes[partition.nodes :]


def fill(dataset: DataSet, shares: Sequence[Share], dtype: DTypeLike = np.float32) -> list[Node]:
    """The nodes with the samples named by `shares`, normalised, as float32 or float64.

    Their samples are views of one array, in which the nodes follow each other.
    """
    ends = np.cumsum([len(share.samples) for share in shares], dtype=np.int64).tolist()
    x = np.empty((ends[-1] if ends else 0, *dataset.shape), dtype)
    y = np.empty(len(x), dtype=np.int64)
    nodes = []
    for share, start, end in zip(shares, [0, *ends], ends, strict=False):
        x[start:end], y[start:end] = dataset.x(share.samples, dtype), dataset.y[share.samples]
        nodes.append(Node(share.name, x[start:end], y[start:end], share.n_support, share.n_query))
    return nodes


def plan(dataset: DataSet, partition: Partition, seeds: SeedTree | int = 0) -> list[Share]:
    """Decide which samples go to which node, training nodes first, without reading the images."""
    tree = seeds if isinstance(seeds, SeedTree) else SeedTree(seeds)
    rng = tree.generator("partition")
    train = node_sizes(dataset, partition, rng)
    odds = exact(partition.test) / (1 - exact(partition.test))
    least = int(partition.test > 0)  # a test part, if there is one, has a sample
    test = np.array([max(nearest(odds, size), least) for size in train.tolist()], dtype=np.int64)
    pool = pooled(len(dataset.y), partition.pool, partition.pool_share)
    y = dataset.y[pool]
    counts = _deal(partition, np.bincount(y, minlength=dataset.classes), train + test, rng)
    shares = []
    for i, found in enumerate(fill_counts(y, counts, rng)):
        index = pool[found]
        order = stratified_order(dataset.y[index], tree.generator("partition-order", node=i))
        n_support = _support_size(partition.support, int(train[i]))
        shares.append(Share("", index[order], n_support, int(train[i]) - n_support))
    return [shares[i]._replace(name=name) for i, name in _roles(partition)]


def pooled(count: int, pool: str, share: float) -> NDArray[np.intp]:
    """The numbers of the samples in a pool, of `count` samples."""
    if pool == "all":
        return np.arange(count)
    one_of("partition", "pool", pool, POOLS)
    tuning = SeedTree(0).generator("pool").random(count) < share
    return np.flatnonzero(tuning if pool == "tuning" else ~tuning)


def _roles(partition: Partition) -> list[tuple[int, str]]:
    """The nodes as they were dealt, by number, with their names: training nodes first, then target nodes."""
    skipped = partition.fold * partition.targets  # targets of the folds before; fold 0 has the last nodes
    end = partition.total - skipped
    targets = range(end - partition.targets, end)
    train = [i for i in range(partition.total) if i not in targets]
    return [
        *((i, f"train-{number}") for number, i in enumerate(train)),
        *((i, f"target-{number}") for number, i in enumerate(targets, skipped)),
    ]


def _deal(partition: Partition, stock: Counts, sizes: Counts, rng: np.random.Generator) -> Counts:
    """What the rule deals; a rule of a user's that deals something else than asked for is an `InputError`."""
    check_total(stock, sizes)
    targets = partition.targets if partition.folds == 1 else partition.total  # every node is one in turn
    counts = partition.rule.deal(stock, sizes, targets, rng)
    right = counts.shape == (len(sizes), len(stock)) and counts.min() >= 0
    if not right or (counts.sum(axis=1) != sizes).any() or (counts.sum(axis=0) > stock).any():
        raise InputError(
            f"partition: expected {type(partition.rule).__name__}.deal to give each node as many samples as "
            f"its size, out of those there are, got counts {counts.tolist()!r:.60}; mend the rule"
        )
    return counts


def statistics(dataset: DataSet, shares: list[Share]) -> Statistics:
    """Sizes, classes and overlap of a plan, counted from the sample numbers themselves."""
    everything = np.concatenate([share.samples for share in shares])
    found = [np.unique(dataset.y[share.samples], return_counts=True) for share in shares]
    classes = [tuple(labels.tolist()) for labels, _ in found]
    train = [share.n_support + share.n_query for share in shares]
    used = len(np.unique(everything))
    return Statistics(
        names=tuple(share.name for share in shares),
        support_sizes=tuple(share.n_support for share in shares),
        train_sizes=tuple(train),
        test_sizes=tuple(len(s.samples) - t for s, t in zip(shares, train, strict=True)),
        classes=tuple(classes),
        class_counts=tuple(tuple(counts.tolist()) for _, counts in found),
        nodes_per_class=tuple(sum(c in own for own in classes) for c in range(dataset.classes)),
        used=used,
        overlap=len(everything) - used,
    )


def node_sizes(dataset: DataSet, partition: Partition, rng: np.random.Generator) -> Counts:
    """Training samples of every node, (nodes + targets,), training nodes first."""
    sizes = _default_sizes(dataset, partition) if partition.sizes is None else partition.sizes
    if partition.target_sizes is not None:
        train = spread_sizes(sizes[0], sizes[1], partition.nodes, rng)
        return np.concatenate([train, spread_sizes(*partition.target_sizes, partition.targets, rng)])
    if len(sizes) == 2 and partition.total != 2:
        return spread_sizes(sizes[0], sizes[1], partition.total, rng)
    return np.array(sizes, dtype=np.int64)


def _default_sizes(dataset: DataSet, partition: Partition) -> tuple[int, int]:
    """The usual range of the data set, less for more than 20 nodes; other data: up to four fifths of them."""
    if dataset.node_sizes is not None:
        shrink = min(Fraction(1), Fraction(_DEFAULT_NODES, partition.total))
        smallest, largest = (max(at_most(shrink, size), 1) for size in dataset.node_sizes)
        return smallest, largest
    room = partition.rule.room(dataset.counts(), partition.total)
    largest = max(at_most(LARGEST_SHARE * (1 - exact(partition.test)), room), 1)
    return max(largest // 2, 1), largest


def _support_size(support: int | float, train: int) -> int:
    size = max(nearest(support, train), 1) if isinstance(support, float) else int(support) or train
    if size > train:
        raise InputError(
            f"partition: {size} support samples asked for, but a node has only {train} training samples; "
            "ask for less support or larger nodes"
        )
    return size
