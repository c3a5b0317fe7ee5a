"""Class splits of few-shot learning, and episodes whose classes include turned images."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.data import DataSet, Episodes, class_split, load
from refimpl.data.sets.cifar import Cifar100
from refimpl.data.sets.omniglot import Omniglot
from refimpl.errors import DataError, InputError

# CIFAR-100's classes in the order of their labels are sorted by name; these are CIFAR-FS's test classes.
CIFAR_FS_TEST = [2, 5, 8, 21, 34, 42, 46, 58, 60, 62, 69, 70, 77, 83, 84, 86, 94, 95, 98, 99]


def fake(classes=10, each=6, shape=(1, 3, 3), name="fake"):
    """Every image has a number of its own in one corner, and its class in another."""
    y = np.repeat(np.arange(classes), each)
    images = np.zeros((len(y), *shape))
    images[:, 0, 0, 0], images[:, 0, 0, -1] = np.arange(len(y)) + 1, -1 - y
    names = tuple(map(str, range(classes)))
    return DataSet(name, images, y, names, scale=1.0)


@pytest.mark.parametrize(("source", "sizes"), [(Omniglot, (1028, 172, 423)), (Cifar100, (64, 16, 20))])
def test_published_splits_have_their_published_sizes(source, sizes):
    split = class_split(fake(sum(sizes), 1, name=source.name))
    assert tuple(map(len, split[:3])) == sizes
    assert sorted(sum(split[:3], ())) == list(range(sum(sizes)))
    assert split.origin == source.class_parts[1]


def test_cifar_fs_tests_on_its_own_classes():
    assert [c for c, letter in enumerate(Cifar100.class_parts[0]) if letter == "E"] == CIFAR_FS_TEST


def test_a_set_without_a_split_gets_a_fixed_one_of_disjoint_parts():
    split, again = class_split(load("digits")), class_split(fake(10))
    assert split == again
    assert tuple(map(len, split[:3])) == (6, 2, 2)
    assert sorted(sum(split[:3], ())) == list(range(10))


def test_a_split_of_half_a_data_set_is_refused():
    with pytest.raises(DataError, match=r"expected all 1623 classes .* found 964; fetch the missing files"):
        class_split(fake(964, 1, name="omniglot"))


def test_turned_images_are_classes_of_their_own():
    data, seen = fake(3), set()
    episodes = Episodes(data, 5, 1, 2, classes=[0, 2], turned=True)
    assert len(episodes.kinds) == 8
    corners = [(0, 0), (2, 0), (2, 2), (0, 2)]  # of the upper left one after 0 to 3 quarter turns to the left
    for seed in range(30):
        node = episodes.draw(np.random.default_rng(seed), np.float64)
        assert np.bincount(node.y).tolist() == [3] * 5
        for label in range(5):
            images = node.x[node.y == label, 0]
            turn = next(t for t, (i, j) in enumerate(corners) if images[0, i, j] > 0)
            back = np.rot90(images, -turn, axes=(1, 2))
            numbers = back[:, 0, 0].astype(int) - 1
            assert len(set(numbers)) == 3
            assert set(data.y[numbers]) == {int(-1 - back[0, 0, 2])}
            seen.add((int(data.y[numbers[0]]), turn))
    assert seen == {(c, turn) for c in (0, 2) for turn in range(4)}


def test_only_square_images_can_be_turned():
    with pytest.raises(InputError, match="3x4 pixels cannot be turned"):
        Episodes(fake(shape=(1, 3, 4)), 2, 1, 1, turned=True)


def test_labels_follow_the_order_drawn_and_not_the_order_of_classes():
    data = fake()
    orders = {
        tuple(data.y[node.x[:2, 0, 0, 0].astype(int) - 1])
        for node in (Episodes(data, 2, 1, 1).draw(np.random.default_rng(s)) for s in range(40))
    }
    assert {a < b for a, b in orders} == {True, False}
