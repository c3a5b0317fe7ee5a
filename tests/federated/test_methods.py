"""The comparison methods: a round of each by hand, the limits in which they meet, and what they count."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quadratics import Quadratic
from strategies import examples

from bench.delta import errors, networks
from refimpl.errors import InputError
from refimpl.experiments.config import Config
from refimpl.experiments.methods import build_method
from refimpl.federated.local import Tally
from refimpl.federated.methods.fedavg import FedAvg
from refimpl.federated.methods.fomaml import FOMAML
from refimpl.federated.methods.maml import MAML
from refimpl.federated.methods.meta import gradient_at, look_ahead
from refimpl.federated.methods.perfedavg import PerFedAvgFO
from refimpl.federated.methods.perfedavg_hf import DELTA, PerFedAvgHF
from refimpl.federated.methods.pfedme import PFedMe
from refimpl.federated.methods.reptile import Reptile
from refimpl.federated.rounds import Participation, run_rounds
from refimpl.nn import zoo
from refimpl.nn.context import Context
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree


def run(method, tasks, w0, rounds=1, participation=None, threads=1):
    start = method.start(np.asarray(w0, dtype=float))
    done = list(
        run_rounds(
            method,
            tasks,
            start,
            range(1, rounds + 1),
            participation or Participation(),
            SeedTree(0),
            threads,
        )
    )
    return method.model(done[-1][0]), [record for _, record in done]


# One round by hand. Node A: (w - 2)^2/2, gradient w - 2. Node B: (w + 1)^2, gradient 2 (w + 1), Hessian 2.
# w = 1, alpha = 1/4, beta = 1/2; all numbers are exact in binary.

A, B = Quadratic(2.0, 1.0, size=3), Quadratic(-1.0, 2.0, size=1)

BY_HAND = {
    # A: 1 + 1/2 = 1.5; B: 1 - 4/2 = -1
    FedAvg(eta=0.5, local_steps=1): (1.5 - 1.0) / 2,
    # A: ahead 1.25, v = -0.75, w = 1.375; B: ahead 0, v = 2, w = 0
    PerFedAvgFO(alpha=0.25, eta=0.5, local_steps=1): (1.375 + 0.0) / 2,
    # A: d = H v = -0.75, v - d/4 = -0.5625, w = 1.28125; B: d = 4, v - d/4 = 1, w = 0.5
    PerFedAvgHF(alpha=0.25, eta=0.5, local_steps=1, delta=0.5): (1.28125 + 0.5) / 2,
    MAML(alpha=0.25, eta=0.5, local_steps=1): (1.28125 + 0.5) / 2,
    # A: 1, 1.25, 1.4375, v = -0.5625 (3/4)^2, w = 1.158203125; B: 1, 0, -0.5, v = 1 (1/2)^2, w = 0.875
    MAML(alpha=0.25, eta=0.5, local_steps=1, inner_steps=2): (1.158203125 + 0.875) / 2,
    # the same points, v = -0.5625 and 1: w = 1.28125 and 0.5
    FOMAML(alpha=0.25, eta=0.5, local_steps=1, inner_steps=2): (1.28125 + 0.5) / 2,
    # A: 1, 1.25, 1.4375; B: 1, 0, -0.5; mean 0.46875, half the way from 1
    Reptile(eta=0.25, local_steps=2, mix=0.5): (1 + 0.46875) / 2,
    # A: t = 1, 1.25, then - (-0.75 + 2/4)/4 = 1.3125, w = 1 + 0.3125/2; B: t = 1, 0, then - (2 - 2)/4 = 0,
    # w = 1 - 1/2; mean 0.828125, half the way from 1
    PFedMe(lam=2.0, alpha=0.25, inner_steps=2, eta=0.25, local_steps=1, mix=0.5): (1 + 0.828125) / 2,
}


@pytest.mark.parametrize("method", BY_HAND, ids=lambda method: method.name)
def test_one_round_of_two_nodes_by_hand(method):
    w, (record,) = run(method, [A, B], [1.0])
    assert w[0] == BY_HAND[method]
    assert np.isnan(record.gap)


def test_the_mean_may_be_weighted_by_the_sizes():
    w, _ = run(FedAvg(eta=0.5, local_steps=1), [A, B], [1.0], participation=Participation(weighted=True))
    assert w[0] == 0.75 * 1.5 + 0.25 * -1.0
    w, _ = run(
        Reptile(eta=0.5, local_steps=1, mix=0.5), [A, B], [1.0], participation=Participation(weighted=True)
    )
    assert w[0] == 1 + 0.5 * (0.875 - 1)


# Networks


SMOOTH = zoo.mlp((5, 6, 3), activation="softplus")


def network_tasks(network=SMOOTH, dtype="float64", batch_size=0, nodes=3):
    rng = np.random.default_rng(1)
    shape = (10, *network.input_shape)
    return [
        NetworkTask(
            network,
            rng.standard_normal(shape).astype(dtype),
            rng.integers(0, network.classes, 10),
            batch_size=batch_size,
        )
        for _ in range(nodes)
    ]


def start(network=SMOOTH, dtype="float64"):
    return network.layout.initialise(SeedTree(3), dtype)


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_mamls_direction_is_the_gradient_of_the_loss_after_adaptation(inner_steps):
    """d/dw of L(w after inner steps on D_1..D_J; D'), by differences of the loss alone."""
    rng, w, alpha = np.random.default_rng(0), start(), 0.5
    batches = [
        NetworkObjective(
            SMOOTH, rng.standard_normal((6, 5)), rng.integers(0, 3, 6), Context(train=("theta",))
        )
        for _ in range(inner_steps + 1)
    ]

    def after(w):
        return batches[-1].value(look_ahead(w, batches[:-1], alpha, Tally())[-1])

    loss, direction = MAML(alpha=alpha, eta=1.0, local_steps=1, inner_steps=inner_steps).meta_gradient(
        w, batches, Tally()
    )
    assert loss == pytest.approx(after(w), rel=1e-14)
    h = 1e-4
    for _ in range(5):
        u = rng.standard_normal(w.size)
        near, far = after(w + h * u) - after(w - h * u), after(w + 2 * h * u) - after(w - 2 * h * u)
        assert direction @ u == pytest.approx((8 * near - far) / (12 * h), rel=1e-6)
    _, first_order = FOMAML(alpha=alpha, eta=1.0, local_steps=1, inner_steps=inner_steps).meta_gradient(
        w, batches, Tally()
    )
    assert np.linalg.norm(first_order - direction) > 0.05 * np.linalg.norm(direction)


def test_the_hessian_free_variant_tends_to_exact_maml():
    """Full batches: D = D' = D''. The error is that of a central difference, O(delta^2)."""
    tasks, w0 = network_tasks(), start()
    exact, _ = run(MAML(alpha=0.5, eta=1.0, local_steps=2), tasks, w0)
    errors = []
    for delta in (1e-1, 1e-2, 1e-3):
        w, _ = run(PerFedAvgHF(alpha=0.5, eta=1.0, local_steps=2, delta=delta), tasks, w0)
        errors.append(np.linalg.norm(w - exact) / np.linalg.norm(exact - w0))
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.1)
    assert errors[2] < 1e-6


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 0.1), ("float64", 1e-6)])
def test_the_default_delta_is_measured_against_exact_products(dtype, allowed):
    """Along trainings on digits, the former default is off by more than the term itself more often."""

    deltas, cases = (1e-4, DELTA[dtype]), itertools.product(networks(), range(4))
    found = np.array([row for net, seed in cases for row in errors(net, dtype, 100, seed, 20, deltas)])
    former, chosen = np.mean(found > 1, axis=0)
    assert chosen < former
    assert np.median(found, axis=0)[1] < allowed
    network = networks()[0]
    (task, *_), w0 = network_tasks(network, dtype), start(network, dtype)
    usual, named, other = (
        build_method(Config(method="perfedavg-hf", dtype=dtype, delta=delta), network)
        .local(task, w0, np.random.default_rng(0))
        .w.tobytes()
        for delta in (0.0, DELTA[dtype], 0.5)
    )
    assert usual == named != other


