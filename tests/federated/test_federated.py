"""Local problems, rounds and methods on quadratics with closed-form answers, and on a small network."""

from __future__ import annotations

import math
import os
import signal

import numpy as np
import pytest
from forks import fork
from quadratics import Quadratic

from refimpl.errors import DivergenceError, InputError
from refimpl.federated.local import LocalSettings, local_residual, solve_local
from refimpl.federated.methods.fedavg import FedAvg
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.methods.perfedavg import PerFedAvgFO
from refimpl.federated.methods.pfedme import PFedMe
from refimpl.federated.methods.reptile import Reptile
from refimpl.federated.rounds import Participation, run_rounds
from refimpl.nn import zoo
from refimpl.nn.context import Gating
from refimpl.nn.task import NetworkTask
from refimpl.optim import accel, prox
from refimpl.rng import SeedTree

EVERYONE = Participation()


def quadratics(count=4, dimension=3, seed=0):
    rng = np.random.default_rng(seed)
    return [Quadratic(rng.standard_normal(dimension), 0.5 + rng.random()) for _ in range(count)]


def run(method, tasks, w0, rounds, participation=EVERYONE, threads=1, seed=0):
    start, span = method.start(w0), range(1, rounds + 1)
    done = list(run_rounds(method, tasks, start, span, participation, SeedTree(seed), threads))
    return method.model(done[-1][0]), [record for _, record in done]


def test_local_solution_is_the_closed_form_gradient_iteration():
    # w_s - w* = (1 - eta (c + lam))^s (centre - w*), w* = (c target + lam centre)/(c + lam)
    task, centre = Quadratic(np.array([2.0, -1.0]), 3.0), np.array([0.5, 0.5])
    settings = LocalSettings(lam=2.0, eta=0.1, steps=7)
    solution = solve_local(task, centre, settings, np.random.default_rng(0))
    best = (3.0 * task.target + 2.0 * centre) / 5.0
    expected = best + (1 - 0.1 * 5.0) ** 7 * (centre - best)
    np.testing.assert_allclose(solution.w, expected, rtol=1e-14)
    before_last = best + (1 - 0.1 * 5.0) ** 6 * (centre - best)
    assert solution.residual == pytest.approx(5.0 * np.linalg.norm(before_last - best), rel=1e-12)
    at_solution = local_residual(task, solution.w, centre, 2.0)
    assert at_solution == pytest.approx(5.0 * np.linalg.norm(expected - best), rel=1e-12)
    assert solution.gradients == 7
    assert solution.loss == pytest.approx(task(centre, np.empty(2)))


def test_the_centre_is_not_changed():
    centre = np.ones(3)
    solve_local(Quadratic(np.zeros(3)), centre, LocalSettings(1.0, 0.1, 3), np.random.default_rng(0))
    np.testing.assert_array_equal(centre, np.ones(3))


def test_metagater_converges_to_the_minimiser_of_the_mean_envelope():
    # envelope of (c/2)||w - t||^2 is (m/2)||w - t||^2 with m = lam c/(lam + c)
    tasks, lam = quadratics(), 2.0
    method = MetaGater(LocalSettings(lam, 0.25, 60), accel.Nesterov(1.0), prox.Zero())
    w, records = run(method, tasks, np.zeros(3), 200)
    weights = np.array([lam * t.curvature / (lam + t.curvature) for t in tasks])
    best = (weights[:, None] * np.array([t.target for t in tasks])).sum(0) / weights.sum()
    np.testing.assert_allclose(w, best, atol=1e-6)
    assert records[-1].gap < 1e-4 * records[0].gap


def test_metagater_first_round_by_hand():
    # k = 1: a = 1, so md = x_0; with one step and eta: w~ = w0 - eta grad, g = lam eta mean(grad);
    # ghadimi-lan: ag = md - b g, x = x_0 - (b/2) g
    tasks, w0 = quadratics(), np.array([1.0, 2.0, 3.0])
    eta, lam, b = 0.1, 1.5, 0.4
    method = MetaGater(LocalSettings(lam, eta, 1), accel.GhadimiLan(b), prox.Zero())
    state = method.start(w0)
    ((state, record),) = run_rounds(method, tasks, state, range(1, 2), Participation(), SeedTree(0))
    g = lam * eta * np.mean([t.curvature * (w0 - t.target) for t in tasks], axis=0)
    np.testing.assert_allclose(state["ag"], w0 - b * g, rtol=1e-13)
    np.testing.assert_allclose(state["x"], w0 - b / 2 * g, rtol=1e-13)
    assert record.gap == pytest.approx(np.linalg.norm(g), rel=1e-12)


