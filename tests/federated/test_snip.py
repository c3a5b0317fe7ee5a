"""Connection sensitivity: scores against finite differences in the mask, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.federated.pruning.snip import (
    channel_scores,
    keep_top,
    prune_channels,
    prune_weights,
    weight_scores,
)
from refimpl.nn import zoo
from refimpl.nn.context import Context
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten
from refimpl.rng import SeedTree

PLAIN, GATED = zoo.digits((3, 5), gates=()), zoo.digits((3, 5), gates=("conv1", "conv2"))


@pytest.fixture
def case():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((6, 1, 8, 8)), rng.integers(0, 10, 6)
    objective = NetworkObjective(PLAIN, x, y, Context(train=("theta",)))
    return PLAIN.layout.initialise(SeedTree(2), "float64"), objective


def slope(objective, w, entries):
    """dL/dm at m = 1 of a mask m multiplied onto the entries."""
    step, values = 1e-6, []
    for m in (1 + step, 1 - step):
        masked = w.copy()
        masked[entries] *= m
        values.append(objective.value(masked))
    return (values[0] - values[1]) / (2 * step)


def test_weight_scores_are_slopes_in_the_mask(case):
    w, objective = case
    scores = weight_scores(objective, w)
    for entry in np.random.default_rng(0).choice(w.size, 20, replace=False):
        assert scores[entry] == pytest.approx(abs(slope(objective, w, [entry])), abs=1e-8)


def test_channel_scores_are_slopes_in_a_mask_on_the_channel(case):
    w, objective = case
    for layer, scores in zip(("conv1", "conv2"), channel_scores(GATED, objective, w), strict=True):
        weight, bias = (PLAIN.layout.by_name[f"{layer}.{kind}"] for kind in ("weight", "bias"))
        rows = np.arange(weight.start, weight.stop).reshape(scores.size, -1)
        for channel, score in enumerate(scores):
            entries = [*rows[channel], bias.start + channel]
            assert score == pytest.approx(abs(slope(objective, w, entries)), abs=1e-7)


def test_channels_without_a_bias_are_scored_by_their_weights():
    def network(gates):
        blocks = ((Conv2d("conv", 1, 3, 3, bias=False), ReLU()), (Flatten(),), (Linear("fc", 3 * 36, 2),))
        return Network("bias-free", zoo.with_gates(blocks, gates), (1, 8, 8))

    rng, plain = np.random.default_rng(1), network(())
    x, y = rng.standard_normal((6, 1, 8, 8)), rng.integers(0, 2, 6)
    w = plain.layout.initialise(SeedTree(2), "float64")
    objective = NetworkObjective(plain, x, y, Context(train=("theta",)))
    (scores,) = channel_scores(network(("conv",)), objective, w)
    for channel, score in enumerate(scores):
        entries = np.arange(9 * channel, 9 * channel + 9)
        assert score == pytest.approx(abs(slope(objective, w, entries)), abs=1e-7)


def test_keep_top_keeps_the_share_and_breaks_ties_by_index():
    assert keep_top(np.array([1.0, 3.0, 2.0, 3.0, 0.0]), 0.5).tolist() == [False, True, True, True, False]
    assert keep_top(np.zeros(4), 0.5).tolist() == [True, True, False, False]
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(InputError, match="share to keep"):
            keep_top(np.ones(3), share)


def test_pruned_channels_are_closed_for_every_input_and_skipped(case):
    w, objective = case
    pruned = prune_channels(GATED, objective, w, keep=0.5)
    logits, trace = GATED.forward(pruned, objective.x)
    masks = GATED.masks(trace)
    open_channels = np.concatenate([masks["conv1.gate"], masks["conv2.gate"]], axis=1)
    assert (open_channels == open_channels[0]).all()
    assert open_channels[0].sum() == 4  # half of 8
    best = keep_top(np.concatenate(channel_scores(GATED, objective, w)), 0.5)
    np.testing.assert_array_equal(open_channels[0], best)
    zeroed = w.copy()
    for layer, mask in (("conv1", masks["conv1.gate"][0]), ("conv2", masks["conv2.gate"][0])):
        for kind in ("weight", "bias"):
            PLAIN.layout.views(zeroed)[f"{layer}.{kind}"][~mask] = 0
    expected, _ = PLAIN.forward(zeroed, objective.x)
    np.testing.assert_array_equal(logits, expected)


def test_prune_weights_keeps_biases_and_the_share(case):
    w, objective = case
    mask = prune_weights(PLAIN, objective, w, keep=0.25)
    named = PLAIN.layout.views(mask.astype(np.float64))
    weights = np.concatenate([v.ravel() for name, v in named.items() if name.endswith("weight")])
    assert weights.sum() == np.ceil(0.25 * weights.size)
    assert all(v.all() for name, v in named.items() if name.endswith("bias"))
