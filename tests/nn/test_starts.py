"""How gates start: at scales of one's own, and calibrated on samples of the nodes."""

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import prepare
from refimpl.nn import zoo
from refimpl.nn.context import Context
from refimpl.nn.starts import Calibrated, Open, moments
from refimpl.nn.starts import _units as hidden
from refimpl.rng import SeedTree

MLP = zoo.mlp((6, 8, 3), ("fc1",))  # the gate sees the samples themselves
W = MLP.layout.initialise(SeedTree(0), "float64")
NODES = [np.random.default_rng(node).standard_normal((50, 6)) + node for node in range(4)]


def units(w, x):
    """A1 x + b1 by NumPy alone."""
    views = MLP.layout.views(w)
    return x @ views["fc1.gate.fc1.weight"].T + views["fc1.gate.fc1.bias"]


def test_the_usual_scales_leave_every_bit():
    for dtype in ("float32", "float64"):
        w = MLP.layout.initialise(SeedTree(0), dtype)
        assert Open().begin(MLP, w, ()).tobytes() == w.tobytes()


def test_scales_of_ones_own():
    started = MLP.layout.views(Open(gate_a1=3.0, gate_a2=0.5, gate_margin=0.1).begin(MLP, W, ()))
    before = MLP.layout.views(W)
    np.testing.assert_allclose(started["fc1.gate.fc1.weight"], 3 * before["fc1.gate.fc1.weight"])
    np.testing.assert_allclose(started["fc1.gate.fc2.weight"], 50 * before["fc1.gate.fc2.weight"])
    np.testing.assert_allclose(started["fc1.gate.fc2.bias"], np.tile([-0.1, 0.1], 8))
    assert started["fc1.weight"].tobytes() == before["fc1.weight"].tobytes()


def test_calibrated_units_have_mean_zero_the_wanted_spread_and_are_active_for_half():
    w = Calibrated(gate_a1=1.5, gate_samples=50).begin(MLP, W, NODES)
    a = units(w, np.concatenate(NODES))
    np.testing.assert_allclose(a.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(a.std(axis=0), 1.5, rtol=1e-12)
    assert 0.35 < (a > 0).mean() < 0.65
    np.testing.assert_array_less(0.2, (a > 0).mean(axis=0))


def test_only_the_first_training_samples_of_each_node_count():
    few = [x[:20] for x in NODES]
    one = Calibrated(gate_samples=20).begin(MLP, W, NODES)
    assert one.tobytes() == Calibrated(gate_samples=20).begin(MLP, W, few).tobytes()
    assert one.tobytes() != Calibrated(gate_samples=50).begin(MLP, W, NODES).tobytes()


def test_what_a_node_tells():
    gate, a = MLP.gates[0].gate, units(W, NODES[1])
    np.testing.assert_allclose(moments(hidden(MLP, gate, W, NODES[1])), [a.mean(axis=0), (a**2).mean(axis=0)])


def test_units_that_do_not_vary_are_only_centred():
    w = Calibrated().begin(MLP, W, [np.ones((5, 6))])
    np.testing.assert_allclose(units(w, np.ones((1, 6))), 0, atol=1e-12)
    assert np.isfinite(w).all()


def test_a_later_gate_is_calibrated_behind_the_earlier_one():
    network = zoo.digits((3, 4), gates=("conv1", "conv2"))
    w = network.layout.initialise(SeedTree(1), "float64")
    nodes = [np.random.default_rng(node).random((30, 1, 8, 8)) for node in range(2)]
    w = Calibrated(gate_a1=2.0, gate_a2=0.5, gate_margin=0.0).begin(network, w, nodes)
    trace = network.forward(w, np.concatenate(nodes), Context())[1]
    for name, decision in network.decisions(trace).items():
        views = network.layout.views(w)
        a = decision.summary @ views[f"{name}.fc1.weight"].T + views[f"{name}.fc1.bias"]
        varies = a.std(axis=0) > 1e-6
        np.testing.assert_allclose(a.mean(axis=0), 0, atol=1e-10)
        np.testing.assert_allclose(a.std(axis=0)[varies], 2.0, rtol=1e-8)
        assert varies.any()


def test_an_experiment_starts_its_gates_from_its_training_nodes():
    wanted = {"gate_start": "calibrated", "gate_a1": 1.5, "gate_samples": 10}
    small = {"nodes": 3, "targets": 1, "node_min": 20, "node_max": 20, "support": 5}
    experiment = prepare(resolve(dataset="digits", **wanted, **small))
    fresh = experiment.network.layout.initialise(experiment.seeds)
    own = Calibrated(gate_a1=1.5, gate_samples=10)
    nodes = [node.train[0] for node in experiment.train_nodes]
    start = experiment.method.model(experiment.start())
    assert start.tobytes() == own.begin(experiment.network, fresh, nodes).tobytes()
    assert start.tobytes() != fresh.tobytes()
    plain = prepare(resolve(dataset="digits", method="fedavg", gate_start="calibrated", **small))
    assert plain.method.model(plain.start()).size == plain.network.layout.size


def test_wrong_scales_are_refused():
    with pytest.raises(InputError, match="gate_a2 must be at least 0"):
        Open(gate_a2=-1.0)
