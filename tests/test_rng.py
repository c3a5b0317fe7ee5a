"""Streams are functions of (seed, purpose, round, node) and of nothing else."""

from __future__ import annotations

import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

import refimpl
from refimpl.errors import InputError
from refimpl.rng import SeedTree

purposes = st.text(min_size=0, max_size=12)
numbers = st.integers(0, 2**31)


def draws(seed, *key, count=8):
    return SeedTree(seed).generator(*key).integers(0, 2**63, count).tolist()


@given(st.integers(0, 2**128), purposes, numbers, numbers)
@examples(50)
def test_the_same_key_gives_the_same_numbers(seed, purpose, round_, node):
    assert draws(seed, purpose, round_, node) == draws(seed, purpose, round_, node)


KEY = st.tuples(st.integers(0, 2**70), st.sampled_from(("init", "batch", "noise", "")), numbers, numbers)


@given(KEY, KEY)
@examples(200)
def test_different_keys_give_different_numbers(one, other):
    assert (draws(*one) == draws(*other)) == (one == other)


@pytest.mark.parametrize("position", range(4))
def test_every_part_of_the_key_counts(position):
    keys = [[5, "batch", 3, 2], [5, "batch", 3, 2]]
    keys[1][position] = "init" if position == 1 else keys[1][position] + 1
    assert draws(*keys[0]) != draws(*keys[1])


def test_the_recipe_can_be_followed_elsewhere():
    """PCG64 seeded by SeedSequence((seed, CRC-32 of the purpose, round, node)); printed by plain NumPy:

    np.random.Generator(np.random.PCG64(np.random.SeedSequence((7, 0xF80B52D4, 3, 2)))).integers(0, 2**32, 3)
    """
    got = SeedTree(7).generator("batch", 3, 2).integers(0, 2**32, 3).tolist()
    assert got == [3974935439, 994890553, 2059922755]


def test_round_and_node_cannot_be_exchanged():
    assert draws(0, "batch", 1, 2) != draws(0, "batch", 2, 1)
    assert draws(1, "batch", 0, 2) != draws(2, "batch", 0, 1)


def test_order_of_asking_does_not_matter():
    tree, nodes = SeedTree(9), range(16)

    def ask(node):
        return tree.generator("batch", 4, node).random(3).tolist()

    forwards = {node: ask(node) for node in nodes}
    backwards = {node: ask(node) for node in reversed(nodes)}
    with ThreadPoolExecutor(4) as pool:
        threaded = dict(zip(nodes, pool.map(ask, nodes), strict=True))
    assert forwards == backwards == threaded


def test_drawing_from_one_stream_leaves_the_others_alone():
    tree = SeedTree(0)
    first = tree.generator("batch", 0, 0)
    first.random(1000)
    assert tree.generator("batch", 0, 1).random() == SeedTree(0).generator("batch", 0, 1).random()
    assert tree.generator("batch", 0, 0).random() != first.random()


def test_neighbouring_streams_are_uncorrelated():
    """Of 10 streams of 4000 normal numbers, no pair correlates beyond five standard deviations."""
    tree = SeedTree(0)
    rows = [
        tree.generator("noise", r, n).standard_normal(4000) for r, n in itertools.product(range(2), range(5))
    ]
    correlation = np.corrcoef(rows) - np.eye(10)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_no_two_purposes_of_the_package_share_a_stream():
    """Purposes are hashed to 32 bits: the words in use must not collide."""
    words = purposes_in_use()
    assert {"init"} <= words
    assert len({tuple(draws(0, word)) for word in words}) == len(words)


def purposes_in_use() -> set[str]:
    sources = (path.read_text(encoding="utf-8") for path in Path(refimpl.__file__).parent.rglob("*.py"))
    return {word for text in sources for word in re.findall(r"\.generator\(\s*f?\"([^\"]+)\"", text)}


def test_seed_trees_compare_by_seed():
    assert SeedTree(3) == SeedTree(3) != SeedTree(4)
    assert draws(3, "init") == draws(np.int64(3), "init")


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None, np.float64(2)])
def test_a_seed_is_a_non_negative_whole_number(seed):
    with pytest.raises(InputError, match="expected a non-negative whole number as seed"):
        SeedTree(seed)
