"""The compiled local solve gives the bytes of the layers' own iteration, and the same accounts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from refimpl.federated.local import LocalSettings, solve_local
from refimpl.nn import course, zoo
from refimpl.nn.chain import Residual
from refimpl.nn.context import GATE_GRADS, MODES, Context, Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.gradcheck import check_network
from refimpl.nn.layers import BatchNorm2d, Conv2d, Linear
from refimpl.nn.lowering import lower
from refimpl.nn.network import Network
from refimpl.nn.norms import FrozenNorm2d, GroupNorm, calibrate, frozen
from refimpl.nn.pointwise import LeakyReLU, ReLU, Softplus
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from refimpl.nn.predict import predict
from refimpl.nn.program import Program
from refimpl.nn.task import NetworkTask, draw_batches
from refimpl.rng import SeedTree
from refimpl.threads import share

SETTINGS = LocalSettings(lam=1.0, eta=0.05, steps=4)


def make_task(network, gating, train=("theta", "phi"), dtype="float32", samples=11, batch=5):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, *network.input_shape)).astype(dtype)
    task = NetworkTask(network, x, rng.integers(0, network.classes, samples), gating, train, batch)
    w = network.layout.initialise(SeedTree(1), dtype)
    phi = network.layout.phi
    w[phi] += (0.5 * rng.standard_normal(w[phi].size)).astype(dtype)  # some channels closed
    return task, w


def assert_same(task, w):
    compiled = solve_local(task, w, SETTINGS, np.random.default_rng(3))
    layers = solve_local(replace(task, compiled=False), w, SETTINGS, np.random.default_rng(3))
    assert compiled.w.tobytes() == layers.w.tobytes()
    assert compiled.w.tobytes() != w.tobytes()
    assert (compiled.loss, compiled.residual) == (layers.loss, layers.residual)
    assert (compiled.gradients, compiled.flops) == (layers.gradients, layers.flops)
    assert compiled.closed_share == pytest.approx(layers.closed_share, abs=1e-12)
    assert_same_gradient(task, w)


def assert_same_gradient(task, w):
    results = []
    for compiled in (True, False):
        (objective,) = replace(task, compiled=compiled).draw(np.random.default_rng(5), 1)
        gradient = np.full_like(w, np.nan)
        results.append((objective(w, gradient), gradient.tobytes(), objective.measure()))
    assert results[0] == results[1]


SMALL = {
    "two gated convs": zoo.digits((4, 6), gates=("conv1", "conv2")),
    "ungated": zoo.digits((4, 6), gates=()),
    "gated output, tanh": zoo.digits((4, 6), gates=("fc", "conv1"), activation="tanh"),
    "softplus": zoo.digits((4, 6), gates=("conv2",), activation="softplus"),
    "gated mlp": zoo.mlp((9, 8, 7, 3), gates=("fc1", "fc2")),
    "average and global pools": Network(
        "pools",
        (
            *zoo.with_gates(
                [(Conv2d("c1", 2, 5, 3, stride=2, padding=2), ReLU(), AvgPool2d(3, 2, 1))], ("c1",)
            ),
            *zoo.with_gates([(Conv2d("c2", 5, 4, 2), ReLU(), MaxPool2d(2, 1, 1))], ("c2",)),
            GlobalAvgPool2d(),
            Linear("fc", 4, 3),
        ),
        (2, 9, 8),
    ),
    "residual, gates in both branches": Network(
        "residual",
        (
            *zoo.with_gates([(Conv2d("c1", 2, 4, 3, padding=1), ReLU())], ("c1",)),
            Residual(
                (
                    *zoo.with_gates([(Conv2d("c2", 4, 5, 3, padding=1), ReLU())], ("c2",)),
                    Conv2d("c3", 5, 4, 1),
                )
            ),
            ReLU(),
            Residual(
                (Conv2d("c4", 4, 3, 3, stride=2, padding=1),),
                zoo.with_gates([(Conv2d("c5", 4, 3, 1, stride=2),)], ("c5",)),
            ),
            Flatten(),
            Linear("fc", 27, 3),
        ),
        (2, 5, 5),
    ),
    "dilated and grouped": Network(
        "groups of channels",
        (
            *(Conv2d("c1", 2, 6, 3, padding=2, dilation=2), ReLU()),
            *zoo.with_gates([(Conv2d("c2", 6, 8, 3, 2, (1, 2), groups=2, dilation=(1, 2)), ReLU())], ("c2",)),
            Conv2d(
                "c3", 8, 8, 3, padding=1, bias=False, groups=8
            ),  # depthwise, and skips what c2's gate closes
            Gated(ChannelGate("g", 8, 5), (Conv2d("c4", 8, 5, 1), ReLU(), Conv2d("c5", 5, 5, 2, groups=5))),
            *(Flatten(), Linear("fc", 45, 3)),
        ),
        (2, 7, 8),
    ),
    "residual vectors": Network(
        "vectors", (Residual((Linear("fc1", 6, 6), ReLU())), Linear("fc", 6, 3)), (6,)
    ),
    "gated convolution, all its zeros read": Network(
        "bare",
        (*zoo.with_gates([(Conv2d("c1", 2, 5, 3),)], ("c1",)), Softplus(), Flatten(), Linear("fc", 30, 3)),
        (2, 5, 4),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("part", [5, 2, 1])  # of a batch of 5, at a time
def test_compiled_solve_is_the_layers_bit_for_bit(name, dtype, part, monkeypatch):
    monkeypatch.setattr(Program, "part", lambda *_, **__: part)
    network = SMALL[name]
    trains = [("theta", "phi"), ("theta",), ("phi",)] if network.gates else [("theta",)]
    for mode, gate_grad, detach, train in itertools.product(MODES, GATE_GRADS, (False, True), trains):
        assert_same(*make_task(network, Gating(mode, 0.7, gate_grad, detach), train, dtype))


def basic_block(name, ins, outs, stride):
    """Two convolutions without biases, each normalised; the shortcut is projected where shapes differ."""
    conv = [
        Conv2d(f"{name}a", ins, outs, 3, stride, 1, bias=False),
        Conv2d(f"{name}b", outs, outs, 3, 1, 1, bias=False),
    ]
    body = (conv[0], BatchNorm2d(f"{name}an", outs), LeakyReLU(0.1), conv[1], BatchNorm2d(f"{name}bn", outs))
    beside = (Conv2d(f"{name}s", ins, outs, 1, stride, bias=False), BatchNorm2d(f"{name}sn", outs))
    return Residual(body, beside if stride > 1 or ins != outs else ())


NORMALISED = {
    "residual blocks": Network(
        "blocks",
        (
            Conv2d("c1", 2, 4, 3, padding=1, bias=False),
            BatchNorm2d("n1", 4),
            LeakyReLU(0.1),
            basic_block("b1", 4, 4, 1),
            ReLU(),
            *zoo.with_gates([(Conv2d("c2", 4, 5, 3, padding=1, bias=False), LeakyReLU(0.2))], ("c2",)),
            basic_block("b2", 5, 6, 2),
            LeakyReLU(0.1),
            MaxPool2d(2),
            GlobalAvgPool2d(),
            Linear("fc", 6, 3, bias=False),
        ),
        (2, 8, 7),
    ),
    "groups": Network(
        "groups",
        (
            Conv2d("c1", 2, 6, 3),
            GroupNorm("n1", 6, groups=3),
            ReLU(),
            *zoo.with_gates([(Conv2d("c2", 6, 4, 3), LeakyReLU())], ("c2",)),
            GroupNorm("n2", 4, groups=2),
            Flatten(),
            Linear("fc", 12, 3),
        ),
        (2, 5, 7),
    ),
    "frozen": frozen(
        Network(
            "frozen",
            (
                Conv2d("c1", 2, 4, 3, padding=1, bias=False),
                BatchNorm2d("n1", 4),
                ReLU(),
                basic_block("b1", 4, 6, 2),
                ReLU(),
                Gated(ChannelGate("g", 6, 5), (Conv2d("c2", 6, 5, 3), FrozenNorm2d("n2", 5), LeakyReLU())),
                Flatten(),
                Linear("fc", 20, 3),
            ),
            (2, 7, 8),
        )
    ),
    "normalised input": Network(
        "input", (BatchNorm2d("n", 2), Conv2d("c", 2, 3, 3), Flatten(), Linear("fc", 27, 3)), (2, 5, 5)
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_networks_are_the_layers_bit_for_bit(name, dtype):
    network = NORMALISED[name]
    trains = [("theta", "phi"), ("theta",), ("phi",)] if network.gates else [("theta",)]
    modes = MODES if network.gates else ("hard",)
    for mode, gate_grad, train in itertools.product(modes, GATE_GRADS, trains):
        assert_same(*make_task(network, Gating(mode, 0.7, gate_grad), train, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["groups", "frozen"])
def test_normalisations_of_single_samples_do_not_depend_on_parts(name, dtype, monkeypatch):
    monkeypatch.setattr(Program, "part", lambda *_, **__: 2)
    assert_same(*make_task(NORMALISED[name], Gating(), dtype=dtype))


def test_calibrated_statistics_give_what_the_batch_gives():
    """On the samples themselves; and then a sample's logits do not depend on the others."""
    network = NORMALISED["residual blocks"]
    task, w = make_task(network, Gating(), dtype="float64")
    still = frozen(network)
    assert still.layout.size > network.layout.size
    statistics = still.layout.initialise(SeedTree(0), "float64")[still.layout.stats]
    at = calibrate(still, np.concatenate([w, statistics]), task.x)
    assert at[: w.size].tobytes() == w.tobytes()
    wanted = predict(network, w, task.x).logits
    np.testing.assert_allclose(predict(still, at, task.x).logits, wanted, rtol=1e-9, atol=1e-12)
    alone = [predict(still, at, task.x[n : n + 1]).logits[0] for n in range(len(task.x))]
    assert np.array(alone).tobytes() == predict(still, at, task.x).logits.tobytes()


