"""The compiled local solve gives the bytes of the layers' own iteration, and the same accounts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from refimpl.federated.local import LocalSettings, solve_local
from refimpl.nn import zoo
from refimpl.nn.chain import Residual
from refimpl.nn.context import GATE_GRADS, MODES, Gating
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.lowering import Program, lower
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU, Softplus
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d
from refimpl.nn.task import NetworkTask, draw_batches
from refimpl.rng import SeedTree

SETTINGS = LocalSettings(lam=1.0, eta=0.05, steps=4)


def make_task(network, gating, train=("theta", "phi"), dtype="float32", samples=11, batch=5):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, *network.input_shape)).astype(dtype)
    task = NetworkTask(network, x, rng.integers(0, network.classes, samples), gating, train, batch)
    w = network.layout.initialise(SeedTree(1), dtype)
    phi = network.layout.phi
    w[phi] += (0.5 * rng.standard_normal(w[phi].size)).astype(dtype)  # some channels closed
    return task, w


def assert_same(task, w):
    compiled = solve_local(task, w, SETTINGS, np.random.default_rng(3))
    layers = solve_local(replace(task, compiled=False), w, SETTINGS, np.random.default_rng(3))
    assert compiled.w.tobytes() == layers.w.tobytes()
    assert compiled.w.tobytes() != w.tobytes()
    assert (compiled.loss, compiled.residual) == (layers.loss, layers.residual)
    assert (compiled.gradients, compiled.flops) == (layers.gradients, layers.flops)
    assert compiled.closed_share == pytest.approx(layers.closed_share, abs=1e-12)
    assert_same_gradient(task, w)


def assert_same_gradient(task, w):
    results = []
    for compiled in (True, False):
        (objective,) = replace(task, compiled=compiled).draw(np.random.default_rng(5), 1)
        gradient = np.full_like(w, np.nan)
        results.append((objective(w, gradient), gradient.tobytes(), objective.measure()))
    assert results[0] == results[1]


SMALL = {
    "two gated convs": zoo.digits((4, 6), gates=("conv1", "conv2")),
    "ungated": zoo.digits((4, 6), gates=()),
    "gated output, tanh": zoo.digits((4, 6), gates=("fc", "conv1"), activation="tanh"),
    "softplus": zoo.digits((4, 6), gates=("conv2",), activation="softplus"),
    "gated mlp": zoo.mlp((9, 8, 7, 3), gates=("fc1", "fc2")),
    "average and global pools": Network(
        "pools",
        (
            *zoo.with_gates([(Conv2d("c1", 2, 5, 3, stride=2, padding=2), ReLU(), AvgPool2d(2))], ("c1",)),
            Conv2d("c2", 5, 4, 2),
            GlobalAvgPool2d(),
            Linear("fc", 4, 3),
        ),
        (2, 9, 8),
    ),
    "gated convolution, all its zeros read": Network(
        "bare",
        (*zoo.with_gates([(Conv2d("c1", 2, 5, 3),)], ("c1",)), Softplus(), Flatten(), Linear("fc", 30, 3)),
        (2, 5, 4),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("part", [5, 2, 1])  # of a batch of 5, at a time
def test_compiled_solve_is_the_layers_bit_for_bit(name, dtype, part, monkeypatch):
    monkeypatch.setattr(Program, "part", lambda *_, **__: part)
    network = SMALL[name]
    trains = [("theta", "phi"), ("theta",), ("phi",)] if network.gates else [("theta",)]
    for mode, gate_grad, detach, train in itertools.product(MODES, GATE_GRADS, (False, True), trains):
        assert_same(*make_task(network, Gating(mode, 0.7, gate_grad, detach), train, dtype))


@pytest.mark.parametrize("model", [zoo.cnn3, zoo.cnn7])
@pytest.mark.parametrize("part", [3, 2])
def test_compiled_solve_of_the_papers_networks(model, part, monkeypatch):
    monkeypatch.setattr(Program, "part", lambda *_, **__: part)
    assert_same(*make_task(model(), Gating(), samples=4, batch=3))


def test_parts_keep_the_working_memory_small():
    program = lower(zoo.cnn3(), Gating(), ("theta", "phi"))
    training, prediction = (program.part(1000, "float32", gradients=flag) for flag in (True, False))
    assert 1 < prediction < training < 50
    assert program.part(2, "float32", gradients=False) == 2


def test_networks_without_a_program_run_by_layers():
    block = Residual((Conv2d("c", 2, 2, 3, padding=1), ReLU()))
    network = Network("residual", (block, GlobalAvgPool2d(), Linear("fc", 2, 3)), (2, 4, 4))
    assert lower(network, Gating(), ("theta",)) is None
    task, w = make_task(network, Gating(), ("theta",))
    assert task.descend(w, 0.1, 1.0, 2, np.random.default_rng(0)) is None
    assert_same(task, w)


def test_batches_are_uniform_samples_without_repetition():
    batches = draw_batches(np.random.default_rng(0), 7, 3, 6000)
    assert all(len(set(batch)) == 3 for batch in batches.tolist())
    counts = np.bincount(batches[:, 0], minlength=7)  # each place is uniform: 6000/7 +- 5 deviations
    np.testing.assert_allclose(counts, 6000 / 7, atol=5 * np.sqrt(6000 / 7))
    pairs = {tuple(batch[:2]) for batch in batches.tolist()}
    assert len(pairs) == 7 * 6
    whole = draw_batches(np.random.default_rng(0), 7, 0, 2)
    np.testing.assert_array_equal(whole, [range(7), range(7)])


def test_batches_do_not_depend_on_how_many_are_drawn_at_once():
    together = draw_batches(np.random.default_rng(4), 50, 9, 3)
    rng = np.random.default_rng(4)
    np.testing.assert_array_equal(together, np.concatenate([draw_batches(rng, 50, 9, 1) for _ in range(3)]))
