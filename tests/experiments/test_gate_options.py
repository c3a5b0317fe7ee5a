"""Options of gated training: rates, temperatures, weights and groups, each against what it should compute."""

import numpy as np
import pytest

from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import adapt_settings, prepare, train
from refimpl.federated.local import LocalSettings, solve_local
from refimpl.nn.context import Context, Gating
from refimpl.nn.objective import NetworkObjective
from refimpl.optim.prox import L1, Rising

SMALL = {
    "nodes": 2,
    "targets": 1,
    "node_min": 20,
    "node_max": 20,
    "support": 5,
    "rounds": 3,
    "local_steps": 2,
}


def experiment(**options):
    return prepare(resolve(dataset="digits", dtype="float64", **SMALL, **options))


def test_gates_take_their_steps_with_their_own_rate():
    made = experiment(eta=0.05, eta_gate=0.2, lam=1.5, batch_size=0)
    w, phi = made.method.model(made.start()), made.network.layout.phi
    task, rates = made.tasks()[0], np.full(w.size, 0.05)
    rates[phi] = 0.2
    by_hand, gradient = w.copy(), np.empty_like(w)
    for objective in task.draw(np.random.default_rng(0), 2):
        objective(by_hand, gradient)
        by_hand -= rates * (gradient + 1.5 * (by_hand - w))
    found = made.method.local(task, w, np.random.default_rng(0))
    np.testing.assert_allclose(found.w, by_hand, rtol=0, atol=1e-14)
    assert found.gradients == 2
    assert np.abs(found.w[phi] - w[phi]).max() > 0


def test_an_equal_rate_gives_the_same_bits_as_none():
    made = experiment()
    w, task, phi = made.method.model(made.start()), made.tasks()[0], made.network.layout.phi
    one, other = (
        solve_local(task, w, LocalSettings(1.0, 0.05, 2, own), np.random.default_rng(0)).w
        for own in (None, (phi.start, phi.stop, 0.05))
    )
    assert one.tobytes() == other.tobytes()


def test_the_temperature_goes_geometrically_to_its_end():
    made = experiment(gate_mode="soft", tau=2.0, tau_end=0.5)
    assert [made.gating_in(k).tau for k in (1, 2, 3)] == pytest.approx([2.0, 1.0, 0.5])
    assert adapt_settings(made).gating.tau == 0.5
    seen = [task.gating.tau for k in (1, 2, 3) for task in made.tasks(round_=k)]
    assert seen == pytest.approx([2.0, 2.0, 1.0, 1.0, 0.5, 0.5])
    one = train(experiment(gate_mode="soft", tau=2.0)).w
    assert train(experiment(gate_mode="soft", tau=2.0, tau_end=2.0)).w.tobytes() == one.tobytes()
    assert train(made).w.tobytes() != one.tobytes()


def test_a_run_with_a_changing_temperature_is_the_same_in_two_parts():
    made = experiment(gate_mode="soft", tau=2.0, tau_end=0.5)
    *_, (whole, _) = made.rounds(made.start(), range(1, 4), 1)
    *_, (part, record) = made.rounds(made.start(), range(1, 3), 1)
    *_, (rest, _) = made.rounds(part, range(3, 4), 1, record.loss)
    assert all(whole[name].tobytes() == rest[name].tobytes() for name in whole)


def test_shaping_falls_to_zero_and_is_no_part_of_adaptation():
    made = experiment(shaping=0.6, shaping_a=0.5, shaping_fall=0.9)  # of 3 rounds
    found = [made.tasks(round_=k)[0].gating.shaping for k in (1, 2, 3)]
    assert [shaping.weight for shaping in found] == pytest.approx([0.6 * (1 - k / 2.7) for k in (1, 2)] + [0])
    assert {shaping[1:] for shaping in found} == {(0.5, 0.4)}
    assert adapt_settings(made).gating == experiment().gating
    constant = experiment(shaping=0.6)
    assert [constant.gating_in(k).shaping.weight for k in (1, 3)] == [0.6, 0.6]
    assert not constant.anneals
    assert experiment().gating_in(2) == experiment().gating


def test_shaped_gates_are_nearer_to_the_distribution_after_some_rounds():
    distances = []
    for weight in (0.0, 2.0):
        made = experiment(shaping=weight, gate_a2=0.3, eta=0.1)
        w, gating = train(made).w, Gating(shaping=(1.0, 0.6, 0.4))
        losses = [
            NetworkObjective(made.network, *node.train, Context(how, ("phi",))).value(w)
            for node in made.train_nodes
            for how in (gating, Gating())
        ]
        distances.append(losses[0] - losses[1])
    assert distances[1] < 0.8 * distances[0]


def test_a_rising_penalty_is_the_penalty_with_its_weight_of_the_round():
    v, rising = np.array([0.3, -2.0, 1.0]), Rising(L1(0.4), rounds=4)
    for round_, factor in ((1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        one, other = rising.at(round_), L1(0.4 * factor)
        u, expected = np.empty(3), np.empty(3)
        assert one.prox(v, 2.0, u) == pytest.approx(other.prox(v, 2.0, expected))
        np.testing.assert_allclose(u, expected)
        assert one.value(v) == pytest.approx(other.value(v))
        s = np.array([0.1, 0.5, -1.0])
        expected_distance = other.subdifferential_distance(s, expected)
        assert one.subdifferential_distance(s, expected) == pytest.approx(expected_distance)


def test_a_rising_penalty_acts_in_the_rounds_of_a_run():
    made, plain = experiment(rho=0.1, rho_rise=1.0), experiment(rho=0.1)
    point = made.method.model(made.start())
    mean = 0.9 * point
    state, _ = made.method.server(made.start(), 1, point, mean)
    third = experiment(rho=0.1 / 3)  # round 1 of 3
    expected, _ = third.method.server(third.start(), 1, point, mean)
    for name in state:
        np.testing.assert_allclose(state[name], expected[name], rtol=1e-13)
    last = made.method.server(made.start(), 3, point, mean)[0]
    assert all(
        last[k].tobytes() == plain.method.server(plain.start(), 3, point, mean)[0][k].tobytes() for k in last
    )


def test_groups_without_bias_leave_the_biases_without_a_penalty():
    made = experiment(group_bias=False, rho=1e3)
    phi = made.network.layout.phi
    w, out = np.ones(made.network.layout.size), np.empty(made.network.layout.size)
    made.method.penalty.prox(w, 1.0, out)
    views = made.network.layout.views(out)
    (gate,) = (block.gate.name for block in made.network.gates)
    assert not views[f"{gate}.fc2.weight"].any()
    assert (views[f"{gate}.fc2.bias"] == 1).all()
    assert (out[: phi.start] == 1).all()
    whole = experiment(rho=1e3).method.penalty
    whole.prox(w, 1.0, out)
    assert not made.network.layout.views(out)[f"{gate}.fc2.bias"].any()
