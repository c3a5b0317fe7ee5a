"""Partitions: disjoint nodes of exact sizes, or a refusal that says what is missing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.data import Classes, DataSet, Dirichlet, Episodes, Iid, Partition, load, make_nodes
from refimpl.data.catalog import source_of
from refimpl.data.deal import Rule, spread_sizes
from refimpl.data.partition import plan, pooled, statistics
from refimpl.errors import InputError, RefimplError
from refimpl.rng import SeedTree

# Class counts of the published sets (train and test together).
STOCKS = {
    "mnist": [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958],
    "cifar10": [6000] * 10,
    "cifar100": [100] * 100,  # the test part alone
    "digits": [178, 182, 177, 183, 181, 182, 181, 179, 174, 180],
}


def fake(counts, name="fake"):
    """A data set whose every image is its own number, so that samples can be recognised in nodes."""
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    number = np.arange(len(y))
    images = np.stack([number // 65536, number // 256 % 256, number % 256], axis=1).astype(np.uint8)
    names = tuple(str(c) for c in range(len(counts)))
    return DataSet(name, images[:, :, None, None], y, names, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def numbers(x):
    return (x.reshape(-1, 3) @ np.array([65536, 256, 1])).astype(int)


partitions = st.builds(
    Partition,
    rule=st.one_of(
        st.builds(Classes, st.integers(1, 5)),
        st.builds(Dirichlet, st.floats(0.01, 100.0)),
        st.just(Iid()),
    ),
    nodes=st.integers(1, 6),
    targets=st.integers(0, 3),
    sizes=st.none() | st.tuples(st.integers(1, 20), st.integers(20, 40)),
    test=st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    support=st.integers(1, 10) | st.sampled_from([0.2, 0.5, 1.0]),
)


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 90), min_size=1, max_size=8).filter(lambda c: sum(c) > 0),
    partition=partitions,
    seed=st.integers(0, 2**40),
)
def test_nodes_are_disjoint_exact_and_true_to_the_data(counts, partition, seed):
    data = fake(counts)
    try:
        train, target = make_nodes(data, partition, seed, np.float64)
    except InputError as error:
        message = str(error)
    else:
        message = ""
        assert (len(train), len(target)) == (partition.nodes, partition.targets)
        used = np.concatenate([numbers(node.x) for node in train + target])
        assert len(np.unique(used)) == len(used)
        np.testing.assert_array_equal(np.concatenate([n.y for n in train + target]), data.y[used])
        for node in train + target:
            assert node.n_test == (
                max(round(node.n_train * partition.test / (1 - partition.test)), 1) if partition.test else 0
            )
            if isinstance(partition.support, int):
                assert node.n_support == partition.support
            if isinstance(partition.rule, Classes):
                assert len(node.classes) == partition.rule.classes_per_node
        if partition.sizes is not None and partition.total > 1:
            sizes = [node.n_train for node in train + target]
            assert (min(sizes), max(sizes)) == partition.sizes
    assert "\n" not in message


@pytest.mark.parametrize("name", STOCKS)
@pytest.mark.parametrize("seed", range(25))
def test_default_sizes_fit_for_every_seed(name, seed):
    k = 5 if name == "cifar100" else 2
    stock = np.array(STOCKS[name])
    rng = SeedTree(seed).generator("partition")
    sizes = spread_sizes(*source_of("test", name).sizes, 20, rng)
    total = sizes + np.rint(sizes / 3).astype(int)
    counts = Classes(k).deal(stock, total, 4, rng)
    assert (counts.sum(axis=0) <= stock).all()
    np.testing.assert_array_equal(counts.sum(axis=1), total)
    assert ((counts > 0).sum(axis=1) == k).all()
    per_node = np.where(counts > 0, counts, -1)
    assert (per_node.max(axis=1) - np.where(counts > 0, counts, 10**9).min(axis=1) <= 1).all()
    used = (counts > 0).sum(axis=0)
    assert used.max() - used.min() <= 2  # balanced
    sets = [frozenset(np.flatnonzero(row)) for row in counts]
    assert not set(sets[:16]) & set(sets[16:])  # targets are new combinations


def test_digits_by_default():
    data = load("digits")
    found = statistics(data, plan(data, Partition(), 1))
    assert found.overlap == 0
    assert sum(found.train_sizes) + sum(found.test_sizes) == found.used > 0.9 * len(data)
    assert found.names[0] == "train-0"
    assert found.names[16:] == ("target-0", "target-1", "target-2", "target-3")
    assert all(len(c) == 2 for c in found.classes)
    assert sum(found.nodes_per_class) == 40
    train, target = make_nodes(data, seeds=1)
    assert tuple(n.n_train for n in train + target) == found.train_sizes
    assert all(set(n.support.y) == set(n.test.y) == set(n.classes) for n in train + target)


def test_statistics_would_see_an_overlap():
    data = load("digits")
    shares = plan(data, Partition(), 1)
    twin = shares[1]._replace(samples=np.concatenate([shares[1].samples[1:], shares[0].samples[:1]]))
    assert statistics(data, [shares[0], twin]).overlap == 1


def test_equal_seeds_equal_bytes():
    data = load("digits")
    first, again, other = (make_nodes(data, Partition(), s)[1][0] for s in (SeedTree(4), 4, 5))
    assert first.x.tobytes() == again.x.tobytes()
    assert first.x.tobytes() != other.x.tobytes()
    assert make_nodes(data, Partition(), 4, np.float64)[1][0].x.dtype == np.float64


@pytest.mark.parametrize("seed", range(10))
def test_support_holds_every_class_in_proportion(seed):
    """With test parts of 10 and 20 every class has 10 or 20 samples at a node: all are due equally many."""
    train, _ = make_nodes(fake([100] * 4), Partition(Classes(4), nodes=2, targets=0, sizes=(30, 60)), seed)
    for node in train:
        assert np.bincount(node.support.y).tolist() == [5, 5, 5, 5]


def test_support_as_a_share():
    partition = Partition(nodes=2, targets=0, sizes=(10, 20), support=0.5)
    train, _ = make_nodes(fake([60] * 4), partition)
    assert sorted(n.n_support for n in train) == [5, 10]
    assert all(n.n_support == n.n_query for n in train)


def test_a_table_of_sizes_is_taken_as_it_is():
    sizes = (7, 5, 30, 12, 9)
    train, target = make_nodes(fake([50] * 5), Partition(nodes=3, targets=2, sizes=sizes, support=3))
    assert tuple(n.n_train for n in train + target) == sizes


@pytest.mark.parametrize("seed", range(6))
def test_a_table_for_two_nodes_keeps_its_order(seed):
    for sizes in ((10, 20), (20, 10)):
        train, target = make_nodes(
            fake([50] * 5), Partition(nodes=1, targets=1, sizes=sizes, support=3), seed
        )
        assert (train[0].n_train, target[0].n_train) == sizes


def test_more_nodes_than_twenty_get_smaller_ones():
    data = load("digits")
    train, target = make_nodes(data, Partition(nodes=30, targets=10, support=5))
    assert max(n.n_train for n in train + target) == 38


def test_other_data_gets_sizes_that_fit():
    for partition in (Partition(), Partition(Classes(3)), Partition(Dirichlet(0.3)), Partition(Iid())):
        train, target = make_nodes(
            fake([130, 110, 120, 125, 115, 121]), Partition(**{**vars(partition), "support": 4})
        )
        assert len(train + target) == 20


def test_dirichlet_follows_alpha():
    stock, sizes = np.full(10, 2000), np.full(20, 300)
    concentrated = Dirichlet(0.05).deal(stock, sizes, 0, np.random.default_rng(0))
    even = Dirichlet(1e6).deal(stock, sizes, 0, np.random.default_rng(0))
    assert np.abs(even - 30).max() <= 1
    assert np.median((concentrated > 15).sum(axis=1)) <= 3


def test_dirichlet_uses_the_last_sample_when_asked_to():
    stock = np.array([50, 3, 0, 47])
    counts = Dirichlet(0.001).deal(stock, np.array([40, 30, 30]), 0, np.random.default_rng(2))
    np.testing.assert_array_equal(counts.sum(axis=0), stock)


def test_iid_matches_the_hypergeometric_mean():
    counts = Iid().deal(np.array([3000, 1000]), np.full(30, 100), 0, np.random.default_rng(0))
    spread = np.sqrt(100 * 0.75 * 0.25 / 30)
    assert abs(counts[:, 0].mean() - 75) < 5 * spread
    assert counts[:, 0].std() > 2  # not stratified: a real draw


@pytest.mark.parametrize(
    ("partition", "pattern"),
    [
        (
            Partition(nodes=2, targets=0, sizes=(90, 90), test=0.0),
            "180 samples in all, the data has 120: 60 are missing",
        ),
        (Partition(Iid(), nodes=2, targets=0, sizes=(90, 90)), "240 samples in all, .* 120 are missing"),
        (
            Partition(Classes(1), nodes=1, targets=0, sizes=(70,), test=0.0),
            "missing 30 of class [0-2];",
        ),
        (Partition(Classes(4), nodes=2, targets=1), "4 classes per node asked for, but there are 3"),
        (Partition(nodes=2, targets=0, sizes=(1, 10), test=0.0), "a node of 1 samples cannot have 2 classes"),
        (Partition(nodes=2, targets=0, sizes=(10, 20), support=11), "11 support samples .* only 10 training"),
    ],
)
def test_what_does_not_fit_is_refused(partition, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        make_nodes(fake([40, 40, 40]), partition)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"rule": "iid"}, "expected a rule, such as .*, got 'iid'"),
        ({"nodes": 0}, "nodes as a whole number of at least 1, got 0"),
        ({"nodes": 2.0}, "nodes as a whole number"),
        ({"targets": -1}, "targets as a whole number of at least 0"),
        ({"test": 1.0}, "test as a share"),
        ({"support": -1}, "support as a whole number"),
        ({"support": 1.5}, "support as a share"),
        ({"nodes": 6, "targets": 2, "folds": 3}, "3 folds of 2 target nodes must be all 6"),
        ({"nodes": 4, "targets": 2, "folds": 3, "fold": 3}, "fold below folds 3, got 3"),
        ({"nodes": 4, "targets": 2, "folds": 3, "target_sizes": (3, 4)}, "of one range of sizes"),
        ({"target_sizes": (0, 4)}, "the smallest target node as a whole number of at least 1"),
        ({"target_sizes": (5, 4)}, "the largest target node as a whole number of at least 5"),
        ({"nodes": 2, "targets": 1, "sizes": (9, 9, 9), "target_sizes": (3, 4)}, "exclude each other"),
        ({"sizes": (1, 2, 3)}, r"sizes as \(smallest, largest\)"),
        ({"sizes": (5, 2)}, r"sizes as \(smallest, largest\)"),
        ({"sizes": (0, 2)}, "sizes as a whole number of at least 1, got 0"),
        ({"sizes": ()}, r"got 0 numbers"),
    ],
)
def test_wrong_options_are_refused(options, pattern):
    with pytest.raises(InputError, match=pattern):
        Partition(**options)


def dealt(fold, **options):
    options = {"nodes": 6, "targets": 2, "sizes": (8, 12), "support": 3, "folds": 4, **options}
    return plan(fake([60] * 5), Partition(fold=fold, **options), 7)


def test_over_the_folds_every_node_is_a_target_once():
    runs = [dealt(fold) for fold in range(4)]
    tested = [share for run in runs for share in run[6:]]
    assert [share.name for share in tested] == [f"target-{number}" for number in range(8)]
    for run in runs:  # the same nodes in every fold, cut into parts alike
        assert [share.name for share in run[:6]] == [f"train-{number}" for number in range(6)]
        nodes = {(tuple(share.samples), share.n_support, share.n_query) for share in run}
        assert nodes == {(tuple(share.samples), share.n_support, share.n_query) for share in tested}


def test_no_two_nodes_share_a_set_of_classes_where_targets_rotate():
    for seed in range(20):
        partition = Partition(nodes=15, targets=5, sizes=(8, 12), support=3, folds=4)
        nodes = statistics(data := fake([60] * 10), plan(data, partition, seed))
        assert len(set(nodes.classes)) == 20
        assert min(nodes.nodes_per_class) >= 3  # of 4 on average: the exchange keeps classes even


def test_target_nodes_have_sizes_of_their_own():
    shares = dealt(0, targets=4, folds=1, target_sizes=(4, 5), test=0.5)
    sizes = [share.n_support + share.n_query for share in shares]
    assert sorted(sizes[:6]) == [8, 9, 10, 10, 11, 12]
    assert sorted(sizes[6:]) == [4, 4, 5, 5]
    assert [len(share.samples) for share in shares] == [2 * size for size in sizes]


def test_all_but_the_test_part_can_be_support():
    some, whole = (dealt(0, folds=1, support=support) for support in (3, 0))
    assert all(share.n_query == 0 < share.n_support for share in whole)
    for one, other in zip(some, whole, strict=True):
        assert one.n_support + one.n_query == other.n_support
        np.testing.assert_array_equal(one.samples, other.samples)


@pytest.mark.parametrize("classes", [0, 2.0, True])
def test_classes_per_node_must_be_a_number_of_classes(classes):
    with pytest.raises(InputError, match="classes_per_node as a whole number of at least 1"):
        Classes(classes)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, np.inf])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(InputError, match="concentration as a positive number"):
        make_nodes(fake([40, 40]), Partition(Dirichlet(alpha), 2, 0))


@pytest.mark.parametrize(
    "counts", [[[40, 0], [0, 39]], [[41, 0], [0, 40]], [[40], [40]], [[-1, 41], [40, 0]]]
)
def test_a_rule_that_deals_something_else_is_refused(counts):
    class Wrong(Rule):
        def deal(self, stock, sizes, targets, rng):
            return np.array(counts)

    with pytest.raises(
        InputError, match=r"expected Wrong\.deal to give each node as many samples as its size"
    ):
        make_nodes(fake([40, 40]), Partition(Wrong(), 2, 0, sizes=(40, 40), test=0.0))


@given(
    ways=st.integers(1, 5),
    shots=st.integers(1, 4),
    queries=st.integers(0, 3),
    tests=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_episodes_are_balanced_in_every_part(ways, shots, queries, tests, seed):
    data = fake([10, 12, 3, 11, 10, 10])
    node = Episodes(data, ways, shots, queries, tests).draw(np.random.default_rng(seed), np.float64)
    for part, each in ((node.support, shots), (node.query, queries), (node.test, tests)):
        assert np.bincount(part.y, minlength=ways).tolist() == [each] * ways
    used = numbers(node.x)
    assert len(np.unique(used)) == len(used)
    original = [set(data.y[used[node.y == label]]) for label in range(ways)]
    assert all(len(classes) == 1 for classes in original)
    assert len(set.union(*original)) == ways


def test_episodes_keep_to_the_classes_given():
    data = fake([10] * 6)
    episodes = Episodes(data, 2, 1, 1, classes=[1, 4, 5])
    for seed in range(10):
        node = episodes.draw(np.random.default_rng(seed), np.float64)
        assert set(data.y[numbers(node.x)]) <= {1, 4, 5}


@pytest.mark.parametrize(
    ("arguments", "options", "pattern"),
    [
        ((7, 1, 1), {}, "7 classes with 2 samples each asked for, but fake has 5"),
        ((2, 9, 1), {"classes": [0, 5]}, "but fake has 1 such classes"),
        ((2, 1, 1), {"classes": [0, 6]}, "class 6 is outside 0..5"),
        ((0, 1, 1), {}, "ways of at least 1"),
        ((2, 0, 1), {}, "shots of at least 1"),
        ((2, 1, -1), {}, "queries of at least 0"),
    ],
)
def test_impossible_episodes_are_refused(arguments, options, pattern):
    with pytest.raises(RefimplError, match=pattern):
        Episodes(fake([10, 10, 10, 10, 10, 1]), *arguments, **options)


@pytest.mark.parametrize("seed", range(20))
def test_training_and_target_nodes_each_see_every_class(seed):
    dataset, partition = load("digits"), Partition(nodes=10, targets=10, sizes=(40, 44), test=0.5)
    found = statistics(dataset, plan(dataset, partition, seed))
    for part in (found.classes[:10], found.classes[10:]):
        uses = np.bincount(np.concatenate(part), minlength=10)
        assert uses.min() >= 1  # twice each, but for an exchange that keeps class pairs apart
        assert uses.max() <= 3


def test_pools_are_disjoint_whatever_the_seed():
    data = load("digits")
    parts = {
        pool: [
            share.samples
            for seed in range(3)
            for share in plan(data, Partition(nodes=3, targets=2, sizes=(30, 40), pool=pool), seed)
        ]
        for pool in ("tuning", "report")
    }
    tuning, report = (set(np.concatenate(samples).tolist()) for samples in parts.values())
    assert not tuning & report
    whole = np.sort(np.concatenate([pooled(1000, "tuning", 0.3), pooled(1000, "report", 0.3)]))
    np.testing.assert_array_equal(whole, np.arange(1000))
    assert 250 < len(pooled(1000, "tuning", 0.3)) < 350
    with pytest.raises(InputError, match="pool"):
        pooled(10, "mine", 0.3)


def test_the_samples_of_all_nodes_are_views_of_one_array():
    data = fake([30] * 4)
    partition = Partition(Iid(), nodes=5, targets=2, sizes=(8, 8), support=3)
    shares, (train, targets) = plan(data, partition, 1), make_nodes(data, partition, 1)
    nodes = [*train, *targets]
    assert len({id(node.x.base) for node in nodes}) == 1
    assert nodes[0].x.base.nbytes == sum(node.x.nbytes for node in nodes)
    for node, share in zip(nodes, shares, strict=True):
        np.testing.assert_array_equal(numbers(node.x), share.samples)
        np.testing.assert_array_equal(node.y, data.y[share.samples])
