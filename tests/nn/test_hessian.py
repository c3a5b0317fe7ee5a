"""Hessian-vector products: against differences of gradients, symmetry, linearity, and their cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    activations,
    channelwise_cases,
    contexts,
    conv_cases,
    examples,
    networks,
    pools,
    sample,
    seeds,
)

from refimpl.errors import InputError
from refimpl.kernels import conv, linear
from refimpl.nn import zoo
from refimpl.nn.context import Context, Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Flow, Linear
from refimpl.nn.layout import STORED
from refimpl.nn.network import Network
from refimpl.nn.norms import FrozenNorm2d, GroupNorm
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import Flatten, GlobalAvgPool2d, MaxPool2d
from refimpl.nn.tangent import RULES
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree

STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
REQUIRED = 1e-6
BOTH = ("theta", "phi")
SOFT = Context(Gating("soft"), BOTH)


def gradient(objective, w):
    out = np.full_like(w, np.nan)
    objective(w, out)
    return out


def difference(objective, w, v):
    """Derivative of the gradient along v: fourth-order central differences.

    Of a ladder of steps the one that agrees best with its successor, so nothing is known of H v here;
    large steps meet kinks and curvature, small ones rounding.
    """
    estimates = []
    for h in STEPS:
        near = gradient(objective, w + h * v) - gradient(objective, w - h * v)
        far = gradient(objective, w + 2 * h * v) - gradient(objective, w - 2 * h * v)
        estimates.append((8 * near - far) / (12 * h))
    gaps = [np.linalg.norm(a - b) for a, b in itertools.pairwise(estimates)]
    return estimates[int(np.argmin(gaps)) + 1]


def directions(objective, w, count, seed=0):
    """Unit vectors, zero where nothing is trained."""
    rng = np.random.default_rng(seed)
    chosen = rng.standard_normal((count, w.size))
    layout = objective.network.layout
    for part in STORED:
        if part not in objective.context.train:
            chosen[:, getattr(layout, part)] = 0
    return chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-300)


def assert_hessian(objective, w, seed=0):
    """Equal to differences of the gradient to 1e-6; symmetric; linear."""
    v, u = directions(objective, w, 2, seed)
    hv, hu = objective.hessian_vector(w, v), objective.hessian_vector(w, u)
    # differences of a gradient g resolve its derivative to some 1e-11 |g|
    floor = 1e-5 * np.linalg.norm(gradient(objective, w))
    numeric = difference(objective, w, v)
    error = np.linalg.norm(hv - numeric) / max(np.linalg.norm(numeric), floor)
    assert error <= REQUIRED, f"H v differs from differences of the gradient by {error:.3g} relative"
    size = np.linalg.norm(hv) + np.linalg.norm(hu)
    if not objective.context.gating.detach_gate_input:
        assert abs(u @ hv - v @ hu) <= 1e-11 * size
    mixed = objective.hessian_vector(w, 2 * v - 3 * u)
    assert np.linalg.norm(mixed - (2 * hv - 3 * hu)) <= 1e-11 * max(size, 1e-12)


ZOO = {
    "mlp": lambda gates: zoo.mlp((12, 9, 5), gates),
    "digits": lambda gates: zoo.digits((3, 4), gates=gates),
    "cnn3": lambda gates: zoo.cnn3((3, 16, 16), (3, 4, 5), gates=gates),
    "cnn7": lambda gates: zoo.cnn7((3, 16, 16), (3, 3, 4, 4, 5, 5), gates=gates),
}
USUAL = {"mlp": ("fc1",), "digits": ("conv2",), "cnn3": ("conv3",), "cnn7": ("conv5", "conv6")}


@pytest.mark.parametrize("gated", [False, True], ids=["ungated", "soft"])
@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo(name, gated):
    network = ZOO[name](USUAL[name] if gated else ())
    rng = np.random.default_rng(3)
    w = network.layout.initialise(SeedTree(1), "float64")
    w += 0.05 * rng.standard_normal(w.size)  # biases and gates away from their special starting values
    x, y = rng.standard_normal((4, *network.input_shape)), rng.integers(0, network.classes, 4)
    assert_hessian(NetworkObjective(network, x, y, SOFT), w)


@given(networks(kinks=False), contexts(modes=("soft",)), seeds)
@examples(40)
def test_drawn_networks(network, context, seed):
    """Convolutions, pools, normalisation, residual blocks, gates anywhere, any part trained."""
    w, x, y, context = sample(network, context, seed)
    assert_hessian(NetworkObjective(network, x, y, context), w, seed)


def between(layer, shape):
    """A network with `layer` in the middle: its input moves, and its output is bent."""
    out = layer.output_shape(shape)
    layers = (
        Conv2d("below", shape[0], shape[0], 1),
        layer,
        Tanh(),
        Flatten(),
        Linear("out", int(np.prod(out)), 3),
    )
    return Network("between", layers, shape)


def test_rates_follow_the_maxima_recorded():
    layer = MaxPool2d((1, 3), (1, 2))
    x = np.array([[[[0.0, 9.0, 1.0, 2.0, 3.0]], [[5.0, 4.0, 3.0, 2.0, 1.0]]]])
    _, _, cache = layer.forward({}, x, Flow())
    x_dot = np.arange(10.0).reshape(x.shape)
    y_dot = RULES[MaxPool2d].forward(layer, cache, x_dot, None)
    assert y_dot.tolist() == [[[[1.0, 4.0]], [[5.0, 7.0]]]]


@given(conv_cases() | channelwise_cases(pools) | channelwise_cases(activations | st.just(GlobalAvgPool2d())))
@examples(50)
def test_drawn_shapes_of_single_layers(case):
    network = between(case.layer, case.shape)
    w, x, y, context = sample(network, Context(train=BOTH), case.seed, case.batch)
    assert_hessian(NetworkObjective(network, x, y, context), w, case.seed)


NORMS = {
    "batch": BatchNorm2d,
    "frozen": FrozenNorm2d,
    "one group": GroupNorm,
    "groups": lambda name, channels: GroupNorm(name, channels, groups=channels),
}


@pytest.mark.parametrize("norm", NORMS)
@given(channelwise_cases(activations))
@examples(5)
def test_drawn_shapes_of_normalisation(norm, case):
    network = between(NORMS[norm]("norm", case.shape[0]), case.shape)
    w, x, y, context = sample(network, Context(train=BOTH), case.seed, case.batch)
    assert_hessian(NetworkObjective(network, x, y, context), w, case.seed)


def test_softmax_regression_in_closed_form():
    """H of cross-entropy over logits A x: for a direction V, dA = mean p (Vx - <p, Vx>) x^T."""
    network = Network("linear", (Linear("out", 3, 4),), (3,))
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((2, network.layout.size))
    x, y = rng.standard_normal((5, 3)), rng.integers(0, 4, 5)
    weight, bias = w[:12].reshape(4, 3), w[12:]
    logits = x @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    moved = x @ v[:12].reshape(4, 3).T + v[12:]
    rate = p * (moved - (p * moved).sum(axis=1, keepdims=True)) / 5
    expected = np.concatenate([(rate.T @ x).ravel(), rate.sum(axis=0)])
    hv = NetworkObjective(network, x, y).hessian_vector(w, v)
    assert_close(hv, expected, "reference")


def test_the_whole_hessian_is_symmetric():
    network = zoo.mlp((3, 4, 2), ("fc1",), activation="softplus")
    w, x, y, _ = sample(network, SOFT, seed=5)
    objective = NetworkObjective(network, x, y, SOFT)
    hessian = np.array([objective.hessian_vector(w, e) for e in np.eye(w.size)])
    assert_close(hessian, hessian.T, "network")
    assert np.abs(hessian).max() > 1e-3


@pytest.mark.parametrize("train", [("theta",), ("phi",), ()])
def test_only_trained_parts_take_part(train):
    network = ZOO["digits"](("conv1", "conv2"))
    w, x, y, _ = sample(network, SOFT, seed=2)
    v = np.random.default_rng(0).standard_normal(w.size)
    layout, kept = network.layout, np.zeros(w.size, dtype=bool)
    for part in train:
        kept[getattr(layout, part)] = True
    hv = NetworkObjective(network, x, y, Context(Gating("soft"), train)).hessian_vector(w, v)
    whole = NetworkObjective(network, x, y, SOFT).hessian_vector(w, np.where(kept, v, 0))
    assert not hv[~kept].any()
    assert_close(hv, np.where(kept, whole, 0), "network")


def test_float32_agrees_with_float64():
    network = ZOO["cnn3"](("conv3",))
    w, x, y, _ = sample(network, SOFT, seed=4)
    v = np.random.default_rng(1).standard_normal(w.size)
    double = NetworkObjective(network, x, y, SOFT).hessian_vector(w, v)
    single = NetworkObjective(network, x.astype("float32"), y, SOFT).hessian_vector(
        w.astype("float32"), v.astype("float32")
    )
    assert single.dtype == np.float32
    assert_close(single, double, "network", "float32")


def test_neither_point_nor_direction_is_changed():
    network = ZOO["digits"](("conv2",))
    w, x, y, _ = sample(network, SOFT, seed=2)
    v = np.ones_like(w)
    before = w.tobytes(), x.tobytes()
    NetworkObjective(network, x, y, SOFT).hessian_vector(w, v)
    assert (w.tobytes(), x.tobytes()) == before
    assert (v == 1).all()


def test_gates_that_are_not_smooth_are_refused():
    network = ZOO["digits"](("conv2",))
    w, x, y, _ = sample(network, SOFT, seed=2)
    for mode in ("hard", "ste"):
        objective = NetworkObjective(network, x, y, Context(Gating(mode), BOTH))
        with pytest.raises(InputError, match="use Gating\\('soft'\\)"):
            objective.hessian_vector(w, w)
    soft = NetworkObjective(network, x, y, SOFT)
    with pytest.raises(InputError, match="hessian_vector: v"):
        soft.hessian_vector(w, w[:-1])
    with pytest.raises(InputError, match="w is float64 but v float32"):
        soft.hessian_vector(w, w.astype("float32"))


# Work


def counted(monkeypatch):
    """A list that grows by the products (2 FLOPs each, bias left out) of every conv and linear call."""
    done = []

    def spy(module, name, products):
        original = getattr(module, name)

        def call(*args):
            done.append(2 * products(*args))
            return original(*args)

        monkeypatch.setattr(module, name, call)

    def of_conv(x, weight, bias, stride, pad, *_):
        rows, cols = conv.output_size(x.shape[2:], weight.shape[2:], stride, pad)
        return len(x) * weight.size * rows * cols

    spy(conv, "forward", of_conv)
    spy(conv, "input_grad", lambda dy, weight, *_: len(dy) * weight.size * dy[0, 0].size)
    spy(conv, "weight_grad", lambda x, dy, stride, pad, dw, *_: len(dy) * dw.size * dy[0, 0].size)
    spy(linear, "forward", lambda x, weight, *_: len(x) * weight.size)
    spy(linear, "input_grad", lambda dy, weight, *_: len(dy) * weight.size)
    spy(linear, "weight_grad", lambda x, dy, dw, *_: len(x) * dw.size)
    return done


def two_layers(gated, channels, filters, hidden, gated_filters, classes):
    """Two convolutions, the second one gated or not, and a linear layer."""
    second = (Conv2d("c2", filters, gated_filters, 3), Softplus())
    if gated:
        second = (Gated(ChannelGate("c2.gate", filters, gated_filters, hidden), second),)
    out = Linear("out", gated_filters * 4, classes)
    layers = (Conv2d("c1", channels, filters, 3, padding=1), ReLU(), *second, Flatten(), out)
    return Network("two", layers, (channels, 4, 4))


@pytest.mark.parametrize(
    ("gated", "train"), [(False, ("theta",)), (True, BOTH), (True, ("theta",)), (True, ("phi",))]
)
def test_executed_work_counts_the_products_the_kernels_are_asked_for(gated, train, monkeypatch):
    """What is counted beyond them (biases, activations) is a sum of terms in one size each.

    So its mixed second difference in any two sizes is zero, while that of a product is not.
    """
    done = counted(monkeypatch)

    def beyond(sizes):
        network = two_layers(gated, *sizes)
        objective = NetworkObjective(network, *sample(network, SOFT, 1)[1:3], Context(Gating("soft"), train))
        done.clear()
        w = np.full(network.layout.size, 0.1)
        objective.hessian_vector(w, w)
        flops, closed = objective.measure()
        assert closed == 0
        assert flops > sum(done) > 0
        return flops - sum(done)

    base, unit = np.array([2, 3, 4, 5, 3]), np.eye(5, dtype=int)
    for i, j in itertools.combinations(range(5), 2):
        corners = [base + unit[i] + unit[j], base + unit[i], base + unit[j], base]
        both, one, other, none = (beyond(tuple(int(n) for n in corner)) for corner in corners)
        assert both - one - other + none == 0, (i, j)


def test_tasks_with_a_program_count_and_compute_the_same():
    network = ZOO["mlp"](())
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 12)), rng.integers(0, 5, 8)
    w, v = 0.3 * rng.standard_normal((2, network.layout.size))
    products, costs = [], []
    for compiled in (True, False):
        task = NetworkTask(network, x, y, batch_size=3, compiled=compiled)
        (objective,) = task.draw(np.random.default_rng(7), 1)
        objective(w, np.empty_like(w))
        plain = objective.measure()[0]
        products.append(objective.hessian_vector(w, v).tobytes())
        costs.append(objective.measure()[0])
        assert plain < costs[-1] < 3 * plain
        objective(w, np.empty_like(w))
        assert objective.measure()[0] == plain
    assert products[0] == products[1]
    assert costs[0] == costs[1]
