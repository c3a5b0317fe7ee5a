"""Masks of tickets: counts and choices worked out by hand, files, comparisons, and other networks."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.errors import DataError, DivergenceError, InputError
from refimpl.federated.pruning.snip import best
from refimpl.fewshot.tickets.masks import (
    Mask,
    by_layer,
    choose,
    counts_in,
    hamming,
    load_mask,
    noise,
    overall,
    overlap,
    prunable,
    smart,
)
from refimpl.nn.zoo import network
from refimpl.rng import SeedTree

NET = network("conv4", (), (1, 16, 16), 2, widths=[2, 3, 2, 2])  # prunable: 18, 54, 54, 36
CONVS = [f"conv{i}.weight" for i in (1, 2, 3, 4)]


def mask(*rows):
    """A mask of layers a, b, ... with these bits."""
    return Mask({name: np.array(row, dtype=bool) for name, row in zip("abcd", rows, strict=False)})


def test_counts_by_hand():
    assert overall([10, 20], 0.8) == [6]
    assert overall([5], 0.5) == [3]  # 2.5 are pruned, which rounds to the even 2
    assert by_layer([10, 25], 0.8) == [2, 5]
    # q = 20, 12, 6, 2. Half of 32: 16*160/320 = 8, all of it; then 8*96/160 = 4.8, 3*48/64 = 2.25, the rest
    assert smart([8, 8, 8, 8], 0.5) == [8, 5, 2, 1]
    # Three quarters: 12 asked of 8; of the 16 left 9.6 asked of 8; of the 8 left 8*48/64 = 6, the rest 2
    assert smart([8, 8, 8, 8], 0.25) == [8, 8, 6, 2]
    assert smart([8, 8, 8, 8], 0.0) == [8, 8, 8, 8]


@pytest.mark.parametrize("sizes", [[576, 36864, 36864, 36864], [7, 1, 1, 900, 2], [1728] * 12])
@pytest.mark.parametrize("pruned", [0.0, 0.1, 0.6, 0.8, 0.9, 0.99])
def test_smart_ratios_follow_their_formula_and_add_up(sizes, pruned):
    """Against the formula with real numbers: min(1, c q), with c found by bisection."""
    found, total = smart(sizes, pruned), overall(sizes, pruned)[0]
    assert sum(found) == total
    n, rank = np.array(sizes), len(sizes) - np.arange(len(sizes))
    q, low, high = rank**2 + rank, 0.0, 1.0
    for _ in range(100):
        c = (low + high) / 2
        low, high = (c, high) if (np.minimum(1, c * q) * n).sum() < total else (low, c)
    assert np.abs(np.array(found) - np.minimum(1, high * q) * n).max() < len(sizes)
    assert (np.array(found) <= n).all()


def test_the_best_are_kept_and_of_equal_scores_the_first():
    assert best(np.array([1.0, 3.0, 2.0, 3.0, 2.0]), 3).tolist() == [False, True, True, True, False]
    assert best(np.zeros(4), 2).tolist() == [True, True, False, False]
    with pytest.raises(DivergenceError, match="not finite"):
        best(np.array([1.0, np.nan]), 1)


def test_global_and_layered_choices_differ_as_they_should():
    scores = np.zeros(NET.layout.size)
    for rank, slot in enumerate(prunable(NET.layout)):
        scores[slot.start : slot.stop] = 10 - rank + np.arange(slot.stop - slot.start) / 1000
    assert choose(NET.layout, scores, counts_in(NET.layout, "global", 0.8)).counts == [18, 14, 0, 0]
    layered = choose(NET.layout, scores, counts_in(NET.layout, "layers", 0.8))
    assert layered.counts == [4, 11, 11, 7]
    assert layered.layers["conv1.weight"].ravel().nonzero()[0].tolist() == [14, 15, 16, 17]
    assert layered.pruned == pytest.approx(1 - 33 / 162)


def test_random_masks_depend_on_the_seed_only_and_layers_are_independent():
    first, again, other = (choose(NET.layout, noise(NET.layout, SeedTree(seed)), [32]) for seed in (3, 3, 4))
    assert set(hamming(first, again).values()) == {0.0}
    assert max(hamming(first, other).values()) > 0
    assert sum(first.counts) == 32
    rows = noise(NET.layout, SeedTree(3))
    second, third = (rows[s.start : s.stop] for s in prunable(NET.layout)[1:3])
    assert (second != third).any()


def test_only_convolutions_are_pruned_and_shortcuts_are_not():
    assert [slot.name for slot in prunable(NET.layout)] == CONVS
    resnet = network("resnet12", (), (1, 16, 16), 2, widths=[2, 2, 2, 2])
    names = [slot.name for slot in prunable(resnet.layout)]
    assert len(names) == 12
    assert not any("shortcut" in name or name.startswith("fc") for name in names)
    with pytest.raises(InputError, match="no convolution to prune"):
        prunable(network("mlp", (), (1, 8, 8), 2).layout)


def test_a_mask_over_a_network_and_back_from_its_file(tmp_path):
    kept = choose(NET.layout, noise(NET.layout, SeedTree(0)), counts_in(NET.layout, "smart", 0.8))
    over = kept.over(NET.layout)
    views = NET.layout.views(over.astype(float))
    assert (~over).sum() == 162 - 32
    assert all((views[name] == kept.layers[name]).all() for name in CONVS)
    kept.save(tmp_path / "mask.npz")
    again = load_mask(tmp_path / "mask.npz")
    assert [*again.layers] == CONVS
    assert (again.over(NET.layout) == over).all()
    wide = network("conv4", (), (1, 16, 16), 2, widths=[2, 3, 2, 4])
    with pytest.raises(InputError, match=r"conv4\.weight is \(4, 2, 3, 3\) in the network, \(2, 2, 3, 3\)"):
        again.over(wide.layout)
    gated = network("conv4", ("conv2",), (1, 16, 16), 2, widths=[2, 3, 2, 2])  # the same backbone
    assert again.over(gated.layout)[gated.layout.phi].all()
    np.savez(tmp_path / "other.npz", conv1=np.zeros(3))
    with pytest.raises(DataError, match="expected a mask"):
        load_mask(tmp_path / "other.npz")


def test_overlap_and_distance_by_hand():
    a, b, c = mask([1, 1, 0, 0], [1, 0]), mask([1, 0, 1, 0], [1, 0]), mask([1, 1, 1, 1], [0, 1])
    assert overlap([a, b]) == {"a": 0.5, "b": 1.0}
    assert overlap([a, b, c]) == {"a": pytest.approx(1 / (8 / 3)), "b": 0.0}
    assert hamming(a, b) == {"a": 0.5, "b": 0.0}
    assert hamming(a, c) == {"a": 0.5, "b": 1.0}