def test_looking_nowhere_ahead_they_are_all_local_sgd():
    tasks, w0 = network_tasks(), start()
    plain, _ = run(FedAvg(eta=0.3, local_steps=3), tasks, w0, rounds=2)
    for method in (
        MAML(alpha=0.0, eta=0.3, local_steps=3),
        MAML(alpha=0.0, eta=0.3, local_steps=3, inner_steps=2),
        FOMAML(alpha=0.0, eta=0.3, local_steps=3),
        PerFedAvgFO(alpha=0.0, eta=0.3, local_steps=3),
        PerFedAvgHF(alpha=0.0, eta=0.3, local_steps=3, delta=0.1),
    ):
        w, _ = run(method, tasks, w0, rounds=2)
        np.testing.assert_allclose(w, plain, rtol=1e-12, atol=1e-14, err_msg=method.name)


def test_first_order_maml_with_one_inner_step_is_first_order_perfedavg():
    tasks, w0 = network_tasks(batch_size=4), start()
    one, _ = run(FOMAML(alpha=0.2, eta=0.3, local_steps=3), tasks, w0, rounds=2)
    other, _ = run(PerFedAvgFO(alpha=0.2, eta=0.3, local_steps=3), tasks, w0, rounds=2)
    assert one.tobytes() == other.tobytes()


