"""NaN in a sample or in a gate comes out as NaN: logits, loss, gradient, in every mode and on both paths."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from refimpl.federated.adapt import AdaptSettings, adapt
from refimpl.federated.local import LocalSettings, solve_local
from refimpl.kernels import activation, conv, linear, loss, pool
from refimpl.kernels.conv import ALL_ON
from refimpl.nn import stages, zoo
from refimpl.nn.context import GATE_GRADS, MODES, Context, Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import Conv2d, Flow, Linear
from refimpl.nn.layout import Layout
from refimpl.nn.network import Network, draw_gate_noise
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, MaxPool2d
from refimpl.nn.predict import open_channels, predict
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree

DTYPES = (np.float32, np.float64)
SPOILT = 1  # the sample of a batch that holds NaN


def gated(name: str, *body) -> Network:
    """One gated convolution 2 -> 5 with what follows it in the body, on 6x6 images."""
    blocks = zoo.with_gates([(Conv2d("c", 2, 5, 3), *body)], ("c",))
    features = Network(name, (*blocks, Flatten()), (2, 6, 6)).classes
    return Network(name, (*blocks, Flatten(), Linear("fc", features, 3)), (2, 6, 6))


NETWORKS = {
    "first layer": zoo.digits((4, 6), gates=("conv1",)),
    "second layer": zoo.digits((4, 6), gates=("conv2",)),
    "both layers": zoo.digits((4, 6), gates=("conv1", "conv2")),
    "output": zoo.digits((4, 6), gates=("conv1", "fc")),
    "vectors": zoo.mlp((9, 8, 7, 3), gates=("fc1", "fc2")),
    "bare convolution": gated("bare"),
    "ReLU last": gated("relu", ReLU()),
    "tanh, pooled behind the gate": Network(
        "tanh",
        (
            *zoo.with_gates([(Conv2d("c", 2, 5, 3), Tanh())], ("c",)),
            MaxPool2d(2),
            Flatten(),
            Linear("fc", 20, 3),
        ),
        (2, 6, 6),
    ),
    "softplus, average": gated("softplus", Softplus(), AvgPool2d(2)),
}
SPOIL = ("sample", "gate's input weights", "one channel's bias")
ALL_MODES = list(itertools.product(MODES, GATE_GRADS, [("theta", "phi"), ("theta",), ("phi",)]))


def problem(network: Network, where: str = "", dtype="float32", samples: int = 4):
    """w, x, y with NaN in the place named."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((samples, *network.input_shape)).astype(dtype)
    w = network.layout.initialise(SeedTree(1), dtype)
    phi, name = network.layout.phi, network.gates[-1].gate.name
    w[phi] += (0.5 * rng.standard_normal(w[phi].size)).astype(dtype)  # some channels closed
    if where == "sample":
        x[SPOILT].flat[0] = np.nan
    elif where == "one channel's bias":
        network.layout.views(w)[f"{name}.fc2.bias"][1] = np.nan
    elif where:
        network.layout.views(w)[f"{name}.fc1.weight"][0] = np.nan
    return w, x, rng.integers(0, network.classes, samples)


def assert_nan_comes_out(network: Network, where: str, mode: str, grad: str, train, compiled=(True, False)):
    """Loss and gradient of the network's paths: NaN, and the same on all paths."""
    w, x, y = problem(network, where)
    task, found = NetworkTask(network, x, y, Gating(mode, 0.7, grad), train), []
    for path in compiled:
        (objective,) = replace(task, compiled=path).draw(np.random.default_rng(5), 1)
        gradient = np.zeros_like(w)
        assert np.isnan(objective(w, gradient)), (where, mode, grad, train, path)
        for part in train:
            ours = gradient[getattr(network.layout, part)]
            assert np.isnan(ours).any(), (where, mode, grad, train, path)
        found.append((gradient, *objective.measure()))
    for gradient, *work in found[1:]:
        assert work == list(found[0][1:])
        np.testing.assert_array_equal(gradient, found[0][0])


@pytest.mark.parametrize("where", SPOIL)
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradient_of_both_paths(name, where):
    for mode, grad, train in ALL_MODES:
        assert_nan_comes_out(NETWORKS[name], where, mode, grad, train)


@pytest.mark.parametrize("where", SPOIL)
def test_loss_and_gradient_with_the_readable_kernels(where, monkeypatch):
    for module in (conv, linear):
        monkeypatch.setattr(module, "USE_TILE", False)
    for mode, grad, train in ALL_MODES:
        assert_nan_comes_out(NETWORKS["second layer"], where, mode, grad, train, compiled=(False,))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_spoilt_sample_has_nan_for_logits_and_leaves_the_others_alone(name, mode):
    network = NETWORKS[name]
    noise = draw_gate_noise(network, 4, np.random.default_rng(0), "float32") if mode == "gumbel" else {}
    context, others = Context(Gating(mode), noise=noise), [0, 2, 3]
    w, x, _ = problem(network, "sample")
    clean = network.forward(w, problem(network)[1], context)[0]
    logits, trace = network.forward(w, x, context)
    assert np.isnan(logits[SPOILT]).all()
    assert logits[others].tobytes() == clean[others].tobytes()
    for mask in network.masks(trace).values():
        assert mask[SPOILT].all()  # what cannot be decided is not off
    if mode != "gumbel":
        prediction = predict(network, w, x, context.gating)
        assert prediction.logits.tobytes() == logits.tobytes()
        assert (prediction.opened[SPOILT] == [block.gate.out_channels for block in network.gates]).all()
        assert all(opened[SPOILT].all() for opened in open_channels(network, w, x, context.gating).values())


