"""Few-shot episodes: N classes, K labelled samples of each, from any labelled set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import DTypeLike

from refimpl.data.dataset import DataSet
from refimpl.data.node import Node
from refimpl.errors import InputError


def episode(
    dataset: DataSet,
    ways: int,
    shots: int,
    queries: int,
    rng: np.random.Generator,
    *,
    tests: int = 0,
    classes: Iterable[int] | None = None,
    dtype: DTypeLike = np.float32,
    name: str = "episode",
) -> Node:
    """Node of one `ways`-way task: per class `shots` support, `queries` query and `tests` test samples.

    Classes are drawn at random out of `classes` (default: all) and renumbered 0 to ways - 1 in the order
    drawn. For meta-training give `queries`; at a target node, where the other samples must be for
    measurement only, give `tests` instead. Raises `InputError` if there are not enough classes
    with enough samples.

    Source: Vinyals et al. 2016 (episodes); mathematics.md §11.
    """
    for what, value, least in (
        ("ways", ways, 1),
        ("shots", shots, 1),
        ("queries", queries, 0),
        ("tests", tests, 0),
    ):
        if value < least:
            raise InputError(f"episode: expected {what} of at least {least}, got {value}")
    each = shots + queries + tests
    chosen = rng.choice(_usable(dataset, classes, ways, each), size=ways, replace=False)
    picks = np.stack([rng.choice(np.flatnonzero(dataset.y == c), each, replace=False) for c in chosen])
    index = picks.T.ravel()  # sample by sample through the classes: every part is balanced
    labels = np.tile(np.arange(ways, dtype=np.int64), each)
    return Node(name, dataset.x(index, dtype), labels, ways * shots, ways * queries)


def _usable(dataset: DataSet, classes: Iterable[int] | None, ways: int, each: int) -> list[int]:
    counts = dataset.counts()
    allowed = range(dataset.classes) if classes is None else sorted(set(classes))
    unknown = [c for c in allowed if not 0 <= c < dataset.classes]
    if unknown:
        raise InputError(f"episode: class {unknown[0]} is outside 0..{dataset.classes - 1} of {dataset.name}")
    usable = [c for c in allowed if counts[c] >= each]
    if len(usable) < ways:
        raise InputError(
            f"episode: {ways} classes with {each} samples each asked for, but {dataset.name} has "
            f"{len(usable)} such classes; ask for fewer ways, shots or queries"
        )
    return usable