def test_the_penalty_acts_on_its_part_only():
    tasks, w0 = quadratics(dimension=4), np.array([1.0, -1.0, 0.01, -0.01])
    penalty = prox.Separable(((slice(2, 4), prox.L1(100.0)),))
    method = MetaGater(LocalSettings(1.0, 0.1, 1), accel.GhadimiLan(0.5), penalty)
    w, _ = run(method, tasks, w0, 3)
    assert (w[2:] == 0).all()
    assert (w[:2] != 0).all()


def test_fedavg_is_the_mean_of_local_descents():
    tasks, w0 = quadratics(), np.zeros(3)
    w, records = run(FedAvg(eta=0.1, local_steps=2), tasks, w0, 1)
    expected = np.mean([t.target * (1 - (1 - 0.1 * t.curvature) ** 2) for t in tasks], axis=0)
    np.testing.assert_allclose(w, expected, rtol=1e-12)
    assert math.isnan(records[0].gap)


def test_weighted_mean_uses_the_sizes():
    tasks = [Quadratic(np.array([1.0]), 1.0, size=3), Quadratic(np.array([0.0]), 1.0, size=1)]
    w, _ = run(FedAvg(eta=0.5, local_steps=1), tasks, np.zeros(1), 1, Participation(weighted=True))
    assert w[0] == pytest.approx(0.75 * 0.5)


def test_perfedavg_steps_both_start_from_w():
    # on (c/2)(w - t)^2: ahead - t = (1 - alpha c)(w - t); w' = w - beta c (1 - alpha c)(w - t)
    task = Quadratic(np.array([2.0]), 0.8)
    w, records = run(PerFedAvgFO(alpha=0.5, eta=0.25, local_steps=1), [task], np.array([5.0]), 1)
    assert w[0] == pytest.approx(5.0 - 0.25 * 0.8 * (1 - 0.5 * 0.8) * 3.0, rel=1e-13)
    assert records[0].gradients == 2


def test_participation_is_keyed_by_round_not_by_call_order():
    participation, seeds = Participation(per_round=3), SeedTree(5)
    later_first = [participation.sample(10, k, seeds) for k in (4, 1)]
    assert later_first == [participation.sample(10, k, seeds) for k in (1, 4)][::-1]
    assert all(len(set(nodes)) == 3 and nodes == sorted(nodes) for nodes in later_first)
    with pytest.raises(InputError, match="cannot draw 11 of 10"):
        Participation(per_round=11).sample(10, 1, seeds)


def bad_round(method=FedAvg(eta=0.1, local_steps=1), tasks=None, state=None, rounds=range(1, 2), **options):  # noqa: B008
    """One round, in which something is to be refused."""
    tasks = quadratics() if tasks is None else tasks
    state = method.start(np.ones(3)) if state is None else state
    list(
        run_rounds(
            method, tasks, state, rounds, options.pop("participation", EVERYONE), SeedTree(0), **options
        )
    )


class Longer(FedAvg):
    """Answers with one entry more than it was sent."""

    def local(self, task, point, rng):
        answer = super().local(task, point, rng)
        return answer._replace(w=np.append(answer.w, 0.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": []}, "at least one task"),
        ({"rounds": range(2)}, "round > 0"),
        ({"threads": 1.5}, "threads >= 0, a whole number"),
        ({"state": {"x": np.ones(3), "ag": np.ones(3)}}, "expected a state with w, got x, ag"),
        ({"state": {"w": np.ones((3, 1))}}, "w to be a 1-D"),
        ({"method": Longer(eta=0.1, local_steps=1)}, "point and answer of one length"),
        (
            {"tasks": [Quadratic(np.zeros(3), size=0)], "participation": Participation(weighted=True)},
            "cannot be weighted",
        ),
    ],
)
def test_rounds_refuse_what_they_cannot_run(given, message):
    with pytest.raises(InputError, match=message):
        bad_round(**given)