@pytest.mark.parametrize("where", SPOIL)
def test_adaptation_hands_over_what_it_computes_without_sharing(where, monkeypatch):
    for name, mode in itertools.product(("second layer", "both layers"), ("hard", "ste")):
        settings = AdaptSettings(eta_phi=0.3, eta_theta=0.1, gating=Gating(mode))
        w, x, y = problem(NETWORKS[name], where)
        shared = adapt(NETWORKS[name], w, x, y, settings)
        with monkeypatch.context() as patch:
            patch.setattr(stages, "KEPT_BYTES", 0)
            apart = adapt(NETWORKS[name], w, x, y, settings)
        np.testing.assert_array_equal(shared.w, apart.w)
        assert np.isnan(shared.w).any()


def test_a_gate_that_is_spoilt_between_the_stages_is_noticed_in_stage_two():
    """The activations that stage I left are those of a sound gate: the same result as without them."""
    network = NETWORKS["second layer"]
    w, x, y = problem(network)
    tasks = [NetworkTask(network, x, y, Gating(), (part,)) for part in ("phi", "theta")]
    first, second = stages.sharing(*tasks, 1)
    spoilt, ends = problem(network, "one channel's bias")[0], []
    solve_local(first, w, LocalSettings(0.0, 0.3, 1), np.random.default_rng(0))
    for task in (second, tasks[1], replace(tasks[1], compiled=False)):
        ends.append(solve_local(task, spoilt, LocalSettings(0.0, 0.1, 1), np.random.default_rng(0)))
    assert ends[0].flops < ends[1].flops
    for end in ends:
        assert np.isnan(end.loss)
        np.testing.assert_array_equal(end.w, ends[0].w)
    assert np.isnan(ends[0].w[network.layout.theta]).any()


def test_an_undecided_channel_by_hand():
    """Channel 0 is on, channel 1 off, channel 2 has a NaN in its off logit: (x, 0, NaN)."""
    block = Gated(ChannelGate("g", 1, 3), (Linear("fc", 1, 3),))
    layout = Layout(block.parameters())
    params = layout.views(np.zeros(layout.size))
    params["fc.weight"][:] = 1.0
    params["g.fc2.bias"][:] = -1.0, 1.0, 1.0, -1.0, np.nan, 0.0
    for mode, train, gate_grad in itertools.product(("hard", "ste"), ("theta", "phi"), GATE_GRADS):
        y, mask, _ = block.forward(
            params, np.array([[5.0]]), Flow(Context(Gating(mode, 1.0, gate_grad), (train,)))
        )
        np.testing.assert_array_equal(y, [[5.0, 0.0, np.nan]])
        assert mask.tolist() == [[True, False, True]]


# Single functions: NaN and infinities at every place of a vector and of what is left over


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_at_every_place(value, masked, dtype):
    limits = {
        "relu": (max(value, 0.0) if value == value else np.nan, float(not value < 0)),
        "softplus": (max(value, 0.0) if value == value else np.nan, 1.0 if value > 0 else 0.0),
        "tanh": (np.sign(value), 0.0),
    }
    for (name, (wanted, slope)), pixels in itertools.product(limits.items(), (1, 7, 19, 37)):
        mask = np.ones((1, 1), bool) if masked else ALL_ON
        for at in range(pixels):
            x = np.linspace(-2, 2, pixels, dtype=dtype).reshape(1, 1, pixels)
            y, dx, clean = np.empty_like(x), np.empty_like(x), np.empty_like(x)
            getattr(activation, f"{name}_forward")(x, mask, clean)
            x[0, 0, at] = value
            getattr(activation, f"{name}_forward")(x, mask, y)
            kept = y if name == "tanh" else x
            getattr(activation, f"{name}_backward")(np.ones_like(x), kept, mask, dx)
            clean[0, 0, at] = wanted
            np.testing.assert_array_equal(y, clean)
            if value == value:
                assert dx[0, 0, at] == slope
            elif name != "relu":  # ReLU passes on the gradient that it gets: there, NaN as well
                assert np.isnan(dx[0, 0, at])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2, 2), (3, 2)])
def test_pooling_at_every_place(size, dtype):
    for width, value in itertools.product((2, 9, 38), (np.nan, np.inf)):
        shape = (1, 1, 1, width // size[1])
        for row, column in np.ndindex(size[0], shape[3] * size[1]):
            x = np.arange(size[0] * width, dtype=dtype).reshape(1, 1, size[0], width)
            x[0, 0, row, column] = value
            y, where = np.empty(shape, dtype), np.empty(shape, np.int32)
            pool.max_forward(x, size, size, (0, 0), ALL_ON, y, where)
            hit = column // size[1]
            np.testing.assert_array_equal(y[..., hit], value)
            assert where[0, 0, 0, hit] == row * size[1] + column % size[1]
            assert np.isfinite(np.delete(y, hit)).all()
            pool.average_forward(x, size, size, (0, 0), ALL_ON, y)
            np.testing.assert_array_equal(y[..., hit], value)
            assert np.isfinite(np.delete(y, hit)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_nan_and_infinite_logits(dtype):
    for classes in (1, 2, 5, 19):
        for at, value in itertools.product(range(classes), (np.nan, np.inf)):
            logits = np.zeros((2, classes), dtype)
            logits[1, at] = value
            dlogits, labels = np.zeros_like(logits), np.array([0, classes - 1])
            assert np.isnan(loss.softmax_cross_entropy(logits, labels, dlogits))
            assert np.isnan(dlogits[1]).any()
            assert np.isfinite(dlogits[0]).all()
            if value != value:
                assert np.isnan(dlogits[1]).all()
