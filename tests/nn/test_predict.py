"""Predictions in compiled code are those of the layers, whatever is left in memory, however split."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.kernels import workspace
from refimpl.nn import lowering, program, zoo
from refimpl.nn import predict as predict_module
from refimpl.nn.chain import Residual
from refimpl.nn.context import Context, Gating
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten
from refimpl.nn.predict import Predictor, open_channels, predict
from refimpl.nn.work import executed_work
from refimpl.rng import SeedTree
from refimpl.threads import share

NETWORKS = {
    "digits": zoo.digits((4, 6), gates=("conv1", "conv2")),
    "ungated": zoo.digits((4, 6), gates=()),
    "mlp": zoo.mlp((64, 9, 5, 3), gates=("fc1", "fc2")),
    "softplus": zoo.digits((4, 6), gates=("conv2",), activation="softplus"),
    "residual, layer by layer": Network(
        "residual",
        (Residual((Conv2d("a", 1, 1, 3, padding=1), ReLU())), Flatten(), Linear("fc", 64, 3)),
        (1, 8, 8),
    ),
}


def problem(network, dtype="float32", samples=23):
    rng = np.random.default_rng(0)
    w = network.layout.initialise(SeedTree(1), dtype)
    phi = network.layout.phi
    w[phi] += (0.5 * rng.standard_normal(w[phi].size)).astype(dtype)  # some channels closed
    return w, rng.standard_normal((samples, *network.input_shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["hard", "ste", "soft"])
@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_are_those_of_the_layers(name, mode, dtype):
    network, gating = NETWORKS[name], Gating(mode)
    w, x = problem(network, dtype)
    found = predict(network, w, x, gating)
    logits, trace = network.forward(w, x, Context(gating))
    masks = network.masks(trace)
    assert found.logits.tobytes() == logits.tobytes()
    assert found.flops == executed_work(network, masks, len(x), Context(gating)).total
    opened = np.array([(mask != 0).sum(axis=1) for mask in masks.values()], dtype=np.int64).T
    assert np.array_equal(found.opened, opened.reshape(len(x), len(masks)))
    if masks and mode == "hard":
        assert 0 < found.opened.sum() < len(x) * sum(mask.shape[1] for mask in masks.values())


@pytest.mark.parametrize("mode", ["hard", "ste", "soft"])
def test_open_channels_are_those_whose_margin_is_positive(mode, monkeypatch):
    monkeypatch.setattr(predict_module, "LAYERS_BATCH", 7)
    network = NETWORKS["digits"]
    w, x = problem(network)
    found = open_channels(network, w, x, Gating(mode))
    assert list(found) == ["conv1.gate", "conv2.gate"]
    decided = network.decisions(network.forward(w, x, Context(Gating("hard")))[1])
    assert np.array_equal(found["conv1.gate"], decided["conv1.gate"].mask)
    assert 0 < found["conv1.gate"].sum() < found["conv1.gate"].size
    assert found["conv2.gate"].shape == (len(x), 6)
    assert open_channels(NETWORKS["ungated"], *problem(NETWORKS["ungated"])) == {}


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_do_not_depend_on_how_they_are_split(name, monkeypatch):
    network = NETWORKS[name]
    w, x = problem(network)
    together = predict(network, w, x)
    for bytes_ in (1, 20_000):
        monkeypatch.setattr(program, "PREDICTION_BYTES", bytes_)
        apart = predict(network, w, x)
        assert apart.logits.tobytes() == together.logits.tobytes()
        assert (apart.flops, apart.opened.tolist()) == (together.flops, together.opened.tolist())


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_predictor_predicts_as_predict_does_whatever_batch_came_before(name, threads, monkeypatch):
    monkeypatch.setattr(program, "SHARED_BYTES", 1)
    network = NETWORKS[name]
    w, x = problem(network)
    wanted = [predict(network, w, x[:size]) for size in (23, 1, 8, 2)]
    predictor = Predictor(network, w, threads=threads)
    w[:] = np.nan  # it has a copy
    for size, other in zip((23, 1, 8, 2), wanted, strict=True):
        found = predictor(x[:size])
        assert found.logits.tobytes() == other.logits.tobytes()
        assert (found.flops, found.opened.tolist()) == (other.flops, other.opened.tolist())


def test_several_threads_may_use_one_predictor():
    network = NETWORKS["digits"]
    w, x = problem(network, samples=64)
    predictor, wanted = Predictor(network, w), predict(network, w, x).logits
    found = share(lambda piece: predictor(x[piece % 32 : piece % 32 + 32]).logits, 200, 4)
    for piece, logits in enumerate(found):
        assert logits.tobytes() == wanted[piece % 32 : piece % 32 + 32].tobytes()


def test_memory_left_by_others_is_never_read():
    """Poisoned with NaN, working memory changes no bit of a prediction or a local solve."""
    network = NETWORKS["digits"]
    w, x = problem(network)
    clean = predict(network, w, x).logits.tobytes()
    for array in workspace._this_thread.memory.arrays.values():
        array[:] = np.nan if array.dtype.kind == "f" else -1 if array.dtype.kind == "i" else True
    assert predict(network, w, x).logits.tobytes() == clean


def test_what_does_not_fit_is_refused():
    network = NETWORKS["digits"]
    w, x = problem(network)
    with pytest.raises(Exception, match="float64"):
        predict(network, w, x.astype("float64"))
    with pytest.raises(Exception, match="predict"):
        predict(network, w[:-1], x)


def test_predictions_keep_no_value_that_has_been_read():
    network = zoo.network("resnet20", (), (3, 32, 32))
    training = lowering.lower(network, Gating(), ("theta",))
    assert lowering.lower(network, Gating(), ()).values < training.values / 8
