"""The zoo: the paper's networks with their sizes in closed form, and gates where they are asked for."""

from __future__ import annotations

import numpy as np
import pytest
import tape
from checks import assert_close, assert_gradients
from strategies import sample

from refimpl.errors import InputError
from refimpl.experiments.config import Config
from refimpl.experiments.experiment import build_network
from refimpl.nn import zoo
from refimpl.nn.context import MODES, Context, Gating
from refimpl.nn.gate import Gated
from refimpl.nn.gradcheck import check_network
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, MaxPool2d
from refimpl.rng import SeedTree


def conv(c, k):
    return 9 * c * k + k


def linear(i, o):
    return i * o + o


def gate(c, k):
    return linear(c, 16) + linear(16, 2 * k)


@pytest.mark.parametrize(
    ("network", "theta", "phi", "shape", "classes"),
    [
        (zoo.mlp(), 79_510, 0, (784,), 10),
        (zoo.mlp(gates=("fc1",)), linear(784, 100) + linear(100, 10), gate(784, 100), (784,), 10),
        (zoo.mlp((20, 7, 6, 5)), linear(20, 7) + linear(7, 6) + linear(6, 5), 0, (20,), 5),
        (
            zoo.cnn3(),
            conv(3, 32) + conv(32, 64) + conv(64, 128) + linear(2048, 10),
            gate(64, 128),
            (3, 32, 32),
            10,
        ),
        (
            zoo.cnn3((1, 28, 28), (4, 5, 6), 47, ("conv1", "conv2")),
            conv(1, 4) + conv(4, 5) + conv(5, 6) + linear(6 * 3 * 3, 47),
            gate(1, 4) + gate(4, 5),
            (1, 28, 28),
            47,
        ),
        (
            zoo.cnn7(),
            conv(3, 32)
            + conv(32, 32)
            + conv(32, 64)
            + conv(64, 64)
            + conv(64, 128)
            + conv(128, 128)
            + linear(2048, 10),
            gate(64, 128) + gate(128, 128),
            (3, 32, 32),
            10,
        ),
        (zoo.digits(), conv(1, 16) + conv(16, 32) + linear(128, 10), gate(16, 32), (1, 8, 8), 10),
    ],
)
def test_sizes_in_closed_form(network, theta, phi, shape, classes):
    layout = network.layout
    assert (layout.theta.stop, layout.size - layout.theta.stop) == (theta, phi)
    assert (network.input_shape, network.output_shape, network.classes) == (shape, (classes,), classes)
    w = layout.initialise(SeedTree(0))
    logits, _ = network.forward(w, np.zeros((2, *shape), dtype=np.float32))
    assert logits.shape == (2, classes)
    assert np.isfinite(logits).all()


def test_cnn3_ends_in_2048_features():
    network = zoo.cnn3()
    flatten = next(i for i, layer in enumerate(network.layers) if isinstance(layer, Flatten))
    shape = network.input_shape
    for layer in network.layers[: flatten + 1]:
        shape = layer.output_shape(shape)
    assert shape == (2048,)


def kinds(layers):
    return [(type(layer), kinds(layer.body)) if isinstance(layer, Gated) else type(layer) for layer in layers]


def test_order_of_layers():
    block = [Conv2d, ReLU, MaxPool2d]
    assert kinds(zoo.cnn3().layers) == [*block, *block, (Gated, block), Flatten, Linear]
    assert kinds(zoo.cnn7().layers) == [
        *(Conv2d, ReLU, Conv2d, ReLU, MaxPool2d, Conv2d, ReLU, Conv2d, ReLU, MaxPool2d),
        (Gated, [Conv2d, ReLU]),
        (Gated, [Conv2d, ReLU, AvgPool2d]),
        *(Flatten, Linear),
    ]
    assert kinds(zoo.mlp(gates=("fc1",)).layers) == [Flatten, (Gated, [Linear, ReLU]), Linear]


@pytest.mark.parametrize(("name", "kind"), [("relu", ReLU), ("softplus", Softplus), ("tanh", Tanh)])
def test_activations_by_name(name, kind):
    for model in (zoo.mlp, zoo.cnn3, zoo.cnn7, zoo.digits):
        layers = [layer for layer in model(gates=(), activation=name).layers if layer.parameters() == ()]
        assert any(isinstance(layer, kind) for layer in layers)
        others = tuple({ReLU, Softplus, Tanh} - {kind})
        assert not any(isinstance(layer, others) for layer in layers)


