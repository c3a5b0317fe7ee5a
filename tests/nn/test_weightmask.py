"""Masks on single weights: what an objective under a mask is, on every path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.nn import zoo
from refimpl.nn.context import Context, Gating
from refimpl.nn.gradcheck import check_network
from refimpl.nn.layers import BatchNorm2d, Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import ReLU, Tanh
from refimpl.nn.pooling import Flatten, MaxPool2d
from refimpl.nn.predict import Predictor
from refimpl.nn.task import NetworkTask
from refimpl.nn.weightmask import WeightMask
from refimpl.nn.work import dense_work, executed_work
from refimpl.rng import SeedTree

PLAIN = (
    Conv2d("conv1", 1, 3, 3, padding=1, bias=False), BatchNorm2d("norm1", 3), ReLU(), MaxPool2d(2),
    Conv2d("conv2", 3, 4, 3, stride=2, padding=1), ReLU(), Flatten(), Linear("fc", 16, 3),
)  # fmt: skip
GATED = zoo.with_gates(
    (
        (Conv2d("conv1", 1, 3, 3, padding=1), ReLU()),
        (Conv2d("conv2", 3, 4, 3, padding=1), ReLU(), MaxPool2d(4)),
        (Flatten(), Linear("fc", 16, 3)),
    ),
    gates=("conv1",),
)
SMOOTH = (
    Conv2d("conv1", 1, 3, 3, padding=1), Tanh(), Conv2d("conv2", 3, 2, 1), Tanh(), Flatten(),
    Linear("fc", 128, 3),
)  # fmt: skip


def given(layers, dtype="float64", share=0.4, below=0.5):
    """A network on 8x8 images, a point, samples, labels, and a mask that also prunes the linear layer."""
    network, rng = Network("pruned", layers, (1, 8, 8)), np.random.default_rng(5)
    kept = np.ones(network.layout.size, bool)
    for slot in network.layout.slots:
        if slot.parameter.part == "theta" and slot.name.endswith(".weight") and len(slot.shape) > 1:
            kept[slot.start : slot.stop] = rng.random(slot.stop - slot.start) < share
    w = network.layout.initialise(SeedTree(3), dtype)
    x = rng.standard_normal((7, 1, 8, 8)).astype(dtype)
    return network, w, x, np.arange(7) % 3, WeightMask(network.layout, kept, below)


def gradient_of(task, w):
    """Loss, gradient and cost of a task's objective on all samples."""
    (objective,) = task.draw(np.random.default_rng(0), 1)
    gradient = np.full_like(w, np.nan)
    return objective(w, gradient), gradient, objective.measure()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layers", [PLAIN, GATED], ids=["plain", "gated"])
def test_all_paths_and_rules_give_the_same_bits(layers, dtype):
    network, w, x, y, mask = given(layers, dtype)
    found = []
    for below in (0.0, 0.5, 2.0):
        rule = replace(mask, sparse_below=below)
        for compiled in (True, False):
            task = NetworkTask(network, x, y, weights=rule, compiled=compiled)
            assert (task.program is not None) == compiled
            found.append(gradient_of(task, w))
    loss, gradient, cost = found[0]
    assert not gradient[~mask.kept].any()
    assert gradient[mask.kept].any()
    for other in found[1:]:
        assert other[0] == loss
        assert other[2] == cost
        np.testing.assert_array_equal(other[1], gradient)


def test_an_objective_under_a_mask_does_not_read_pruned_entries():
    network, w, x, y, mask = given(PLAIN)
    wild = np.where(mask.kept, w, np.nan)
    for compiled in (True, False):
        task = NetworkTask(network, x, y, weights=mask, compiled=compiled)
        (loss, gradient, _), (other, same, _) = gradient_of(task, w), gradient_of(task, wild)
        assert loss == other
        np.testing.assert_array_equal(gradient, same)
    np.testing.assert_array_equal(
        Predictor(network, wild, weights=mask)(x).logits, Predictor(network, mask.of(w))(x).logits
    )


def test_a_mask_that_keeps_everything_changes_nothing():
    network, w, x, y, mask = given(PLAIN, share=1.1)
    for compiled in (True, False):
        task = NetworkTask(network, x, y, compiled=compiled)
        plain, masked = gradient_of(task, w), gradient_of(replace(task, weights=mask), w)
        np.testing.assert_array_equal(plain[1], masked[1])
        assert plain[2] == masked[2]


def test_a_descent_stays_on_the_mask_and_equals_its_steps():
    network, w, x, y, mask = given(PLAIN, "float32")
    task = NetworkTask(network, x, y, train=("theta",), weights=mask)
    descent = task.descend_each([task], w, 0.1, 0.0, 3, [np.random.default_rng(0)]).of(0)
    by_hand = mask.of(w)
    for _ in range(3):
        by_hand -= np.float32(0.1) * gradient_of(task, by_hand)[1]
    np.testing.assert_array_equal(descent.w, by_hand)
    assert not descent.w[~mask.kept].any()


def test_gradients_agree_with_finite_differences():
    network, w, x, y, mask = given(PLAIN)
    context = Context(train=("theta",), weights=mask)
    errors = check_network(network, w, x, y, context, np.random.default_rng(1))
    assert max(error for _, error in errors) < 1e-6


def test_hessian_vector_products_stay_on_the_mask():
    network, w, x, y, mask = given(SMOOTH)
    v = np.random.default_rng(2).standard_normal(w.size)
    objective = NetworkObjective(network, x, y, Context(train=("theta",), weights=mask))
    product, plus, minus = objective.hessian_vector(w, v), np.empty_like(w), np.empty_like(w)
    assert not product[~mask.kept].any()
    objective(w + 1e-5 * v, plus)
    objective(w - 1e-5 * v, minus)
    np.testing.assert_allclose(product, (plus - minus) / 2e-5, rtol=0, atol=1e-7)


def test_kept_weights_are_what_a_convolution_costs():
    network, _, _, y, mask = given(SMOOTH)
    context = Context(train=("theta",), weights=mask)
    pruned = executed_work(network, {}, len(y), context)
    dense = dense_work(network, len(y), ("theta",))
    lost = [9 * 3, 3 * 2]
    for i, name in enumerate(("conv1.weight", "conv2.weight")):
        lost[i] -= int(mask.of_weight(name).sum())
    per_weight = 2 * 64 * len(y)
    assert dense.forward - pruned.forward == dense.weight_grad - pruned.weight_grad == per_weight * sum(lost)
    assert dense.input_grad - pruned.input_grad == per_weight * lost[1]


def test_masks_of_another_shape_are_refused():
    network = Network("small", PLAIN, (1, 8, 8))
    for kept in (np.ones(3, bool), np.ones(network.layout.size)):
        with pytest.raises(InputError, match="WeightMask: expected kept as booleans of shape"):
            WeightMask(network.layout, kept)


def test_gates_and_masks_meet_in_soft_mode_too():
    network, w, x, y, mask = given(GATED)
    results = [
        gradient_of(NetworkTask(network, x, y, Gating("soft"), weights=mask, compiled=compiled), w)
        for compiled in (True, False)
    ]
    np.testing.assert_array_equal(results[0][1], results[1][1])