@pytest.mark.parametrize("name", [*NORMALISED, "dilated and grouped"])
def test_gradients_against_differences(name):
    network = (NORMALISED | SMALL)[name]
    rng = np.random.default_rng(4)
    task, w = make_task(network, Gating("soft"), dtype="float64")
    w += 0.1 * rng.standard_normal(w.size)
    errors = check_network(network, w, task.x, task.y, Context(Gating("soft"), ("theta", "phi")), rng)
    assert all(error < 1e-6 for _, error in errors), errors


def solutions(task, w):
    """The bytes and numbers of a local solve and of one gradient, for one to three threads."""
    found = []
    for threads in (1, 2, 3):
        one = replace(task, threads=threads)
        end = solve_local(one, w, SETTINGS, np.random.default_rng(3))
        (objective,) = one.draw(np.random.default_rng(5), 1)
        gradient = np.full_like(w, np.nan)
        alone = (objective(w, gradient), gradient.tobytes(), objective.measure())
        found.append((*end._replace(w=end.w.tobytes()), *alone))
    return found


@pytest.mark.parametrize("name", [*SMALL, *NORMALISED])
def test_threads_change_no_bit_of_a_local_solve(name, monkeypatch):
    """Where samples depend on each other (batch normalisation) the batch is one part, and has one thread."""
    network, shared = (SMALL | NORMALISED)[name], []
    whole = lower(network, Gating(), ("theta", "phi")).whole
    monkeypatch.setattr(Program, "part", lambda self, batch, *_, **__: batch if self.whole else 2)
    monkeypatch.setattr(course, "share", lambda *args: shared.append(args) or share(*args))
    for mode in ("hard", "gumbel"):
        task, w = make_task(network, Gating(mode, 0.7))
        one, *others = solutions(task, w)
        assert all(found == one for found in others)
        assert one[0] != w.tobytes()
    assert bool(shared) != whole


