"""The gradient checker is itself checked: it accepts what is right and rejects what is slightly wrong."""

from __future__ import annotations

import numpy as np
import pytest
from checks import TOLERANCES, assert_gradients
from hypothesis import given
from strategies import examples, sample, seeds

from refimpl.errors import InputError
from refimpl.nn import zoo
from refimpl.nn.chain import Residual
from refimpl.nn.context import Context, Gating
from refimpl.nn.gradcheck import check_network, directional_difference, probe, slot_errors, surrogate_context
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import ReLU, Tanh
from refimpl.nn.pooling import Flatten

LIMIT = TOLERANCES["float64", "gradient"]
SLOTS = [("matrix", slice(0, 9)), ("vector", slice(9, 12))]
W = np.linspace(-1.0, 1.2, 12)


def value(w: np.ndarray) -> float:
    """v^T tanh(A v) with A the first nine entries, row by row, and v the last three."""
    return float(w[9:] @ np.tanh(w[:9].reshape(3, 3) @ w[9:]))


def gradient(w: np.ndarray) -> np.ndarray:
    """Its gradient by hand."""
    a, v = w[:9].reshape(3, 3), w[9:]
    t = np.tanh(a @ v)
    slope = v * (1 - t**2)
    return np.concatenate([np.outer(slope, v).ravel(), t + a.T @ slope])


def objective(spoil=lambda g: None):
    def call(w, out):
        out[:] = gradient(w)
        spoil(out)
        return value(w)

    return call


def errors_with(spoil):
    return dict(slot_errors(objective(spoil), value, W, SLOTS, np.random.default_rng(0)))


def test_a_right_gradient_is_accepted():
    errors = errors_with(lambda g: None)
    assert list(errors) == ["matrix", "vector"]
    assert max(errors.values()) < 1e-9


def scale(g):
    g[:9] *= 1.001


def transpose(g):
    g[:9] = g[:9].reshape(3, 3).T.ravel()


def reverse(g):
    g[:9] = g[:9].reshape(3, 3)[::-1].ravel()


def leave_nan(g):
    g[:9] = np.nan


def leave_one_nan(g):
    g[4] = np.nan


def leave_zero(g):
    g[:9] = 0


def one_entry_off(g):
    g[4] += 1e-3 * np.abs(g[:9]).max()


def flip_sign(g):
    g[:9] *= -1


def accumulate(g):
    g[:9] *= 2


@pytest.mark.parametrize(
    "spoil",
    [scale, transpose, reverse, leave_nan, leave_one_nan, leave_zero, one_entry_off, flip_sign, accumulate],
)
def test_a_wrong_gradient_is_rejected_and_named(spoil):
    errors = errors_with(spoil)
    assert not errors["matrix"] <= LIMIT
    if not np.isnan(errors["matrix"]):
        assert errors["vector"] < 1e-9
    with pytest.raises(AssertionError, match="matrix"):
        assert_gradients(slot_errors(objective(spoil), value, W, SLOTS, np.random.default_rng(1)))


def test_a_slot_that_is_never_written_is_rejected():
    """The checker hands over a gradient full of NaN; an objective that forgets a slot leaves it."""

    def forgetful(w, out):
        out[:9] = gradient(w)[:9]
        return value(w)

    errors = dict(slot_errors(forgetful, value, W, SLOTS, np.random.default_rng(0)))
    assert not errors["vector"] <= LIMIT


def test_even_a_gradient_of_zero_must_be_written():
    """Handed zeros instead of NaN, the checker would take a forgotten slot for a right one."""

    def forgetful(w, out):
        out[0] = np.cos(w[0])
        return np.sin(w[0])

    slots = [("used", slice(0, 1)), ("forgotten", slice(1, 4))]
    errors = slot_errors(forgetful, lambda w: np.sin(w[0]), np.ones(4), slots, np.random.default_rng(0))
    assert np.isnan(dict(errors)["forgotten"])


@given(seeds)
@examples(50)
def test_a_parameter_with_one_entry_is_checked(seed):
    """Half random, half along the gradient: in one dimension the halves must not cancel."""

    def square(w, out):
        out[:] = 2 * w
        return float(w[0] ** 2)

    w, rng = np.array([-0.75]), np.random.default_rng(seed)
    (error,) = slot_errors(square, lambda u: float(u[0] ** 2), w, [("w", slice(0, 1))], rng)
    assert error.error < 1e-9


def test_parameters_without_influence_do_not_divide_rounding_by_rounding():
    def first_only(w, out):
        out[:] = 0
        out[0] = np.cos(w[0])
        return np.sin(w[0])

    slots = [("used", slice(0, 1)), ("unused", slice(1, 4))]
    errors = slot_errors(first_only, lambda w: np.sin(w[0]), np.ones(4), slots, np.random.default_rng(0))
    assert_gradients(errors)


def test_the_step_is_found_without_help_for_badly_scaled_functions():
    for scale_ in (1e-3, 1.0, 1e3):
        w = np.array([0.3, 0.4])
        exact = scale_ * np.cos(scale_ * w.sum())
        got = directional_difference(lambda u, s=scale_: float(np.sin(s * u.sum())), w, np.array([1.0, 0.0]))
        assert got == pytest.approx(exact, rel=1e-7)


