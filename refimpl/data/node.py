"""A node of the federation: samples in three disjoint parts, checked once and viewed without copies.

Samples lie in one array in the order [support | query | test]; `train` is support and query together.
Adaptation is given `support`, training is given `train`, and only the final measurement is given `test`,
so nothing adapts to test data by accident.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from refimpl.data.dataset import check_finite
from refimpl.errors import DataError, InputError
from refimpl.shares import nearest

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]


class Samples(NamedTuple):
    """Inputs x (n, ...) and labels y (n,) of one part of a node: views, never copies."""

    x: Floats
    y: Labels


@dataclass(frozen=True, eq=False)
class Node:
    """One node's samples, ordered [support | query | test].

    name: what messages and tables call it; x (n, ...) float32 or float64, C-contiguous and finite; y (n,)
    int64, every label at least 0; `n_support` + `n_query` of the samples are for learning, the rest for
    testing.
    Raises `DataError` naming the node for anything else, and for an empty node.

    Source: mathematics.md §11.
    """

    name: str
    x: Floats
    y: Labels
    n_support: int
    n_query: int

    def __post_init__(self) -> None:
        who = f"node {self.name!r}"
        _check_arrays(who, self.x, self.y)
        check_finite(who, "values in x", self.x)
        _check_sizes(who, len(self.y), self.n_support, self.n_query)

    @classmethod
    def split(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        *,
        support: int | float,
        query: int | float = 0,
        test: int | float | None = None,
        rng: np.random.Generator,
        name: str = "node",
    ) -> "Node":
        """Node from a user's own x (n, ...) and y (n,), shuffled by `rng` and cut into the three parts.

        A size is a whole number of samples or a fraction of n below 1; `test` defaults to all other
        samples, and samples beyond the three sizes are left out. The order is class-stratified: any
        leading stretch holds the classes in their overall proportions, as nearly as whole samples
        allow, and at least one of each class once it is long enough; so support sees every class.
        Whole-number or half-precision x becomes float32. Raises `DataError` (bad samples) or
        `InputError` (sizes that exceed the samples).
        """
        who = f"node {name!r}"
        samples, labels = _as_floats(who, _as_array(who, "x", x)), _as_array(who, "y", y)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(f"{who}: expected y as whole numbers of shape (n,), got {_kind(labels)}")
        labels = labels.astype(np.int64)
        if samples.ndim == 0 or len(samples) != len(labels):
            raise DataError(f"{who}: x has shape {samples.shape} but y has {len(labels)} labels")
        _check_labels(who, labels)  # before they are shuffled, so that the positions are the user's
        check_finite(who, "values in x", samples)
        n = len(labels)
        n_support, n_query = _count(who, "support", support, n), _count(who, "query", query, n)
        n_test = n - n_support - n_query if test is None else _count(who, "test", test, n)
        wanted = n_support + n_query + n_test
        if n_test < 0 or wanted > n:
            raise InputError(
                f"{who}: {n_support} support + {n_query} query + {max(n_test, 0)} test samples asked for, "
                f"but only {n} given; ask for less"
            )
        order = stratified_order(labels, rng)[:wanted]
        return cls(name, np.ascontiguousarray(samples[order]), labels[order], n_support, n_query)

    @property
    def support(self) -> Samples:
        """The samples adaptation may use."""
        return self._part(0, self.n_support)

    @property
    def query(self) -> Samples:
        """The remaining samples for learning (the query set of few-shot episodes)."""
        return self._part(self.n_support, self.n_train)

    @property
    def train(self) -> Samples:
        """Support and query: everything the node may learn from."""
        return self._part(0, self.n_train)

    @property
    def test(self) -> Samples:
        """The held-out samples: for measurement only."""
        return self._part(self.n_train, len(self.y))

    @property
    def n_train(self) -> int:
        """Number of samples the node may learn from."""
        return self.n_support + self.n_query

    @property
    def n_test(self) -> int:
        """Number of held-out samples."""
        return len(self.y) - self.n_train

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that occur at this node, ascending."""
        return tuple(int(c) for c in np.unique(self.y))

    def astype(self, dtype: DTypeLike) -> "Node":
        """This node with x as float32 or float64 (itself if x has that type already)."""
        if self.x.dtype == np.dtype(dtype):
            return self
        return Node(self.name, self.x.astype(dtype), self.y, self.n_support, self.n_query)

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        parts = f"{self.n_support} support, {self.n_query} query, {self.n_test} test"
        return f"Node({self.name!r}, {parts}, x {self.x.shape[1:]} {self.x.dtype}, classes {self.classes})"

    def _part(self, start: int, stop: int) -> Samples:
        return Samples(self.x[start:stop], self.y[start:stop])