@pytest.mark.parametrize(
    ("network", "mode", "samples"),
    [
        (zoo.mlp((784, 100, 10)), "hard", 400),
        (zoo.cnn3(gates=("conv2", "conv3")), "hard", 6),
        (zoo.cnn3(gates=("conv3",)), "gumbel", 6),
    ],
)
def test_large_batches_are_divided_among_threads_without_changing_a_bit(network, mode, samples):
    task, w = make_task(network, Gating(mode), samples=samples, batch=0)
    program = task.program
    assert replace(task, threads=2).part_of(program, samples) <= samples / 2
    one, *others = solutions(task, w)
    assert all(found == one for found in others)


@pytest.mark.parametrize("model", [zoo.cnn3, zoo.cnn7])
@pytest.mark.parametrize("part", [3, 2])
def test_compiled_solve_of_the_papers_networks(model, part, monkeypatch):
    monkeypatch.setattr(Program, "part", lambda *_, **__: part)
    assert_same(*make_task(model(), Gating(), samples=4, batch=3))


def test_parts_keep_the_working_memory_small():
    program = lower(zoo.cnn3(), Gating(), ("theta", "phi"))
    training, prediction = (program.part(1000, "float32", gradients=flag) for flag in (True, False))
    assert 1 < prediction < training < 50
    assert program.part(2, "float32", gradients=False) == 2