def test_gates_go_where_they_are_asked_for():
    blocks = [
        (Conv2d("a", 1, 2, padding=1), ReLU()),
        (Conv2d("b", 2, 3, padding=1), ReLU(), MaxPool2d(2)),
        (Flatten(),),
        (Linear("c", 12, 4), ReLU()),
        (Linear("d", 4, 2),),
    ]
    assert zoo.with_gates(blocks, ()) == tuple(layer for block in blocks for layer in block)
    layers = zoo.with_gates(blocks, ("b", "c"))
    gated = [layer for layer in layers if isinstance(layer, Gated)]
    assert [(g.gate.name, g.gate.in_channels, g.gate.out_channels) for g in gated] == [
        ("b.gate", 2, 3),
        ("c.gate", 12, 4),
    ]
    assert [g.body for g in gated] == [blocks[1], blocks[3]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: zoo.cnn3(gates=("conv4",)),
            "unknown layer 'conv4'; did you mean conv3\\? choose one of conv1, conv2, conv3, fc",
        ),
        (lambda: zoo.digits(gates="conv2"), "unknown layer 'c'"),
        (
            lambda: zoo.cnn3(activation="gelu"),
            "unknown activation 'gelu'; did you mean relu\\? choose one of relu, softp",
        ),
        (lambda: zoo.mlp((784,)), "at least two positive sizes"),
        (lambda: zoo.mlp((784, 0, 10)), "at least two positive sizes"),
        (
            lambda: zoo.cnn3((3, 7, 7)),
            "cnn3: images of 7x7 pixels are too small, .* at least 8x8;.*model mlp$",
        ),
        (lambda: zoo.cnn7((3, 32, 7)), "cnn7: images of 32x7 pixels are too small, .* at least 8x8;"),
        (lambda: zoo.cnn3((32, 32, 4)), r"at least 8x8;.* \(32, 32, 4\) .*numpy.moveaxis\(x, -1, 1\)$"),
        (lambda: zoo.cnn7((28, 28, 1)), r"28x1 pixels .*; if \(28, 28, 1\) has the channels last"),
        (lambda: zoo.cnn3(widths=(8, 8)), "cnn3: expected 3 positive widths, got"),
        (lambda: zoo.cnn7(widths=(8, 8)), "cnn7: expected 6 positive widths, got"),
        (lambda: zoo.cnn7(widths=(8,) * 7), "cnn7: expected 6 positive widths, got"),
        (lambda: zoo.digits(widths=(8, 0)), "digits: expected 2 positive widths, got"),
        (lambda: zoo.digits(classes=0), "at least 1"),
        (lambda: zoo.cnn3((32, 32)), r"cnn3: expected an input shape \(channels, height, width\)"),
        (lambda: zoo.cnn7((32, 32)), r"cnn7: expected an input shape \(channels, height, width\)"),
    ],
)
def test_what_cannot_be_built_says_why(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_least_size_is_that_of_the_message():
    assert zoo.cnn3((1, 8, 8)).classes == zoo.cnn7((4, 8, 9)).classes == 10


@pytest.mark.parametrize("model", ["digits", "cnn3", "cnn7"])
def test_the_configured_network_says_what_to_do_about_channels_last(model):
    with pytest.raises(InputError, match=r"\(8, 8, 1\) has the channels last, pass numpy.moveaxis"):
        build_network(Config(model=model), (8, 8, 1), 10, gated=True)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_models_know_their_name(name):
    assert zoo.network(name).name == name
    assert zoo.network(name) == zoo.network(name)
    assert hash(zoo.network(name)) == hash(zoo.network(name))


SMALL = {
    "mlp": zoo.mlp((12, 5, 4, 3), gates=("fc1", "fc2")),
    "cnn3": zoo.cnn3((2, 8, 8), (2, 3, 4), 3),
    "cnn7": zoo.cnn7((1, 8, 8), (2, 2, 3, 3, 4, 4), 3),
    "digits": zoo.digits((2, 3)),
}


@pytest.mark.parametrize("gate_grad", ["dense", "active"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_the_models(name, mode, gate_grad):
    """Each model with small widths, in each mode: against the tape and against finite differences.

    The gates sit where the models have them by default. Gated before another pooled block, a sample with
    all channels closed makes that block constant, its maxima tie, and differences mean nothing there.
    """
    network = SMALL[name]
    point = sample(network, Context(Gating(mode, 0.5, gate_grad), ("theta", "phi")), seed=1)
    gradient = np.full_like(point.w, np.nan)
    loss = NetworkObjective(network, point.x, point.y, point.context)(point.w, gradient)
    wanted_loss, wanted = tape.loss_and_gradient(network, point.w, point.x, point.y, point.context)
    assert_close(loss, wanted_loss, "reference", what="loss")
    assert_close(gradient, wanted, "network", what="gradient")
    rng = np.random.default_rng(0)
    assert_gradients(check_network(network, point.w, point.x, point.y, point.context, rng, directions=1))