@pytest.mark.parametrize("mean", [np.ones(2), np.ones(1), np.ones(3, np.float32), np.ones((3, 1))])
@pytest.mark.parametrize(
    "method",
    [
        FedAvg(eta=0.1, local_steps=1),
        Reptile(eta=0.1, local_steps=1, mix=0.5),
        PFedMe(lam=1.0, alpha=0.1, inner_steps=1, eta=0.1, local_steps=1, mix=0.5),
    ],
)
def test_servers_refuse_means_of_other_models(method, mean):
    with pytest.raises(InputError, match="mean"):
        method.server(method.start(np.ones(3)), 1, np.ones(3), mean)


def network_tasks(dtype="float32", mode="hard", gate_grad="dense"):
    network = zoo.mlp((6, 8, 3), gates=("fc1",))
    rng = np.random.default_rng(1)
    return network, [
        NetworkTask(
            network,
            rng.standard_normal((12, 6)).astype(dtype),
            rng.integers(0, 3, 12),
            Gating(mode, 1.0, gate_grad),
            batch_size=5,
        )
        for _ in range(5)
    ]


def gated_method(network):
    groups = prox.Groups(*network.gate_groups, size=network.layout.phi.stop - network.layout.phi.start)
    penalty = prox.Separable(((network.layout.phi, prox.GroupLasso(groups, 0.01)),))
    return MetaGater(LocalSettings(1.0, 0.1, 3), accel.GhadimiLan(0.5), penalty)


def backwards(work, pieces, threads, then):
    """As `in_turn`, but the last piece begins first."""
    for piece, result in [(piece, work(piece)) for piece in reversed(range(pieces))][::-1]:
        then(piece, result)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["hard", "gumbel"])
def test_same_bytes_whatever_threads_and_order(dtype, mode, monkeypatch):
    network, tasks = network_tasks(dtype, mode)
    w0, method = network.layout.initialise(SeedTree(3), dtype), gated_method(network)
    participation = Participation(per_round=3)
    one, _ = run(method, tasks, w0, 4, participation, threads=1)
    two, _ = run(method, tasks, w0, 4, participation, threads=2)
    monkeypatch.setattr("refimpl.federated.rounds.in_turn", backwards)
    last_first, _ = run(method, tasks, w0, 4, participation, threads=2)
    assert one.tobytes() == two.tobytes() == last_first.tobytes()
    assert one.tobytes() != w0.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_process_trains_with_threads_of_its_own():
    network, tasks = network_tasks()
    w0, method = network.layout.initialise(SeedTree(3)), gated_method(network)
    here, _ = run(method, tasks, w0, 1, threads=2)
    child = fork()
    if child == 0:
        signal.alarm(60)  # threads that stayed behind would be waited for without end
        there, _ = run(method, tasks, w0, 1, threads=2)
        os._exit(0 if there.tobytes() == here.tobytes() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_rounds_can_be_cut_anywhere():
    network, tasks = network_tasks()
    w0, method = network.layout.initialise(SeedTree(3)), gated_method(network)
    whole, _ = run(method, tasks, w0, 5)
    state = method.start(w0)
    for part in (range(1, 3), range(3, 6)):
        *_, (state, _) = run_rounds(method, tasks, state, part, Participation(), SeedTree(0))
    assert method.model(state).tobytes() == whole.tobytes()


def test_a_record_counts_what_was_done():
    network, tasks = network_tasks()
    w0 = network.layout.initialise(SeedTree(3))
    _, (record,) = run(gated_method(network), tasks, w0, 1)
    assert record.gradients == 5 * 3
    assert record.floats_sent == 2 * 5 * network.layout.size
    assert 0 < record.floats_sent_sparse <= record.floats_sent
    assert record.flops > 0
    assert 0 <= record.closed_share <= 1
    assert record.nodes == (0, 1, 2, 3, 4)


def test_divergence_names_round_and_node():
    tasks = [Quadratic(np.zeros(2), 1.0), Quadratic(np.zeros(2), 1e200)]
    with pytest.raises(DivergenceError, match=r"round \d+ at node 1"):
        run(FedAvg(eta=1.0, local_steps=3), tasks, np.ones(2), 50)


def test_impossible_settings_are_refused():
    for settings in ((-1.0, 0.1, 1), (1.0, 0.0, 1), (1.0, 0.1, 0), (1.0, math.nan, 1)):
        with pytest.raises(InputError, match="LocalSettings"):
            LocalSettings(*settings)