def test_parts_are_as_large_as_the_weights_that_each_of_them_reads(monkeypatch):
    monkeypatch.setattr("refimpl.nn.program.PREDICTION_BYTES", 1)
    network = zoo.network("mlp", ())
    program = lower(network, Gating(), ("theta", "phi"))
    weights = sum(math.prod(slot.shape) for slot in network.layout.slots if len(slot.shape) > 1)
    assert program.weights == weights > 2 * program.values
    most = weights // program.values
    assert program.part(10 * most, "float32", gradients=False) == most


def test_networks_without_a_program_run_by_layers_and_say_so(caplog):
    class Mine(ReLU):
        """A layer of a user's own."""

    network = Network(
        "mine", (Conv2d("c", 2, 2, 3), Mine(), GlobalAvgPool2d(), Linear("fc", 2, 3)), (2, 4, 4)
    )
    assert lower(network, Gating(), ("theta",)) is None
    assert "network mine runs layer by layer" in caplog.text
    assert "no operation for its Mine" in caplog.text
    task, w = make_task(network, Gating(), ("theta",))
    assert task.descend_each([task], w, 0.1, 1.0, 2, [np.random.default_rng(0)]) is None
    assert_same(task, w)


def test_batches_are_uniform_samples_without_repetition():
    batches = draw_batches(np.random.default_rng(0), 7, 3, 6000)
    assert all(len(set(batch)) == 3 for batch in batches.tolist())
    counts = np.bincount(batches[:, 0], minlength=7)  # each place is uniform: 6000/7 +- 5 deviations
    np.testing.assert_allclose(counts, 6000 / 7, atol=5 * np.sqrt(6000 / 7))
    pairs = {tuple(batch[:2]) for batch in batches.tolist()}
    assert len(pairs) == 7 * 6
    whole = draw_batches(np.random.default_rng(0), 7, 0, 2)
    np.testing.assert_array_equal(whole, [range(7), range(7)])


def test_batches_do_not_depend_on_how_many_are_drawn_at_once():
    together = draw_batches(np.random.default_rng(4), 50, 9, 3)
    rng = np.random.default_rng(4)
    np.testing.assert_array_equal(together, np.concatenate([draw_batches(rng, 50, 9, 1) for _ in range(3)]))
