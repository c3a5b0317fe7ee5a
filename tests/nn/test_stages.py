"""Stage II on what stage I left: the same bits as two stages that know nothing of each other, less work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refimpl.federated.adapt import AdaptSettings, adapt
from refimpl.federated.local import LocalSettings, solve_local
from refimpl.kernels.workspace import release_workspaces
from refimpl.nn import program, stages, zoo
from refimpl.nn.context import Context, Gating
from refimpl.nn.layers import Linear
from refimpl.nn.network import Network
from refimpl.nn.pointwise import Softplus
from refimpl.nn.predict import predict
from refimpl.nn.task import NetworkTask
from refimpl.nn.work import Work, executed_work
from refimpl.rng import SeedTree

NETWORKS = {
    "digits, second layer": zoo.digits((4, 6), gates=("conv2",)),
    "digits, first layer": zoo.digits((4, 6), gates=("conv1",)),
    "digits, both": zoo.digits((4, 6), gates=("conv1", "conv2")),
    "cnn3": zoo.cnn3((3, 16, 16), (3, 5, 7), gates=("conv2", "conv3")),
    "mlp": zoo.mlp((12, 9, 4), gates=("fc1",)),
    "logits": zoo.mlp((12, 9, 4), gates=("fc2",)),  # read by the loss, which skips nothing
    "softplus": Network(
        "softplus",
        (*zoo.with_gates([(Linear("fc1", 6, 8),)], ["fc1"]), Softplus(), Linear("fc2", 8, 4)),
        (6,),
    ),
}
GATINGS = [Gating(mode, gate_grad=grad) for mode in ("hard", "ste", "soft") for grad in ("dense", "active")]


def problem(network: Network, dtype="float32", samples=11):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((samples, *network.input_shape)).astype(dtype)
    w = network.layout.initialise(SeedTree(2), dtype)
    phi = network.layout.phi
    w[phi] += (0.5 * rng.standard_normal(w[phi].size)).astype(dtype)  # some channels closed
    return w, x, rng.integers(0, network.classes, samples)


def both(monkeypatch, network, settings, dtype="float32"):
    """Adapted with and without sharing."""
    w, x, y = problem(network, dtype)
    shared = adapt(network, w, x, y, settings)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "KEPT_BYTES", 0)
        apart = adapt(network, w, x, y, settings)
    return shared, apart


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("gating", GATINGS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_bits_from_less_work(monkeypatch, name, gating, steps):
    monkeypatch.setattr(program, "TRAINING_BYTES", 1 << 15)  # so that the samples are treated in parts
    settings = AdaptSettings(eta_phi=0.3, eta_theta=0.1, steps=steps, gating=gating)
    shared, apart = both(monkeypatch, NETWORKS[name], settings)
    assert shared.w.tobytes() == apart.w.tobytes()
    assert shared.flops_gate <= apart.flops_gate
    assert shared.flops_backbone <= apart.flops_backbone
    if name in ("cnn3", "digits, second layer"):
        assert shared.flops_backbone < apart.flops_backbone
        assert (shared.flops_gate < apart.flops_gate) == (steps > 1)


def test_both_precisions(monkeypatch):
    settings = AdaptSettings(eta_phi=0.3, eta_theta=0.1)
    shared, apart = both(monkeypatch, NETWORKS["cnn3"], settings, "float64")
    assert shared.w.tobytes() == apart.w.tobytes()


def test_the_work_that_is_left_out_is_that_of_the_layers_in_front():
    """By hand, for one gate: convolutions 1 and 2, their ReLUs and poolings are not computed again."""
    network = NETWORKS["digits, second layer"]
    w, x, y = problem(network)
    shared = adapt(network, w, x, y, AdaptSettings(eta_phi=0.3, eta_theta=0.1))
    moved = w.copy()
    moved[network.layout.phi] = shared.w[network.layout.phi]
    context = Context(Gating(), ("theta",))
    _, trace = network.forward(moved, x)
    whole = executed_work(network, network.masks(trace), len(x), context)
    opened = sum(mask.sum() for mask in network.masks(trace).values())
    first = len(x) * 4 * (2 * 9 * 64 + 64 + 64 + 16)  # taps, bias, ReLU at 8x8, pooled to 4x4
    second = opened * (4 * 2 * 9 * 16 + 16 + 16 + 4)
    assert isinstance(whole, Work)
    assert shared.flops_backbone == whole.total - first - second


def test_too_much_to_keep_is_not_kept(monkeypatch):
    network = NETWORKS["cnn3"]
    _, x, y = problem(network)
    tasks = [NetworkTask(network, x, y, Gating(), (part,)) for part in ("phi", "theta")]
    assert stages.sharing(*tasks, 1)[1].kept.first > 0
    monkeypatch.setattr(stages, "KEPT_BYTES", 100)
    assert stages.sharing(*tasks, 1) == tuple(tasks)
    plain = [replace(task, compiled=False) for task in tasks]
    assert stages.sharing(*plain, 1) == tuple(plain)


# Calls between the stages


def stage(task: NetworkTask, w: np.ndarray):
    """One stage of two steps."""
    return solve_local(task, w, LocalSettings(0.0, 0.1, 2), np.random.default_rng(0))


def other_calls(network: Network):
    """What may run between the stages, by name: each gets the tasks and the w they begin from."""
    _, others, labels = problem(network, samples=17)
    more = NetworkTask(network, others, labels)
    return {
        "nothing": lambda first, w: None,
        "a prediction": lambda first, w: predict(network, w, others),
        "an adaptation": lambda first, w: adapt(network, w, others, labels, AdaptSettings(0.3, 0.1)),
        "a round of training": lambda first, w: stage(more, w),
        "one gradient": lambda first, w: next(iter(more.draw(np.random.default_rng(0), 1)))(w, w.copy()),
        "stage I again": lambda first, w: stage(first, w),
        "stage I from another theta": lambda first, w: stage(first, w + w.dtype.type(0.01)),
        "memory given back": lambda first, w: release_workspaces(),
    }


@pytest.mark.parametrize("call", other_calls(NETWORKS["cnn3"]))
def test_nothing_that_runs_between_the_stages_changes_them(call):
    network = NETWORKS["cnn3"]
    w, x, y = problem(network)
    plain = [NetworkTask(network, x, y, Gating(), (part,)) for part in ("phi", "theta")]
    middle = stage(plain[0], w)
    wanted = stage(plain[1], middle.w)
    first, second = stages.sharing(*plain, 2)
    assert second.kept.first > 0
    assert stage(first, w).w.tobytes() == middle.w.tobytes()
    other_calls(network)[call](first, w)
    ended = stage(second, middle.w)
    assert ended.w.tobytes() == wanted.w.tobytes()
    assert (ended.flops < wanted.flops) == (call != "stage I from another theta")


def test_stage_two_finds_nothing_where_stage_one_left_nothing():
    """Without a stage I, after one from elsewhere, or for the second time, it computes everything itself."""
    network = NETWORKS["cnn3"]
    w, x, y = problem(network)
    plain = [NetworkTask(network, x, y, Gating(), (part,)) for part in ("phi", "theta")]
    wanted = stage(plain[1], w)
    first, second = stages.sharing(*plain, 2)
    runs = [stage(second, w)]
    stage(first, w)
    runs += [stage(second, w), stage(second, w)]
    assert [run.w.tobytes() for run in runs] == 3 * [wanted.w.tobytes()]
    assert [run.flops < wanted.flops for run in runs] == [False, True, False]
    objective = next(iter(second.draw(np.random.default_rng(0), 1)))
    gradients = [np.empty_like(w), np.empty_like(w)]
    assert objective(w, gradients[0]) == wanted.loss
    next(iter(plain[1].draw(np.random.default_rng(0), 1)))(w, gradients[1])
    assert gradients[0].tobytes() == gradients[1].tobytes()


def test_stages_of_other_samples_share_nothing():
    network = NETWORKS["cnn3"]
    _, x, y = problem(network)
    tasks = [NetworkTask(network, x.copy(), y, Gating(), (part,)) for part in ("phi", "theta")]
    assert stages.sharing(*tasks, 1) == tuple(tasks)
