"""Whatever reaches objectives and predictions is made tidy or refused: vectors, samples, labels, masks."""

from __future__ import annotations

import numpy as np
import pytest
from awkward import AWKWARD, read_only, refuses, strided
from checks import assert_same_bits

from refimpl.errors import InputError
from refimpl.federated.adapt import evaluate
from refimpl.nn import predict as predict_module
from refimpl.nn import zoo
from refimpl.nn.context import Context, Gating
from refimpl.nn.hessian import hessian_vector
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.predict import open_channels, predict
from refimpl.nn.task import NetworkTask
from refimpl.nn.work import executed_work
from refimpl.rng import SeedTree

DIGITS = zoo.digits((2, 3))
W = DIGITS.layout.initialise(SeedTree(0))
X = np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)
Y = np.array([0, 3, 9, 1])


def objective(kind):
    gating = Gating("gumbel" if "gumbel" in kind else "hard")
    task = NetworkTask(DIGITS, X, Y, gating, compiled="layers" not in kind)
    (found,) = task.draw(np.random.default_rng(0), 1)
    return found


@pytest.mark.parametrize("kind", ["compiled", "compiled, gumbel", "layers", "layers, gumbel"])
def test_objectives_refuse_vectors_that_do_not_fit(kind):
    loss_at = objective(kind)
    memory = np.full(len(W) + 1, 7, np.float32)
    for wrong in (
        memory[:-2],
        memory,
        np.zeros(len(W)),
        strided(W),
        read_only(W),
        W[None].copy(),
        W.tolist(),
    ):
        refuses(lambda wrong=wrong: loss_at(W, wrong))
        refuses(lambda wrong=wrong: loss_at(wrong, np.empty_like(W)))
        refuses(lambda wrong=wrong: loss_at.hessian_vector(W, wrong))
    assert (memory == 7).all()
    assert np.isfinite(loss_at(W, memory[:-1]))
    assert memory[-1] == 7


def test_a_descent_starts_from_any_vector_of_the_right_kind():
    task = NetworkTask(DIGITS, X, Y)

    def end(w):
        return task.descend_each([task], w, 0.1, 1.0, 2, [np.random.default_rng(0)]).of(0).w

    expected = end(W)
    for form in AWKWARD.values():
        assert_same_bits(end(form(W)), expected)
    for wrong in (W[:-1].copy(), W.astype(float), W.astype(int)):
        refuses(lambda wrong=wrong: end(wrong))


def test_samples_and_labels_may_lie_in_any_way():
    expected, gradient = NetworkObjective(DIGITS, X, Y)(W, np.empty_like(W)), np.empty_like(W)
    for form in AWKWARD.values():
        assert NetworkObjective(DIGITS, form(X), form(Y))(W, gradient) == expected
        assert_same_bits(predict(DIGITS, W, form(X)).logits, DIGITS.forward(W, X)[0])


@pytest.mark.parametrize("call", [predict, open_channels, lambda network, w, x: network.forward(w, x)])
def test_samples_of_another_kind_are_refused(call):
    for wrong in (X[:0], X[:, 0], X.astype(float), X.astype(np.float16), X.astype(int), X[..., None]):
        refuses(lambda wrong=wrong: call(DIGITS, W, wrong))
    refuses(lambda: call(DIGITS, W.tolist(), X))


def test_second_derivatives_check_their_samples_and_labels():
    plain = zoo.digits((2, 3), gates=(), activation="tanh")
    w, context = plain.layout.initialise(SeedTree(0)), Context(train=("theta",))
    expected = hessian_vector(plain, w, w, X, Y, context)
    assert_same_bits(hessian_vector(plain, w, w, np.asfortranarray(X), read_only(Y), context), expected)
    for labels in (Y + 1, Y - 1, Y[:-1], Y.astype(float)):
        refuses(lambda labels=labels: hessian_vector(plain, w, w, X, labels, context))


def test_gradients_of_another_precision_are_refused():
    logits, trace = DIGITS.forward(W, X, Context(train=("theta", "phi")))
    refuses(lambda: DIGITS.backward(W, np.ones_like(logits), trace, np.empty(len(W))))
    refuses(lambda: DIGITS.backward(W, np.ones_like(logits[:, 1:]), trace, np.empty_like(W)))


def test_masks_of_whole_numbers_are_no_masks():
    refuses(lambda: executed_work(DIGITS, {"conv2.gate": np.ones((4, 3), int)}, 4, Context()))


# Predictions


def test_predictions_have_no_noise_to_give():
    for call in (predict, open_channels):
        with pytest.raises(InputError, match="'gumbel' decides with noise"):
            call(DIGITS, W, X, Gating("gumbel"))
    plain = zoo.digits((2, 3), gates=())
    theta = W[DIGITS.layout.theta].copy()
    assert_same_bits(predict(plain, theta, X, Gating("gumbel")).logits, plain.forward(theta, X)[0])


@pytest.mark.parametrize("samples", [4, 5, 9])
def test_a_batch_that_is_normalised_is_never_split(samples, monkeypatch):
    monkeypatch.setattr(predict_module, "LAYERS_BATCH", 4)
    network, rng = zoo.residual(), np.random.default_rng(0)
    w = network.layout.initialise(SeedTree(0), "float64")
    w[network.layout.phi] += 0.5 * rng.standard_normal(len(w[network.layout.phi]))
    x, y = rng.standard_normal((samples, 2, 8, 8)), np.arange(samples) % 10
    logits, trace = network.forward(w, x)
    masks = network.masks(trace)["conv2.gate"]
    found = predict(network, w, x)
    assert_same_bits(found.logits, logits)
    assert np.array_equal(found.opened[:, 0], masks.sum(axis=1))
    assert np.array_equal(open_channels(network, w, x)["conv2.gate"], masks)
    assert 0 < masks.sum() < masks.size
    judged = evaluate(network, w, x, y)
    assert judged.accuracy == (logits.argmax(axis=1) == y).mean()
    assert np.array_equal(judged.closed, 1 - masks.sum(axis=1) / masks.shape[1])