def test_reptile_meets_fedavg():
    tasks, w0 = network_tasks(batch_size=4), start()
    whole, _ = run(Reptile(eta=0.2, local_steps=3, mix=1.0), tasks, w0, rounds=2)
    np.testing.assert_allclose(
        whole, run(FedAvg(eta=0.2, local_steps=3), tasks, w0, rounds=2)[0], rtol=1e-12, atol=1e-14
    )
    step, _ = run(Reptile(eta=0.2, local_steps=1, mix=0.25), tasks, w0, rounds=2)
    np.testing.assert_allclose(
        step, run(FedAvg(eta=0.05, local_steps=1), tasks, w0, rounds=2)[0], rtol=1e-12, atol=1e-14
    )


curvatures = st.floats(0.25, 4.0)


@given(curvatures, curvatures, st.floats(-3, 3), st.floats(0.1, 0.9))
@examples(30)
def test_maml_settles_where_the_adapted_losses_are_stationary(one, other, target, share):
    """L_i(w - alpha grad L_i(w)) has curvature c (1 - alpha c)^2, and keeps the node's target."""
    alpha = share / 4
    tasks = [Quadratic(1.0, one), Quadratic(target, other)]
    curved = [c * (1 - alpha * c) ** 2 for c in (one, other)]
    best = (curved[0] + curved[1] * target) / sum(curved)
    factor = 1 - 0.2 * sum(curved) / 2  # contraction of a round
    w, _ = run(MAML(alpha=alpha, eta=0.2, local_steps=1), tasks, [5.0], rounds=30)
    assert w[0] - best == pytest.approx(factor**30 * (5.0 - best), rel=1e-9, abs=1e-12)


@given(curvatures, st.floats(0.1, 1e3), st.integers(1, 4))
@examples(30)
def test_pfedme_steps_on_the_moreau_envelope(curvature, lam, steps):
    """With t exact, w_i <- w_i - eta m (w_i - target), m = lam c/(lam + c) the envelope's curvature."""
    task, eta = Quadratic(2.0, curvature), 0.1
    # one prox step of rate 1/(c + lam) solves a quadratic's proximal problem
    method = PFedMe(lam=lam, alpha=1 / (curvature + lam), inner_steps=1, eta=eta, local_steps=steps, mix=1.0)
    w, (record,) = run(method, [task], [5.0])
    m = lam * curvature / (lam + curvature)
    assert w[0] == pytest.approx(2.0 + (1 - eta * m) ** steps * 3.0, rel=1e-12)
    assert record.loss == pytest.approx(0.5 * curvature * 9.0)


def test_pfedme_in_the_limits_of_lambda():
    """lam -> infinity: local SGD, t = w - g/lam; lam -> 0: the global model stays where it is."""
    tasks, w0 = network_tasks(), start()

    def distance(lam, eta_prox, target):
        method = PFedMe(lam=lam, alpha=eta_prox, inner_steps=20, eta=0.3, local_steps=2, mix=1.0)
        return np.linalg.norm(run(method, tasks, w0)[0] - target)

    plain, _ = run(FedAvg(eta=0.3, local_steps=2), tasks, w0)
    moved = np.linalg.norm(plain - w0)
    ends = [distance(lam, 1 / lam, plain) / moved for lam in (1e2, 1e3, 1e4)]
    assert ends[0] < 0.05
    assert ends[0] / ends[1] == pytest.approx(10, rel=0.1)
    assert ends[1] / ends[2] == pytest.approx(10, rel=0.1)
    still = [distance(lam, 0.1, w0) / moved for lam in (1e-3, 1e-4)]
    assert still[0] / still[1] == pytest.approx(10, rel=0.1)
    assert still[1] < 1e-3


def test_pfedme_with_one_prox_step_is_slowed_local_sgd():
    tasks, w0 = network_tasks(batch_size=4), start()
    slow, _ = run(PFedMe(lam=2.0, alpha=0.1, inner_steps=1, eta=0.3, local_steps=3, mix=1.0), tasks, w0)
    plain, _ = run(FedAvg(eta=2.0 * 0.1 * 0.3, local_steps=3), tasks, w0)
    np.testing.assert_allclose(slow, plain, rtol=1e-12, atol=1e-14)