def test_the_step_avoids_a_kink_nearby():
    """|w| has slope 1 at w = 1e-4: steps beyond are wrong by up to two, those below exact."""
    got = directional_difference(lambda u: float(np.abs(u[0])), np.array([1e-4]), np.array([1.0]))
    assert got == pytest.approx(1.0, rel=1e-9)


def test_float32_is_refused():
    with pytest.raises(InputError, match="finite differences need float64, got float32"):
        slot_errors(objective(), value, W.astype(np.float32), SLOTS, np.random.default_rng(0))


# Networks and layers with a planted fault


NETWORK = Network(
    "faulty",
    (
        *zoo.with_gates([(Conv2d("c1", 1, 2, 3), ReLU()), (Conv2d("c2", 2, 2, 3), Tanh())], ["c2"]),
        Residual((Conv2d("c3", 2, 2, 1),)),
        Flatten(),
        Linear("fc", 18, 3),
    ),
    (1, 7, 7),
)
BOTH = Context(Gating(), ("theta", "phi"))


def test_every_trained_parameter_is_checked_and_no_other():
    point = sample(NETWORK, BOTH, 0)
    names = [slot.name for slot in NETWORK.layout.slots]
    for train, wanted in ((("theta", "phi"), names), (("phi",), [n for n in names if "gate" in n])):
        context = Context(Gating(), train)
        errors = check_network(NETWORK, point.w, point.x, point.y, context, np.random.default_rng(0))
        assert [error.name for error in errors] == wanted
        assert_gradients(errors)


@pytest.mark.parametrize("name", [slot.name for slot in NETWORK.layout.slots])
def test_a_fault_of_a_thousandth_in_one_parameter_is_found(name, monkeypatch):
    exact = NetworkObjective.__call__

    def spoiled(self, w, grad_out):
        loss = exact(self, w, grad_out)
        self.network.layout.views(grad_out)[name][...] *= 1.001
        return loss

    monkeypatch.setattr(NetworkObjective, "__call__", spoiled)
    point = sample(NETWORK, BOTH, 0)
    errors = check_network(NETWORK, point.w, point.x, point.y, BOTH, np.random.default_rng(0))
    assert [error.name for error in errors if not error.error <= LIMIT] == [name]


def test_a_layer_with_transposed_weight_gradient_is_rejected(monkeypatch):
    exact = Linear.backward

    def transposed(self, dy, cache, params, grads, back):
        dx = exact(self, dy, cache, params, grads, back)
        grads[f"{self.name}.weight"][:] = grads[f"{self.name}.weight"].T.copy()
        return dx

    monkeypatch.setattr(Linear, "backward", transposed)
    errors = dict(
        probe(Linear("f", 3, 3), (3,), 2, np.random.default_rng(0)).errors(np.random.default_rng(1))
    )
    assert errors["f.weight"] > 0.01
    assert max(errors["f.bias"], errors["x"]) < 1e-9


def test_a_layer_with_a_wrong_input_gradient_is_rejected(monkeypatch):
    exact = Conv2d.backward
    monkeypatch.setattr(Conv2d, "backward", lambda *a: exact(*a).swapaxes(2, 3))
    layer = Conv2d("c", 1, 2, (3, 1), padding=(1, 0))
    errors = dict(probe(layer, (1, 4, 4), 1, np.random.default_rng(0)).errors(np.random.default_rng(1)))
    assert errors["x"] > 0.01
    assert max(errors["c.weight"], errors["c.bias"]) < 1e-9


# The surrogate


@pytest.mark.parametrize("gate_grad", ["dense", "active"])
@pytest.mark.parametrize("mode", ["hard", "gumbel", "ste"])
def test_the_surrogate_has_the_value_of_the_model_it_stands_for(mode, gate_grad):
    point = sample(NETWORK, Context(Gating(mode, 0.5, gate_grad), ("theta", "phi")), 4)
    anchored = surrogate_context(NETWORK, point.w, point.x, point.context)
    original, _ = NETWORK.forward(point.w, point.x, point.context)
    surrogate, _ = NETWORK.forward(point.w, point.x, anchored)
    np.testing.assert_allclose(surrogate, original, rtol=1e-12, atol=1e-12)


def test_the_surrogate_tells_gate_gradients_apart():
    """Checked against the other rule's surrogate, a gradient is rejected: the two are not the same."""
    point = sample(NETWORK, BOTH, 0)
    objectives = {
        kind: NetworkObjective(NETWORK, point.x, point.y, Context(Gating(gate_grad=kind), ("theta", "phi")))
        for kind in ("dense", "active")
    }
    assert not all(mask.all() for mask in masks_of(objectives["dense"], point.w))
    anchored = surrogate_context(NETWORK, point.w, point.x, objectives["active"].context)
    surrogate = NetworkObjective(NETWORK, point.x, point.y, anchored)
    slots = [(s.name, slice(s.start, s.stop)) for s in NETWORK.layout.slots if "gate" in s.name]
    for kind, wanted in (("active", True), ("dense", False)):
        errors = slot_errors(objectives[kind], surrogate.value, point.w, slots, np.random.default_rng(0))
        assert all(error.error <= LIMIT for error in errors) == wanted


def masks_of(objective_, w):
    objective_(w, np.empty_like(w))
    return objective_.masks.values()
