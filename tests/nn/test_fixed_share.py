"""A given share of closed channels: the same masks, and the same bytes, in readable and compiled code."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl import FixedShare, Predictor, evaluate
from refimpl.errors import InputError
from refimpl.federated.adapt import AdaptSettings, adapt
from refimpl.nn import predict as predict_module
from refimpl.nn import zoo
from refimpl.nn.context import Context
from refimpl.nn.predict import open_channels
from refimpl.nn.task import NetworkTask
from refimpl.nn.work import dense_work
from refimpl.rng import SeedTree

DIGITS = zoo.digits((4, 6), gates=("conv1", "conv2"))


def problem(network=DIGITS, samples=23, dtype="float32"):
    rng = np.random.default_rng(0)
    w = network.layout.initialise(SeedTree(1), dtype)
    x = rng.standard_normal((samples, *network.input_shape)).astype(dtype)
    return w, x, rng.integers(0, network.classes, samples)


@pytest.mark.parametrize(("off", "opened"), [(0.0, (4, 6)), (0.5, (2, 3)), (0.75, (1, 2)), (1.0, (0, 0))])
def test_every_sample_opens_its_own_share(off, opened):
    w, x, _ = problem()
    masks = open_channels(DIGITS, w, x, FixedShare(off=off))
    for mask, count in zip(masks.values(), opened, strict=True):
        assert (mask.sum(axis=1) == count).all()
        assert len({row.tobytes() for row in mask}) > 2 or off in (0, 1)
    again = open_channels(DIGITS, w, x, FixedShare(off=off))
    assert all((again[name] == mask).all() for name, mask in masks.items())
    if 0 < off < 1:
        other = open_channels(DIGITS, w, x, FixedShare(off=off, seed=1))
        assert any((other[name] != mask).any() for name, mask in masks.items())


def test_logits_and_flops_are_those_of_the_masks_by_hand():
    """One hidden layer in NumPy: W2 (m * relu(W1 x + b1)) + b2; its FLOPs follow the open units."""
    network = zoo.mlp((5, 8, 3), gates=("fc1",))
    w, x, _ = problem(network, dtype="float64")
    part, gating = network.layout.views(w), FixedShare(off=0.75)
    m = open_channels(network, w, x, gating)["fc1.gate"]
    hidden = np.maximum(x @ part["fc1.weight"].T + part["fc1.bias"], 0) * m
    found = Predictor(network, w, gating)(x)
    np.testing.assert_allclose(found.logits, hidden @ part["fc2.weight"].T + part["fc2.bias"], rtol=1e-12)
    assert (found.opened == 2).all()
    everything = Predictor(network, w, FixedShare(off=0.0))(x)
    fewer = len(x) * 6 * (2 * 5 + 2 + 2 * 3)  # products in and out, bias and ReLU of six closed units
    assert 0 <= everything.flops - found.flops - fewer <= len(x) * 8
    assert everything.flops > dense_work(network, len(x)).total  # the gate itself costs something


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_and_descents_have_the_same_bytes_in_compiled_and_readable_code(dtype):
    w, x, y = problem(dtype=dtype)
    for train in (("theta", "phi"), ("theta",)):
        results = []
        for compiled in (True, False):
            task = NetworkTask(DIGITS, x, y, FixedShare(off=0.5), train, 7, compiled)
            gradient, rng = np.empty_like(w), np.random.default_rng(3)
            objectives = list(task.draw(rng, 2))
            losses = [objective(w, gradient) for objective in objectives]
            results.append((losses, gradient.tobytes(), [one.measure() for one in objectives]))
        assert results[0] == results[1]
        assert results[0][2][0][1] == 0.5  # share of channels closed
        assert not gradient[DIGITS.layout.phi].any()  # fixed masks teach the gates nothing


@pytest.mark.parametrize("threads", [1, 2])
def test_predictions_in_parts_have_the_bytes_of_the_layers(threads, monkeypatch):
    w, x, y = problem()
    gating = FixedShare(off=0.5)
    wanted = DIGITS.forward(w, x, Context(gating))[0]
    predictor = Predictor(DIGITS, w, gating, threads)
    monkeypatch.setattr(type(predictor.program), "part", lambda *args, **kwargs: 5)
    assert predictor(x).logits.tobytes() == wanted.tobytes()
    monkeypatch.setattr(predict_module, "LAYERS_BATCH", 4)
    predictor.program = None
    assert predictor(x).logits.tobytes() == wanted.tobytes()
    assert evaluate(DIGITS, w, x, y, gating).closed.tolist() == [0.5] * len(x)


def test_adaptation_moves_the_backbone_under_the_masks():
    w, x, y = problem()
    found = adapt(DIGITS, w, x, y, AdaptSettings(0.05, 0.05, gating=FixedShare(off=0.5)))
    task = NetworkTask(DIGITS, x, y, FixedShare(off=0.5), ("theta",), compiled=False)
    (objective,), gradient = task.draw(np.random.default_rng(0), 1), np.empty_like(w)
    objective(w, gradient)
    np.testing.assert_allclose(found.w, w - np.float32(0.05) * gradient, rtol=1e-5, atol=1e-7)
    assert found.w[DIGITS.layout.phi].tobytes() == w[DIGITS.layout.phi].tobytes()


def test_shares_outside_of_one_are_refused():
    with pytest.raises(InputError, match="0 <= off <= 1"):
        FixedShare(off=1.5)
    with pytest.raises(InputError, match="FixedShare"):
        FixedShare("hard")
