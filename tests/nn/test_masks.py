"""Measures of masks: hand-made masks with known values, and what a node's report says of them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from refimpl.federated.adapt import AdaptSettings, report_node
from refimpl.nn import zoo
from refimpl.nn.context import Gating
from refimpl.nn.masks import class_information, conditional_share, frozen_gates, node_mask
from refimpl.nn.predict import predict
from refimpl.nn.starts import Calibrated
from refimpl.rng import SeedTree

# channels: always open, always closed, open for class 1 alone, open for every other sample
MASK = np.array([[1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=bool)
Y = np.array([0, 0, 1, 1])


def test_conditional_share_counts_channels_that_differ_between_samples():
    assert conditional_share(MASK) == 0.5
    assert conditional_share(MASK[:1]) == 0
    assert conditional_share(MASK[:, :2]) == 0


def test_class_information_of_known_channels():
    assert [class_information(MASK[:, [c]], Y) for c in range(4)] == [0, 0, 1, 0]  # one bit, or none
    assert class_information(MASK, Y) == 0.25
    assert class_information(MASK, np.array([7, 7, 7, 7])) == 0
    part = class_information(np.array([[1], [0], [0], [0]], dtype=bool), Y)  # H(1/4) - H(1/2)/2
    assert part == pytest.approx(2 - 0.75 * math.log2(3) - 0.5)
    three = np.eye(3, dtype=bool)
    assert class_information(three, np.arange(3)) == pytest.approx(math.log2(3) - 2 / 3)  # H(1/3)


def gated(seed=0):
    network = zoo.digits((3, 4), gates=("conv1", "conv2"))
    w = network.layout.initialise(SeedTree(seed), "float64")
    return network, Calibrated(gate_a2=0.5, gate_margin=0.0).begin(network, w, [X])


X = np.random.default_rng(0).random((30, 1, 8, 8))


def test_frozen_gates_open_what_most_samples_open():
    network, w = gated()
    mask = node_mask(network, w, X, Gating())
    assert 0 < conditional_share(mask) <= 1
    frozen = node_mask(network, frozen_gates(network, w, mask), X + 1, Gating())
    np.testing.assert_array_equal(frozen, np.tile(mask.mean(axis=0) > 0.5, (30, 1)))
    halves = frozen_gates(network, w, np.array([[1] * 7, [0] * 7], dtype=bool))
    assert not node_mask(network, halves, X, Gating()).any()  # half of the samples are not most


def test_a_report_has_the_measures_of_the_adapted_model():
    network, w = gated()
    y, settings = np.arange(30) % 2, AdaptSettings(0.01, 0.01, 0)
    report = report_node("n", network, w, (X[:10], y[:10]), (X[10:], y[10:]), settings)
    mask = node_mask(network, w, X, Gating())
    assert report.conditional_share == conditional_share(mask[10:])
    assert report.class_information == class_information(mask[10:], y[10:])
    logits = predict(network, frozen_gates(network, w, mask[:10]), X[10:]).logits
    assert report.accuracy_frozen == (logits.argmax(axis=1) == y[10:]).mean()


def test_nothing_is_said_without_gates_or_of_models_that_are_not_finite():
    network, w = gated()
    y, settings = np.arange(30) % 2, AdaptSettings(0.0, 0.0, 0)
    plain = zoo.digits((3, 4), gates=())
    for net, point in ((plain, plain.layout.initialise(SeedTree(0))), (network, np.full_like(w, np.nan))):
        x = X.astype(point.dtype)
        report = report_node("n", net, point, (x, y), (x, y), settings)
        assert math.isnan(report.conditional_share)
        assert math.isnan(report.accuracy_frozen)
    soft = replace(settings, gating=Gating("soft"))
    assert report_node("n", network, w, (X, y), (X, y), soft).conditional_share > 0
