"""Batch-shaping: the Beta distribution, the term and its gradient, both paths, rounds, and PyTorch."""

import numpy as np
import pytest
from scipy.special import betainc, betaln, expit

from refimpl.errors import InputError
from refimpl.federated.adapt import quiet
from refimpl.kernels.jit import USE_TILE
from refimpl.kernels.shaping import LEAST, MOST, Shaping, beta_function, distribution, shape_gates
from refimpl.nn import zoo
from refimpl.nn.context import Context, Gating
from refimpl.nn.gradcheck import check_network
from refimpl.nn.network import draw_gate_noise
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.starts import Open
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree

NETWORK = zoo.digits((3, 4), gates=("conv1", "conv2"))
RNG = np.random.default_rng(0)
X, Y = RNG.random((20, 1, 8, 8)), np.arange(20) % 10
SHAPING = Shaping(0.7, 0.6, 0.4)
BOTH = ("theta", "phi")


def drawn(dtype="float64"):
    """Parameters at which gates tell samples apart."""
    layout = NETWORK.layout
    w = Open(gate_a2=0.5, gate_margin=0.1).begin(NETWORK, layout.initialise(SeedTree(3), dtype), [])
    w[layout.phi] += 0.2 * np.random.default_rng(1).standard_normal(layout.phi.stop - layout.phi.start)
    return w


def by_hand(d, tau, shaping):
    """The term for decisions d (N, K), from its formula."""
    weight, a, b = shaping
    ranks = np.arange(1, len(d) + 1)[:, None] / (len(d) + 1)
    return weight * ((betainc(a, b, expit(np.sort(d, axis=0) / tau)) - ranks) ** 2).sum() / len(d)


@pytest.mark.parametrize("a", [0.3, 0.6, 1.0, 2.5, 5.0, LEAST, MOST])
def test_the_distribution_is_that_of_scipy(a):
    u = np.linspace(-30, 30, 301)
    for b in (0.3, 0.4, 1.0, 5.0, LEAST, MOST):
        scale = beta_function(a, b)
        assert np.log(scale) == pytest.approx(betaln(a, b), abs=2e-14)
        level, slope = np.transpose([distribution(each, a, b, scale) for each in u])
        expected = np.where(u < 0, betainc(a, b, expit(u)), 1 - betainc(b, a, expit(-u)))
        np.testing.assert_allclose(level, expected, rtol=0, atol=1e-13)
        density = np.exp(-a * np.logaddexp(0, -u) - b * np.logaddexp(0, u) - betaln(a, b))
        np.testing.assert_allclose(slope, density, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_term_is_its_formula_and_its_gradient_that_of_differences(dtype):
    d = np.random.default_rng(2).normal(0.3, 2.0, (9, 3)).astype(dtype)
    slope, wide = np.empty_like(d), d.astype("float64")
    assert shape_gates(d, 0.7, SHAPING, slope) == pytest.approx(9 * by_hand(wide, 0.7, SHAPING), rel=1e-12)
    for at in np.ndindex(d.shape):
        step = np.zeros(d.shape)
        step[at] = 1e-5
        values = [by_hand(wide + sign * step, 0.7, SHAPING) for sign in (1, -1)]
        assert slope[at] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_of_equal_decisions_the_earlier_one_counts_as_smaller_and_nan_is_passed_on():
    d = np.zeros((4, 2))
    d[2, 1] = np.nan
    slope = np.empty_like(d)
    assert np.isnan(shape_gates(d, 1.0, SHAPING, slope))
    assert (np.diff(slope[:, 0]) < 0).all()
    assert np.isnan(slope[2, 1])


@pytest.mark.parametrize("mode", ["soft", "hard", "gumbel", "ste"])
def test_gradients_of_a_network_agree_with_differences(mode):
    noise = draw_gate_noise(NETWORK, 7, np.random.default_rng(0)) if mode == "gumbel" else {}
    context = Context(Gating(mode, tau=0.8, shaping=SHAPING), BOTH, noise)
    errors = check_network(NETWORK, drawn(), X[:7], Y[:7], context, np.random.default_rng(0))
    assert all(error < 1e-6 for _, error in errors), errors


def test_the_term_is_added_where_gates_are_trained_and_nowhere_else():
    w, plain = drawn(), Gating("hard", tau=0.8)
    shaped = Gating("hard", tau=0.8, shaping=SHAPING)
    decisions = NETWORK.decisions(NETWORK.forward(w, X, Context(Gating("ste")))[1])  # whose relaxation is d
    term = sum(by_hand(decision.relaxed, 0.8, SHAPING) for decision in decisions.values())
    for parts, expected in ((BOTH, term), (("phi",), term), (("theta",), 0.0)):
        values = [NetworkObjective(NETWORK, X, Y, Context(how, parts)).value(w) for how in (shaped, plain)]
        assert values[0] - values[1] == pytest.approx(expected, abs=1e-14)
    assert quiet(shaped) == plain


def test_what_cannot_be_shaped_is_refused():
    w, soft = drawn(), NetworkObjective(NETWORK, X, Y, Context(Gating("soft", shaping=SHAPING), BOTH))
    with pytest.raises(InputError, match="batch-shaping has no second derivatives"):
        soft.hessian_vector(w, w)
    with pytest.raises(InputError, match=r"a and b from 0\.1 to 10"):
        Gating(shaping=(1.0, 0.0, 0.4))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_and_programs_give_the_same_bytes_whatever_the_parts_and_threads(dtype):
    w = drawn(dtype)
    for mode, parts in (("soft", BOTH), ("gumbel", BOTH), ("hard", ("phi",)), ("ste", ("theta",))):
        gating, found = Gating(mode, tau=0.7, shaping=SHAPING), []
        for options in ({"compiled": False}, {}, {"part": 3}, {"threads": 2, "part": 6}):
            task = NetworkTask(NETWORK, X.astype(dtype), Y, gating, parts, **options)
            assert task.program is not None or not task.compiled or not USE_TILE
            objective = next(iter(task.draw(np.random.default_rng(0), 1)))
            gradient = np.empty_like(w)
            found.append((objective(w, gradient), gradient.tobytes()))
        assert len(set(found)) == 1


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["soft", "gumbel"])
def test_pytorch_computes_the_same(mode):
    torch = pytest.importorskip("torch")
    from refimpl.crosscheck.bridges.torch.network import Batch, Objective, build

    w, gating = drawn(), Gating(mode, tau=0.7, shaping=SHAPING)
    noise = draw_gate_noise(NETWORK, len(X), np.random.default_rng(0)) if mode == "gumbel" else {}
    gradient = np.empty_like(w)
    loss = NetworkObjective(NETWORK, X, Y, Context(gating, BOTH, noise))(w, gradient)
    theirs = {name: torch.from_numpy(value) for name, value in noise.items()}
    batch = Batch(torch.from_numpy(X), torch.from_numpy(Y), theirs)
    value, slope = Objective(build(NETWORK, w, gating), batch).both(torch.from_numpy(w))
    assert float(value) == pytest.approx(loss, rel=1e-12)
    assert np.linalg.norm(slope.numpy() - gradient) < 1e-10 * np.linalg.norm(gradient)
    plain, _ = Objective(build(NETWORK, w, gating, ("theta",)), batch).both(torch.from_numpy(w))
    assert loss - float(plain) > 0.1