def stratified_order(y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.intp]:
    """A permutation of 0..n-1, random within each class of y (n,) and evenly interleaved between classes.

    First comes one sample of every class, in random class order; then the rest, sorted by
    (j + offset_k) / c_k for sample j of the c_k samples of class k, the offsets spread over (0, 1).
    So the first samples contain every class if there are at least as many of them as classes, and if
    the order is cut into parts, each part has the classes in their overall proportions, as nearly as
    whole samples allow.
    """
    order = rng.permutation(len(y))
    _, group, counts = np.unique(y[order], return_inverse=True, return_counts=True)
    offset = ((rng.permutation(len(counts)) + 0.5) / max(len(counts), 1))[group]
    by_group = np.argsort(group, kind="stable")
    rank = np.empty(len(y), dtype=np.intp)  # the number of earlier samples of the same class
    rank[by_group] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = np.where(rank == 0, offset - 1.0, (rank + offset) / counts[group])
    return order[np.argsort(keys, kind="stable")]


def _check_arrays(who: str, x: object, y: object) -> None:
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
        raise DataError(
            f"{who}: expected x as a float32 or float64 array, got {_kind(x)}; use Node.split or x.astype"
        )
    if x.ndim < 1 or not x.flags.c_contiguous:
        raise DataError(
            f"{who}: expected a C-contiguous x of shape (n, ...), got shape {x.shape}; "
            "use numpy.ascontiguousarray"
        )
    if not isinstance(y, np.ndarray) or y.dtype != np.int64 or y.ndim != 1:
        raise DataError(f"{who}: expected y as an int64 array of shape (n,), got {_kind(y)}")
    if len(x) != len(y):
        raise DataError(f"{who}: x holds {len(x)} samples but y {len(y)} labels")
    if x.size == 0:
        raise DataError(f"{who}: empty node: x has shape {x.shape}; a node needs at least one sample")
    _check_labels(who, y)


def _check_labels(who: str, y: Labels) -> None:
    if y.size and y.min() < 0:
        first = int(np.argmax(y < 0))
        raise DataError(f"{who}: labels must be at least 0, got {int(y[first])} at position {first}")


def _check_sizes(who: str, n: int, n_support: int, n_query: int) -> None:
    for what, size in (("n_support", n_support), ("n_query", n_query)):
        if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 0:
            raise DataError(f"{who}: expected {what} as a whole number of at least 0, got {size!r}")
    if n_support + n_query > n:
        raise DataError(f"{who}: {n_support} support + {n_query} query samples do not fit into {n}")
    if n_support + n_query == 0:
        raise DataError(f"{who}: no samples to learn from: support and query are both empty")


def _as_floats(who: str, array: NDArray[Any]) -> Floats:
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype.kind in "biu" or array.dtype == np.float16:
        return array.astype(np.float32)
    raise DataError(f"{who}: expected x as real numbers, got {_kind(array)}")


def _as_array(who: str, what: str, value: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"{who}: {what} is not a regular array (rows of unequal length?)") from error


def _count(who: str, what: str, size: int | float, n: int) -> int:
    """`size` as a number of samples: a whole number, or a fraction below 1 for the nearest share of n."""
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 0:
        return int(size)
    if isinstance(size, (float, np.floating)) and 0.0 <= size < 1.0:
        return nearest(size, n)
    raise InputError(
        f"{who}: expected {what} as a whole number of samples or a fraction below 1, got {size!r}"
    )


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return f"{type(value).__name__}"
