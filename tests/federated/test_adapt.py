"""Two-stage adaptation: what each stage changes, what it may see, and what the report counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.federated.adapt import AdaptSettings, adapt, evaluate, report_node
from refimpl.nn import program, zoo
from refimpl.nn.context import Context, Gating
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.work import dense_work
from refimpl.rng import SeedTree

NETWORK = zoo.digits((4, 6), gates=("conv2",))
SETTINGS = AdaptSettings(eta_phi=0.2, eta_theta=0.1)


def problem(dtype="float64", samples=12):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 1, 8, 8)).astype(dtype)
    w = NETWORK.layout.initialise(SeedTree(0), dtype)
    phi = NETWORK.layout.phi
    w[phi] += (0.5 * rng.standard_normal(w[phi].size)).astype(dtype)  # some channels closed
    return w, x, rng.integers(0, 10, samples)


def gradient(w, x, y, part):
    out = np.empty_like(w)
    NetworkObjective(NETWORK, x, y, Context(Gating(), (part,)))(w, out)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stages_are_single_gradient_steps_gate_first(dtype):
    w, x, y = problem(dtype)
    layout, scalar = NETWORK.layout, np.dtype(dtype).type
    expected = w.copy()
    expected[layout.phi] -= scalar(0.2) * gradient(w, x, y, "phi")[layout.phi]
    expected[layout.theta] -= scalar(0.1) * gradient(expected, x, y, "theta")[layout.theta]
    before = w.copy()
    adapted = adapt(NETWORK, w, x, y, SETTINGS)
    assert adapted.w.tobytes() == expected.tobytes()
    assert w.tobytes() == before.tobytes()
    assert (adapted.w[layout.phi] != w[layout.phi]).any()


def test_more_steps_repeat_each_stage():
    w, x, y = problem()
    layout = NETWORK.layout
    expected = w.copy()
    for part, eta in (("phi", 0.2), ("theta", 0.1)):
        where = getattr(layout, part)
        for _ in range(3):
            expected[where] -= eta * gradient(expected, x, y, part)[where]
    assert adapt(NETWORK, w, x, y, replace(SETTINGS, steps=3)).w.tobytes() == expected.tobytes()


def test_stage_two_leaves_channels_closed_for_all_samples_alone():
    w, x, y = problem()
    bias = NETWORK.layout.views(w)["conv2.gate.fc2.bias"]
    NETWORK.layout.views(w)["conv2.gate.fc2.weight"][:] = 0
    bias[0::2], bias[1::2] = 0, [1, 0, 1, 0, 0, 1]
    adapted = adapt(NETWORK, w, x, y, replace(SETTINGS, eta_phi=0.0))
    moved = NETWORK.layout.views(adapted.w)["conv2.weight"] != NETWORK.layout.views(w)["conv2.weight"]
    assert moved.reshape(6, -1).any(axis=1).tolist() == [True, False, True, False, False, True]


def test_gumbel_gates_adapt_and_are_tested_without_noise():
    w, x, y = problem()
    noisy = replace(SETTINGS, gating=Gating("gumbel"))
    assert adapt(NETWORK, w, x, y, noisy).w.tobytes() == adapt(NETWORK, w, x, y, SETTINGS).w.tobytes()
    assert evaluate(NETWORK, w, x, y, Gating("gumbel")).accuracy == evaluate(NETWORK, w, x, y).accuracy


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("steps", [1, 3])
def test_threads_change_no_bit_of_adaptation_and_evaluation(mode, steps, monkeypatch):
    monkeypatch.setattr(program, "SHARED_BYTES", 1)  # so that a few samples are worth a thread
    w, x, y = problem(samples=13)
    usual = replace(SETTINGS, steps=steps, gating=Gating(mode))
    found = []
    for threads in (1, 2, 3):
        adapted = adapt(NETWORK, w, x, y, replace(usual, threads=threads))
        accuracy, loss, closed, flops = evaluate(NETWORK, adapted.w, x, y, usual.gating, threads)
        work = adapted.flops_gate, adapted.flops_backbone
        found.append((adapted.w.tobytes(), work, accuracy, loss, closed.tobytes(), flops))
    assert found[0] == found[1] == found[2]


def test_evaluation_by_hand_and_over_batches():
    w, x, y = problem(samples=300)  # more than one evaluation batch
    logits, trace = NETWORK.forward(w, x)
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(300), y]
    found = evaluate(NETWORK, w, x, y)
    assert found.accuracy == (logits.argmax(axis=1) == y).mean()
    assert found.loss == pytest.approx(losses.mean(), rel=1e-12)
    np.testing.assert_allclose(found.closed, (~NETWORK.masks(trace)["conv2.gate"]).mean(axis=1))
    assert 0 < found.closed.mean() < 1


def test_the_report_is_of_the_adapted_network_on_the_other_samples():
    w, x, y = problem()
    report = report_node("n", NETWORK, w, (x[:8], y[:8]), (x[8:], y[8:]), SETTINGS)
    adapted = adapt(NETWORK, w, x[:8], y[:8], SETTINGS)
    assert report.accuracy_after == evaluate(NETWORK, adapted.w, x[8:], y[8:]).accuracy
    assert report.accuracy_before == evaluate(NETWORK, w, x[8:], y[8:]).accuracy


def test_the_report_counts_dense_and_executed_work():
    w, x, y = problem()
    report = report_node("n", NETWORK, w, (x[:8], y[:8]), (x[8:], y[8:]), SETTINGS)
    assert report.flops_dense == dense_work(NETWORK, 1).total
    closed = w.copy()
    NETWORK.layout.views(closed)["conv2.gate.fc2.weight"][:] = 0
    NETWORK.layout.views(closed)["conv2.gate.fc2.bias"][:] = 0
    nothing = report_node(
        "n", NETWORK, closed, (x[:8], y[:8]), (x[8:], y[8:]), replace(SETTINGS, eta_phi=0.0)
    )
    assert nothing.sparsity_mean == 1
    assert nothing.sparsity_spread == 0
    assert nothing.flops_executed < 0.5 * report.flops_dense
    assert nothing.seconds_gate < nothing.seconds_backbone


def test_ungated_networks_have_no_stage_one():
    network = zoo.digits((4, 6), gates=())
    w, (_, x, y) = network.layout.initialise(SeedTree(0), "float64"), problem()
    adapted = adapt(network, w, x, y, SETTINGS)
    assert adapted.flops_gate == 0
    assert adapted.flops_backbone > 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, -1]), r"0\.\.9, got -1\.\.1"),
        (np.array([0, 1, 10]), r"0\.\.9, got 0\.\.10"),
        (np.array([0, 1, 2**63], np.uint64), r"0\.\.9"),
        (np.array([1]), "3 labels"),
        (np.array([[0, 1, 2]]), "3 labels"),
        (np.array(1), "3 labels"),
        (np.array([0.0, 1.0, 2.0]), "whole numbers, got float64"),
        (np.array([0, 1, 2], object), "whole numbers, got object"),
    ],
)
def test_labels_are_classes_one_for_each_sample(labels, message):
    w, x, _ = problem(samples=3)
    support = x, np.array([0, 1, 2])
    with pytest.raises(InputError, match=message):
        evaluate(NETWORK, w, x, labels)
    with pytest.raises(InputError, match=message):
        adapt(NETWORK, w, x, labels, SETTINGS)
    with pytest.raises(InputError, match=message):
        report_node("a", NETWORK, w, support, (x, labels), SETTINGS)


def test_labels_of_any_whole_type_give_the_same_evaluation():
    w, x, y = problem()
    expected = evaluate(NETWORK, w, x, y)
    for kind in ("u1", "i2", ">i4", "u8"):
        found = evaluate(NETWORK, w, x, y.astype(kind))
        assert (found.accuracy, found.loss) == (expected.accuracy, expected.loss)


@pytest.mark.parametrize("wrong", [{"eta_phi": -1.0}, {"eta_theta": -0.1}, {"steps": -1}])
def test_negative_settings_are_refused(wrong):
    with pytest.raises(InputError, match="AdaptSettings"):
        replace(SETTINGS, **wrong)
