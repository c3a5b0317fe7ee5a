"""Nodes: parts are views of one array, and nothing unfit gets in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.data.node import Node, stratified_order
from refimpl.errors import DataError, InputError


def make(n=10, n_support=3, n_query=4, dtype=np.float32):
    x = np.arange(n * 4, dtype=dtype).reshape(n, 1, 2, 2)
    return Node("a", x, np.arange(n, dtype=np.int64) % 3, n_support, n_query)


def bad(pattern, *, x=None, y=None, n_support=1, n_query=0, error=DataError):
    x = np.ones((4, 2), np.float32) if x is None else x
    y = np.zeros(4, np.int64) if y is None else y
    with pytest.raises(error, match=pattern) as caught:
        Node("town-7", x, y, n_support, n_query)
    assert "\n" not in str(caught.value)
    assert "town-7" in str(caught.value)


def test_parts_are_consecutive_views_of_the_whole():
    node = make()
    assert [len(p.y) for p in (node.support, node.query, node.train, node.test)] == [3, 4, 7, 3]
    np.testing.assert_array_equal(np.concatenate([node.support.x, node.query.x, node.test.x]), node.x)
    for part in (node.support, node.query, node.train, node.test):
        assert np.shares_memory(part.x, node.x)
        assert np.shares_memory(part.y, node.y)
        assert part.x.flags.c_contiguous
        assert part.x.flags.writeable


def test_node_is_frozen_and_describes_itself():
    node = make()
    with pytest.raises(AttributeError):
        node.n_support = 5
    assert len(node) == 10
    assert node.classes == (0, 1, 2)
    assert "3 support, 4 query, 3 test" in repr(node)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_counted_and_located(value):
    x = np.ones((4, 2), np.float32)
    x[2, 1] = x[3, 0] = value
    bad(r"2 of 8 values .* first at position \(2, 1\)", x=x)


def test_empty_nodes_are_refused():
    bad("empty node", x=np.ones((0, 2), np.float32), y=np.zeros(0, np.int64), n_support=0)
    bad("empty node", x=np.ones((4, 0), np.float32))
    bad("no samples to learn from", n_support=0)


def test_wrong_arrays_are_refused():
    bad("float32 or float64 array, got a uint8", x=np.ones((4, 2), np.uint8))
    bad("got list", x=[[1.0]])
    bad("C-contiguous", x=np.ones((2, 4), np.float32).T)
    bad("int64", y=np.zeros(4, np.float64))
    bad("int64", y=np.zeros(4, np.int32))
    bad("int64", y=np.zeros((4, 1), np.int64))
    bad("4 samples but y 3", y=np.zeros(3, np.int64))
    bad("at least 0, got -2 at position 1", y=np.array([0, -2, 1, -1]))


def test_impossible_sizes_are_refused():
    bad("do not fit into 4", n_support=3, n_query=2)
    bad("n_query as a whole number", n_query=-1)
    bad("n_support as a whole number", n_support=1.5)


def test_astype_converts_once():
    node = make()
    assert node.astype(np.float32) is node
    double = node.astype("float64")
    assert double.x.dtype == np.float64
    assert (double.n_support, double.n_query) == (3, 4)
    np.testing.assert_array_equal(double.x, node.x)
    with pytest.raises(DataError):
        node.astype(np.int32)


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_uses_every_sample_once_and_stratifies(counts, data, seed):
    y = np.repeat(np.arange(len(counts)), counts)
    n = len(y)
    x = np.arange(n, dtype=np.float64)[:, None]
    support = data.draw(st.integers(1, n))
    query = data.draw(st.integers(0, n - support))
    node = Node.split(x, y, support=support, query=query, rng=np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(node.x[:, 0]), x[:, 0])
    np.testing.assert_array_equal(y[node.x[:, 0].astype(int)], node.y)
    assert (node.n_support, node.n_query, node.n_test) == (support, query, n - support - query)
    seen = np.bincount(node.support.y, minlength=len(counts))
    if support >= len(counts):
        assert seen.min() >= 1
    expected = np.array(counts) * support / n
    assert np.abs(seen - expected).max() <= len(counts)


def test_split_takes_fractions_and_leaves_the_rest_out():
    x, y = np.arange(40, dtype=np.uint8).reshape(20, 2), np.repeat([0, 1], 10)
    node = Node.split(x, y, support=0.25, query=5, test=0.3, rng=np.random.default_rng(1))
    assert (node.n_support, node.n_query, node.n_test) == (5, 5, 6)
    assert node.x.dtype == np.float32
    assert len(np.unique(node.x[:, 0])) == 16


def test_split_depends_only_on_the_generator():
    x, y = np.random.default_rng(0).random((30, 2)), np.arange(30) % 4
    a, b, c = (Node.split(x, y, support=8, rng=np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(a.x, b.x)
    assert not np.array_equal(a.x, c.x)


@pytest.mark.parametrize(
    ("kwargs", "pattern"),
    [
        ({"support": 5}, "only 4 given"),
        ({"support": 2, "query": 2, "test": 1}, "only 4 given"),
        ({"support": -1}, "support as a whole number"),
        ({"support": 1.5}, "support as a whole number"),
        ({"support": True}, "support as a whole number"),
        ({"support": 1, "test": "2"}, "test as a whole number"),
    ],
)
def test_split_refuses_sizes_that_do_not_fit(kwargs, pattern):
    with pytest.raises(InputError, match=pattern):
        Node.split(np.ones((4, 2)), np.zeros(4, int), rng=np.random.default_rng(0), **kwargs)


@pytest.mark.parametrize(
    ("x", "y", "pattern"),
    [
        (np.ones((4, 2)), np.zeros(3, int), "y has 3 labels"),
        (np.ones((4, 2)), np.zeros(4), "y as whole numbers"),
        (np.ones((4, 2)), np.zeros((4, 1), int), "y as whole numbers"),
        (np.ones((4, 2), complex), np.zeros(4, int), "real numbers"),
        ([[1.0], [1.0, 2.0]], [0, 1], "regular array"),
        (np.float64(3.0), [0], "shape"),
        (np.full((4, 2), np.nan), np.zeros(4, int), "NaN"),
        (np.ones((0, 2)), np.zeros(0, int), "empty node"),
    ],
)
def test_split_refuses_unfit_arrays(x, y, pattern):
    with pytest.raises(DataError, match=pattern):
        Node.split(x, y, support=1 if len(y) else 0, rng=np.random.default_rng(0))


def test_split_counts_samples_as_they_were_given():
    x, y = np.ones((20, 2)), np.zeros(20, int)
    x[13, 1], y[17] = np.inf, -3
    with pytest.raises(DataError, match=r"labels must be at least 0, got -3 at position 17"):
        Node.split(x, y, support=2, rng=np.random.default_rng(0))
    with pytest.raises(DataError, match=r"the first at position \(13, 1\)"):
        Node.split(x, np.abs(y), support=2, rng=np.random.default_rng(0))


@pytest.mark.parametrize("kind", [">f4", ">f8", ">f2", ">i4", "f2", "u1"])
def test_split_takes_numbers_of_any_kind_and_byte_order(kind):
    x, y = np.arange(12).reshape(6, 2), np.arange(6) % 2
    plain = Node.split(x.astype(float), y, support=2, rng=np.random.default_rng(0))
    node = Node.split(x.astype(kind), y.astype(">i2"), support=2, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(node.x, plain.x)
    np.testing.assert_array_equal(node.y, plain.y)
    assert node.x.dtype.isnative


def test_stratified_order_starts_with_one_sample_of_every_class():
    y = np.array([0] * 90 + [1] * 2 + [2] * 8)
    order = stratified_order(y, np.random.default_rng(3))
    assert set(y[order[:3]]) == {0, 1, 2}
    assert np.bincount(y[order[:50]], minlength=3)[0] in (44, 45, 46)
