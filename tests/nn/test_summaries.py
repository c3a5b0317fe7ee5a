"""Gates that see their summaries normalised or centred: values, gradients, both paths, and PyTorch."""

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import prepare, train
from refimpl.kernels.jit import USE_TILE
from refimpl.nn import zoo
from refimpl.nn.context import Context, Gating
from refimpl.nn.gradcheck import check_network
from refimpl.nn.norms import with_summaries
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.starts import Calibrated, Open
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree

PLAIN = zoo.digits((3, 4), gates=("conv1", "conv2"))
RNG = np.random.default_rng(0)
X, Y = RNG.random((20, 1, 8, 8)), np.arange(20) % 10


def drawn(kind, dtype="float64"):
    """The network of a kind, with gates that tell samples apart and no parameter at its first value."""
    network = with_summaries(PLAIN, kind)
    start = Calibrated(gate_a1=1.5, gate_a2=0.5, gate_margin=0.1)
    w = start.begin(
        network, network.layout.initialise(SeedTree(3), dtype), [X[:9].astype(dtype), X[9:].astype(dtype)]
    )
    phi = network.layout.phi
    w[phi] += 0.05 * np.random.default_rng(1).standard_normal(phi.stop - phi.start).astype(dtype)
    return network, w


def seen(network, w, x):
    """What the second gate's A1 is applied to, and the channel means behind it."""
    decisions = network.decisions(network.forward(w, x, Context())[1])
    return decisions["conv2.gate"].summary


def test_plain_summaries_are_the_network_itself():
    assert with_summaries(PLAIN, "plain") is PLAIN
    with pytest.raises(InputError, match="plain, normalised, centred"):
        with_summaries(PLAIN, "central")


def test_a_normalised_summary_is_that_of_one_sample_over_its_channels():
    network = with_summaries(PLAIN, "normalised")
    w = network.layout.initialise(SeedTree(3), "float64")
    plain = PLAIN.layout.from_arrays(
        {name: value for name, value in network.layout.views(w).items() if ".norm." not in name}, "float64"
    )
    s = seen(PLAIN, plain, X)  # gates start open, so both see the same maps
    expected = (s - s.mean(1, keepdims=True)) / np.sqrt(s.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(seen(network, w, X), expected, atol=1e-12)


def test_centred_summaries_have_mean_zero_and_unit_spread_over_the_nodes_first_samples():
    network = with_summaries(PLAIN, "centred")
    start = Open(gate_samples=8)
    w = start.begin(network, network.layout.initialise(SeedTree(3), "float64"), [X[:10], X[10:]])
    s = seen(network, w, np.concatenate([X[:8], X[10:18]]))
    np.testing.assert_allclose(s.mean(axis=0), 0, atol=1e-12)
    variance = network.layout.views(w)["conv2.gate.norm.running_var"]
    np.testing.assert_allclose(s.var(axis=0), variance / (variance + 1e-5))
    assert variance.max() > 1e-4


@pytest.mark.parametrize("kind", ["normalised", "centred"])
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_gradients_agree_with_differences(kind, mode):
    network, w = drawn(kind)
    context = Context(Gating(mode), ("theta", "phi"))
    errors = check_network(network, w, X[:6], Y[:6], context, np.random.default_rng(0))
    assert any(".norm." in name for name, _ in errors)
    assert all(error < 1e-6 for _, error in errors), errors


@pytest.mark.parametrize("kind", ["normalised", "centred"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_and_programs_give_the_same_bytes(kind, dtype):
    network, w = drawn(kind, dtype)
    for mode, parts in (("soft", ("theta", "phi")), ("hard", ("theta", "phi")), ("hard", ("phi",))):
        found = []
        for compiled in (True, False):
            task = NetworkTask(network, X.astype(dtype), Y, Gating(mode), parts, compiled=compiled)
            assert task.program is not None or not compiled or not USE_TILE
            (objective,), gradient = task.draw(np.random.default_rng(0), 1), np.empty_like(w)
            found.append((objective(w, gradient), gradient.tobytes()))
        assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["normalised", "centred"])
def test_statistics_stay_and_gates_learn_in_a_run(kind):
    small = {"nodes": 3, "targets": 1, "node_min": 20, "node_max": 20, "support": 5, "rounds": 2}
    made = prepare(
        resolve(dataset="digits", gate_summary=kind, gate_a2=0.3, gate_start="calibrated", **small)
    )
    first, last = made.method.model(made.start()), train(made).w
    layout = made.network.layout
    np.testing.assert_allclose(last[layout.stats], first[layout.stats], rtol=1e-6)
    assert (layout.stats.stop > layout.stats.start) == (kind == "centred")
    assert (layout.views(last)["conv2.gate.norm.weight"] != 1).any()


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["normalised", "centred"])
def test_pytorch_computes_the_same(kind):
    torch = pytest.importorskip("torch")
    from refimpl.crosscheck.bridges.torch.network import build

    network, w = drawn(kind)
    gradient = np.empty_like(w)
    loss = NetworkObjective(network, X, Y, Context(Gating("soft"), ("theta", "phi")))(w, gradient)
    module = build(network, w, Gating("soft"))
    value = torch.nn.functional.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(Y))
    value.backward()
    assert float(value.detach()) == pytest.approx(loss, rel=1e-12)
    parameters, own = dict(module.named_parameters()), network.layout.views(gradient)
    assert any(".norm." in name for name in own)
    for name, mine in own.items():
        theirs = parameters[name].grad
        np.testing.assert_allclose(mine, 0 if theirs is None else theirs.numpy(), atol=1e-12, err_msg=name)
