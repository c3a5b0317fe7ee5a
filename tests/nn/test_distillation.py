"""Soft targets: the loss against formulas and PyTorch, its derivatives, and the compiled program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checks import assert_close
from scipy.special import log_softmax, rel_entr, softmax

from refimpl.errors import InputError
from refimpl.kernels.loss import add_losses
from refimpl.nn import zoo
from refimpl.nn.context import Context, Gating
from refimpl.nn.distillation import soft_targets
from refimpl.nn.gradcheck import slot_errors
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.program import Program
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree

RNG = np.random.default_rng(0)
LOGITS, LABELS = 3 * RNG.standard_normal((6, 4)), RNG.integers(0, 4, 6)
TEACHERS = 3 * RNG.standard_normal((2, 6, 4))
WEIGHTS, TEMPERATURE, HARD = (0.3, 1.5), 2.5, 0.8


def ours(dtype, chosen=range(6)):
    """Mean loss and its gradient on the chosen samples."""
    soft = soft_targets(TEACHERS.astype(dtype), WEIGHTS, TEMPERATURE, HARD)
    picked = np.array(chosen)
    logits = LOGITS[picked].astype(dtype)
    dlogits = np.full_like(logits, np.nan)
    total = add_losses(0.0, logits, LABELS[picked], soft, picked, len(picked), dlogits)
    return total / len(picked), dlogits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_is_the_formula(dtype):
    hard = -log_softmax(LOGITS, axis=1)[np.arange(6), LABELS]
    p, q = softmax(TEACHERS / TEMPERATURE, axis=2), softmax(LOGITS / TEMPERATURE, axis=1)
    divergence = TEMPERATURE**2 * rel_entr(p, q).sum(axis=2)
    value, _ = ours(dtype)
    assert_close(np.array(value), (HARD * hard + WEIGHTS @ divergence).mean(), "reference", dtype)
    some, _ = ours(dtype, (4, 1))  # the teachers' logits are those of the chosen samples
    assert_close(np.array(some), (HARD * hard + WEIGHTS @ divergence)[[4, 1]].mean(), "reference", dtype)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_and_gradient_are_those_of_pytorch(dtype):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    z = torch.tensor(LOGITS.astype(dtype), requires_grad=True)
    loss = HARD * functional.cross_entropy(z, torch.tensor(LABELS))
    for weight, teacher in zip(WEIGHTS, torch.tensor(TEACHERS.astype(dtype)), strict=True):
        p = functional.softmax(teacher / TEMPERATURE, dim=1)
        log_q = functional.log_softmax(z / TEMPERATURE, dim=1)
        loss = loss + weight * TEMPERATURE**2 * functional.kl_div(log_q, p, reduction="batchmean")
    loss.backward()
    value, gradient = ours(dtype)
    assert_close(np.array(value), loss.item(), "reference", dtype)
    assert_close(gradient, z.grad.numpy(), "reference", dtype)


def test_nothing_is_left_to_learn_from_a_teacher_with_the_same_logits():
    soft = soft_targets([LOGITS], [2.0], 3.0, labels=0.0)
    dlogits = np.full_like(LOGITS, np.nan)
    assert add_losses(0.0, LOGITS, LABELS, soft, np.arange(6), 6, dlogits) == 0
    assert not dlogits.any()


def taught(dtype, gating, batch_size=0):
    """A gated network on a task with two teachers, and parameters."""
    network, rng = zoo.digits((3, 4), 4, gates=("conv2",)), np.random.default_rng(1)
    x = rng.standard_normal((6, *network.input_shape)).astype(dtype)
    soft = soft_targets(TEACHERS.astype(dtype), WEIGHTS, TEMPERATURE, HARD)
    w = network.layout.initialise(SeedTree(2), dtype)
    w += (0.1 * rng.standard_normal(w.size)).astype(dtype)
    return NetworkTask(network, x, LABELS, gating, batch_size=batch_size, soft=soft), w


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("part", [5, 2])
def test_compiled_objectives_have_the_bytes_of_the_layers(dtype, part, monkeypatch):
    monkeypatch.setattr(Program, "part", lambda *_, **__: part)
    task, w = taught(dtype, Gating(), batch_size=5)
    results = []
    for compiled in (True, False):
        (objective,) = replace(task, compiled=compiled).draw(np.random.default_rng(3), 1)
        gradient = np.full_like(w, np.nan)
        results.append((objective(w, gradient), gradient.tobytes()))
    assert results[0] == results[1]
    (plain,) = replace(task, soft=None).draw(np.random.default_rng(3), 1)
    assert plain(w, gradient) != results[0][0]


def test_gradient_and_hessian_of_a_taught_network_against_differences():
    task, w = taught("float64", Gating("soft"))
    rng, context = np.random.default_rng(4), Context(Gating("soft"), ("theta", "phi"))
    objective = NetworkObjective(task.network, task.x, task.y, context, task.soft)
    slots = [(slot.name, slice(slot.start, slot.stop)) for slot in task.network.layout.slots]
    errors = slot_errors(objective, objective.value, w, slots, rng)
    assert all(error < 1e-6 for _, error in errors), errors

    v, step = rng.standard_normal(w.size), 1e-5
    ends = [np.empty_like(w) for _ in range(2)]
    for end, sign in zip(ends, (1, -1), strict=True):
        objective(w + sign * step * v, end)
    difference = (ends[0] - ends[1]) / (2 * step)
    product = objective.hessian_vector(w, v)
    assert np.linalg.norm(product - difference) < 1e-6 * np.linalg.norm(difference)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: soft_targets([], []), "expected logits .N, K. of one shape"),
        (lambda: soft_targets([LOGITS, LOGITS[:3]], [1, 1]), "of one shape"),
        (lambda: soft_targets([LOGITS.astype(int)], [1]), "float32 or float64"),
        (lambda: soft_targets([LOGITS], [1, 2]), "a finite weight >= 0 for each of 1 teachers"),
        (lambda: soft_targets([LOGITS], [-1]), "a finite weight >= 0"),
        (lambda: soft_targets([LOGITS], [1], labels=np.nan), "a finite weight >= 0"),
        (lambda: soft_targets([LOGITS], [1], 0.0), "expected a positive temperature, got 0.0"),
        (
            lambda: replace(taught("float64", Gating())[0], soft=soft_targets([LOGITS[:5]], [1])),
            r"teachers' logits of shape \(6, 4\) and float64, got \(5, 4\)",
        ),
        (
            lambda: replace(taught("float32", Gating())[0], soft=soft_targets([LOGITS], [1])),
            "and float32, got .* and float64",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as info:
        make()
    assert "\n" not in str(info.value)