# What they count


COUNTS = {
    FedAvg(eta=0.1, local_steps=3): 3,
    PerFedAvgFO(alpha=0.1, eta=0.1, local_steps=3): 3 * 2,
    PerFedAvgHF(alpha=0.1, eta=0.1, local_steps=3, delta=0.01): 3 * 4,
    MAML(alpha=0.1, eta=0.1, local_steps=3): 3 * (1 + 1 + 2),
    MAML(alpha=0.1, eta=0.1, local_steps=3, inner_steps=2): 3 * (2 + 1 + 2 * 2),
    FOMAML(alpha=0.1, eta=0.1, local_steps=3, inner_steps=2): 3 * 3,
    Reptile(eta=0.1, local_steps=3, mix=0.5): 3,
    PFedMe(lam=1.0, alpha=0.1, inner_steps=4, eta=0.1, local_steps=3, mix=1.0): 3 * 4,
}


@pytest.mark.parametrize("method", COUNTS, ids=lambda method: f"{method.name}-{COUNTS[method]}")
def test_a_round_counts_gradients_flops_and_floats(method):
    """FLOPs: those of the gradients; a Hessian-vector product costs what `work` says, not two gradients."""
    tasks, w0 = network_tasks(batch_size=4), start()
    _, (record,) = run(method, tasks, w0)
    assert record.gradients == len(tasks) * COUNTS[method]
    assert record.floats_sent == 2 * len(tasks) * w0.size
    assert record.seconds > 0
    (objective,) = tasks[0].draw(np.random.default_rng(0), 1)
    gradient_at(objective, w0, Tally())
    plain = objective.measure()[0]
    objective.hessian_vector(w0, w0)
    second = objective.measure()[0]
    products = 3 * method.inner_steps if isinstance(method, MAML) else 0
    expected = len(tasks) * ((COUNTS[method] - 2 * products) * plain + products * second)
    assert record.flops == pytest.approx(expected)


@pytest.mark.parametrize("method", COUNTS, ids=lambda method: f"{method.name}-{COUNTS[method]}")
def test_threads_change_no_byte_and_float32_stays(method):
    tasks = network_tasks(dtype="float32", batch_size=4)
    w0 = start(dtype="float32")
    ends = [
        list(run_rounds(method, tasks, method.start(w0), range(1, 3), Participation(), SeedTree(0), threads))
        for threads in (1, 2)
    ]
    one, two = (method.model(end[-1][0]) for end in ends)
    assert one.dtype == np.float32
    assert one.tobytes() == two.tobytes() != w0.tobytes()


def test_the_broadcast_point_is_not_changed():
    tasks, w0 = network_tasks(batch_size=4), start()
    for method in COUNTS:
        point = w0.copy()
        method.local(tasks[0], point, np.random.default_rng(0))
        assert point.tobytes() == w0.tobytes(), method.name


# Refusals


class Flat:
    """An objective without second derivatives, as a task."""

    size = 1

    def __call__(self, w, grad_out):
        grad_out[:] = 0
        return 0.0

    def draw(self, rng, count):
        return [self] * count


def test_maml_says_what_it_needs():
    with pytest.raises(InputError, match="a Flat has no hessian_vector"):
        run(MAML(alpha=0.1, eta=0.1, local_steps=1), [Flat()], [1.0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: MAML(alpha=-0.1, eta=0.1, local_steps=1),
        lambda: MAML(alpha=0.1, eta=0.0, local_steps=1),
        lambda: MAML(alpha=0.1, eta=0.1, local_steps=1, inner_steps=0),
        lambda: FOMAML(alpha=0.1, eta=0.1, local_steps=0),
        lambda: PerFedAvgFO(alpha=float("nan"), eta=0.1, local_steps=1),
        lambda: PerFedAvgHF(alpha=0.1, eta=0.1, local_steps=1, delta=-0.1),
        lambda: Reptile(eta=0.1, local_steps=1, mix=0.0),
        lambda: PFedMe(lam=0.0, alpha=0.1, inner_steps=1, eta=0.1, local_steps=1, mix=1.0),
        lambda: PFedMe(lam=1.0, alpha=0.1, inner_steps=0, eta=0.1, local_steps=1, mix=1.0),
        lambda: PFedMe(lam=1.0, alpha=0.1, inner_steps=1, eta=0.1, local_steps=1, mix=float("inf")),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(InputError, match=r"(alpha|eta|lam|mix|delta|steps) must be|expected (lam|alpha) > 0"):
        make()
