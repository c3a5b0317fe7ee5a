"""Shares as counts: exact for the decimal number that is written, everywhere a share becomes a count."""

from fractions import Fraction

import numpy as np
import pytest

from refimpl.data import Node, Partition
from refimpl.data.dataset import DataSet
from refimpl.data.deal import Iid
from refimpl.data.partition import plan
from refimpl.federated.pruning.snip import keep_top
from refimpl.shares import at_least, at_most, nearest


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_whole_products_are_whole_however_they_are_rounded(hundredths):
    share = hundredths / 100
    for whole in (100, 300, 12_300):
        count = hundredths * whole // 100
        assert at_most(share, whole) == nearest(share, whole) == at_least(share, whole) == count


def test_what_is_not_whole_is_rounded_as_the_name_says():
    assert (at_most(0.55, 99), nearest(0.55, 99), at_least(0.55, 99)) == (54, 54, 55)
    assert [nearest(0.5, whole) for whole in (1, 3, 5)] == [0, 2, 2]  # halves go to the even number
    assert nearest(0.145, 100) == 14  # 14.5, though the binary numbers give 14.499999999999998
    assert nearest(0.155, 100) == 16
    assert at_least(1e-05, 100_000) == 1
    assert at_least(np.float32(0.55), 100) == at_least(np.float64(0.55), 100) == 55
    assert at_most(Fraction(1, 3), 9) == 3


@pytest.mark.parametrize(
    ("many", "keep", "count"), [(100, 0.55, 55), (100, 0.07, 7), (50, 0.14, 7), (10, 1, 10)]
)
def test_pruning_keeps_no_more_than_the_share(many, keep, count):
    assert keep_top(np.arange(many, dtype=float), keep).sum() == count


def plain_data(size: int) -> DataSet:
    images = np.zeros((size, 1, 2, 2), dtype=np.uint8)
    return DataSet("plain", images, np.arange(size, dtype=np.int64) % 2, ("even", "odd"))


@pytest.mark.parametrize(
    ("size", "share", "count"), [(18, 0.1, 2), (93, 0.07, 7), (9, 0.6, 14), (58, 0.2, 14)]
)
def test_nodes_hold_out_the_share(size, share, count):
    (node,) = plan(plain_data(200), Partition(Iid(), 1, 0, sizes=(size,), test=share, support=1))
    assert len(node.samples) - size == count


@pytest.mark.parametrize(
    ("size", "share", "count"), [(75, 0.14, 10), (90, 0.35, 32), (110, 0.55, 60), (45, 0.7, 32)]
)
def test_support_as_a_share_goes_to_the_even_half(size, share, count):
    (node,) = plan(plain_data(200), Partition(Iid(), 1, 0, sizes=(size,), test=0.0, support=share))
    assert node.n_support == count
    x, y = np.zeros((size, 3)), np.arange(size) % 2
    assert Node.split(x, y, support=share, rng=np.random.default_rng(0)).n_support == count
