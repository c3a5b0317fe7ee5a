"""Few-shot episodes: N classes with K labelled samples each, drawn from one part of a data set's classes.

The classes of a data set are split into three disjoint parts: some are for meta-training, some for choosing
settings, and some for the final test. A data set may declare a published split (`DataSource.class_parts`).

Source: mathematics.md §13.1; Vinyals et al. 2016.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refimpl.data.dataset import DataSet
from refimpl.data.node import Node
from refimpl.errors import DataError, InputError
from refimpl.registry import DATASETS
from refimpl.rng import SeedTree
from refimpl.shares import nearest

LETTERS = "TVE"  # of the parts below, in a published split
TRAIN_SHARE, VALIDATION_SHARE = 0.64, 0.16  # of the classes, where no split is published: as in CIFAR-FS


class ClassSplit(NamedTuple):
    """Three disjoint parts of a data set's classes, and where the split comes from, in words."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    origin: str


def class_split(dataset: DataSet) -> ClassSplit:
    """The split that the data set declares; else 64, 16 and 20 % of its classes in a fixed random order.

    Raises `DataError` where classes of a declared split are missing.
    """
    letters, origin = getattr(DATASETS.classes().get(dataset.name), "class_parts", ("", ""))
    if letters:
        if len(letters) != dataset.classes:
            raise DataError(
                f"{dataset.name}: expected all {len(letters)} classes of the split {origin}, found "
                f"{dataset.classes}; fetch the missing files with refimpl data fetch {dataset.name}"
            )
        train, validation, test = (
            tuple(c for c, letter in enumerate(letters) if letter == part) for part in LETTERS
        )
        return ClassSplit(train, validation, test, origin)
    order = SeedTree(0).generator("class-split").permutation(dataset.classes).tolist()
    first = nearest(TRAIN_SHARE, dataset.classes)
    second = first + nearest(VALIDATION_SHARE, dataset.classes)
    train, validation, test = (
        tuple(sorted(part)) for part in (order[:first], order[first:second], order[second:])
    )
    return ClassSplit(train, validation, test, "64, 16 and 20 % of the classes, in a fixed random order")


@dataclass(frozen=True, eq=False)
class Episodes:
    """The `ways`-way tasks that can be drawn from `classes` of a data set (default: from all).

    A task has `shots` support, `queries` query and `tests` test samples of each class: meta-training learns
    from the queries, and a target node is only measured on its tests. With `turned` every class also counts
    as three more, in which its images are turned by 90, 180 and 270 degrees. Raises `InputError` if there are
    not enough classes with enough samples, or if images to be turned are oblong.
    """

    dataset: DataSet
    ways: int
    shots: int
    queries: int
    tests: int = 0
    classes: Iterable[int] | None = None
    turned: bool = False

    def __post_init__(self) -> None:
        for what, least in (("ways", 1), ("shots", 1), ("queries", 0), ("tests", 0)):
            if getattr(self, what) < least:
                raise InputError(f"episode: expected {what} of at least {least}, got {getattr(self, what)}")
        _, height, width = self.dataset.shape
        if self.turned and height != width:
            raise InputError(f"episode: images of {height}x{width} pixels cannot be turned; leave that out")
        if len(self.kinds) < self.ways:
            raise InputError(
                f"episode: {self.ways} classes with {self.each} samples each asked for, but "
                f"{self.dataset.name} has {len(self.kinds)} such classes; ask for fewer ways, shots or "
                "queries"
            )

    @property
    def each(self) -> int:
        """Samples of a class in an episode."""
        return self.shots + self.queries + self.tests

    @cached_property
    def members(self) -> list[NDArray[np.int64]]:
        """The samples of each class, ascending."""
        order = np.argsort(self.dataset.y, kind="stable")
        return np.split(order, np.cumsum(self.dataset.counts())[:-1])

    @cached_property
    def kinds(self) -> list[tuple[int, int]]:
        """What counts as a class: (class, quarter turns of its images), if it has enough samples."""
        known = range(self.dataset.classes)
        allowed = known if self.classes is None else sorted(set(self.classes))
        unknown = [c for c in allowed if c not in known]
        if unknown:
            raise InputError(
                f"episode: class {unknown[0]} is outside 0..{self.dataset.classes - 1} of {self.dataset.name}"
            )
        usable = [c for c in allowed if len(self.members[c]) >= self.each]
        return [(c, turn) for turn in range(4 if self.turned else 1) for c in usable]

    def draw(self, rng: np.random.Generator, dtype: DTypeLike = np.float32, name: str = "episode") -> Node:
        """One task as a node. Its classes are renumbered 0 to ways - 1 in the random order drawn."""
        chosen = [self.kinds[i] for i in rng.choice(len(self.kinds), size=self.ways, replace=False)]
        picks = [rng.choice(self.members[c], self.each, replace=False) for c, _ in chosen]
        index = np.stack(picks, axis=1).ravel()  # sample by sample through the classes: parts are balanced
        x = self.dataset.x(index, dtype)
        for label, (_, turn) in enumerate(chosen):
            if turn:
                x[label :: self.ways] = np.rot90(x[label :: self.ways], turn, axes=(2, 3))
        labels = np.tile(np.arange(self.ways, dtype=np.int64), self.each)
        return Node(name, x, labels, self.ways * self.shots, self.ways * self.queries)
