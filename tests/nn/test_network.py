"""Networks: gradients against finite differences and against a tape; skipping that changes no bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tape
from checks import assert_close, assert_gradients, assert_same_bits
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import contexts, examples, networks, sample, seeds

from refimpl.errors import InputError
from refimpl.federated.local import LocalSettings, solve_local
from refimpl.nn import zoo
from refimpl.nn.chain import Residual
from refimpl.nn.context import Context, Gating
from refimpl.nn.gradcheck import check_network
from refimpl.nn.layers import BatchNorm2d, Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten, MaxPool2d
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree

BOTH = ("theta", "phi")


def value_and_gradient(network, point, context=None):
    """Loss and gradient; the gradient starts as NaN, so what is not written shows."""
    gradient = np.full_like(point.w, np.nan)
    objective = NetworkObjective(network, point.x, point.y, context or point.context)
    return objective(point.w, gradient), gradient


@given(networks(), contexts(), seeds)
@examples(150)
def test_gradients_of_every_mode_equal_those_of_multiplying_by_masks(network, context, seed):
    """The tape multiplies by the mask after the activation, as frameworks do, and skips nothing."""
    point = sample(network, context, seed)
    loss, gradient = value_and_gradient(network, point)
    wanted_loss, wanted = tape.loss_and_gradient(network, point.w, point.x, point.y, point.context)
    scale = np.abs(wanted).max()
    for part in BOTH:
        if part not in context.train:
            wanted[getattr(network.layout, part)] = 0
    assert_close(loss, wanted_loss, "reference", what="loss")
    assert_close(gradient, wanted, "network", what="gradient", scale=scale)


@given(networks(kinks=False), contexts(), seeds)
@examples(50)
def test_gradients_of_every_mode_against_finite_differences(network, context, seed):
    context = replace(context, gating=replace(context.gating, detach_gate_input=False))
    point = sample(network, context, seed)
    rng = np.random.default_rng(seed)
    assert_gradients(check_network(network, point.w, point.x, point.y, point.context, rng, directions=1))


@given(networks(), contexts(), seeds)
@examples(80)
def test_float32_agrees_with_float64(network, context, seed):
    double = sample(network, context, seed)
    single = double._replace(w=double.w.astype(np.float32), x=double.x.astype(np.float32))
    # The same point in both: what float32 holds is exact in float64, noise included.
    noise = {name: n.astype(np.float32).astype(np.float64) for name, n in double.context.noise.items()}
    same = replace(double.context, noise=noise)
    double = double._replace(w=single.w.astype(np.float64), x=single.x.astype(np.float64))
    narrow, wide = value_and_gradient(network, single, same), value_and_gradient(network, double, same)
    full = value_and_gradient(network, double, replace(same, train=BOTH))[1]
    assert narrow[1].dtype == np.float32
    assert_close(narrow[0], wide[0], "network", "float32", "loss")
    assert_close(narrow[1], wide[1], "network", "float32", "gradient", scale=np.abs(full).max())


@given(networks(), contexts(train=((), ("theta",), ("phi",), BOTH)), seeds)
@examples(60)
def test_the_objective_writes_everything_and_zero_where_nothing_is_trained(network, context, seed):
    point = sample(network, context, seed)
    _, gradient = value_and_gradient(network, point)
    assert np.isfinite(gradient).all()
    for part in BOTH:
        if part not in context.train:
            assert not gradient[getattr(network.layout, part)].any()
    objective = NetworkObjective(network, point.x, point.y, point.context)
    assert objective.value(point.w) == objective(point.w, np.empty_like(point.w))


# What is skipped


def ungated(network: Network) -> Network:
    """The same backbone without its gates."""
    layers = []
    for layer in network.layers:
        layers += layer.body if hasattr(layer, "gate") else (layer,)
    return Network("ungated", tuple(layers), network.input_shape)


def chain(pool: bool = True) -> Network:
    """Gated convolution after gated convolution, then a gated linear layer on flattened channels."""
    pooling = (MaxPool2d(2),) if pool else ()
    blocks = [
        (Conv2d("conv1", 2, 4, 3, padding=1), ReLU(), *pooling),
        (Conv2d("conv2", 4, 5, 3, stride=2, padding=1), ReLU()),
        (Flatten(),),
        (Linear("fc1", 20 if pool else 80, 6), ReLU()),
        (Linear("fc2", 6, 3),),
    ]
    return Network("chain", zoo.with_gates(blocks, ("conv1", "conv2", "fc1")), (2, 8, 8))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_open_gates_change_no_bit(dtype):
    network = chain()
    point = cast(sample(network, Context(train=("theta",)), 0), dtype)
    views = network.layout.views(point.w)
    for block in network.gates:
        views[f"{block.gate.name}.fc2.bias"][:] = np.resize([-50.0, 50.0], 2 * block.gate.out_channels)
    plain = ungated(network)
    theta = point.w[network.layout.theta].copy()
    logits, trace = network.forward(point.w, point.x)
    assert all(mask.all() for mask in network.masks(trace).values())
    assert_same_bits(logits, plain.forward(theta, point.x)[0], "logits")
    _, gradient = value_and_gradient(network, point)
    _, wanted = value_and_gradient(plain, point._replace(w=theta))
    assert_same_bits(gradient[network.layout.theta], wanted, "theta's gradient")


def cast(point, dtype):
    return point._replace(w=point.w.astype(dtype), x=point.x.astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_sample_sees_the_sub_network_its_gates_select(dtype):
    """Bit for bit the logits of the ungated network whose closed channels have weights and bias zero."""
    network = chain()
    point = cast(sample(network, Context(), 1, batch=6), dtype)
    logits, trace = network.forward(point.w, point.x)
    masks = network.masks(trace)
    assert all(0.1 < mask.mean() < 0.9 for mask in masks.values())
    plain = ungated(network)
    for n in range(6):
        theta = point.w[network.layout.theta].copy()
        for name, mask in masks.items():
            for kind in ("weight", "bias"):
                plain.layout.views(theta)[name.replace("gate", kind)][~mask[n]] = 0
        assert_same_bits(logits[n], plain.forward(theta, point.x[n : n + 1])[0][0], f"sample {n}")


@given(networks(), seeds)
@examples(40)
def test_computing_closed_channels_for_their_gates_changes_no_bit_of_the_rest(network, seed):
    """Evaluation skips, dense gate gradients do not: same logits, same masks."""
    point = sample(network, Context(), seed)
    skipping, first = network.forward(point.w, point.x, Context())
    dense, second = network.forward(point.w, point.x, Context(train=BOTH))
    assert_same_bits(skipping, dense, "logits")
    for name, mask in network.masks(first).items():
        assert_same_bits(mask, network.masks(second)[name])


def closing_some_channels(network, seed):
    """A point at which two channels of each gate are closed for all samples; their indices."""
    point = sample(network, Context(), seed)
    views, closed = network.layout.views(point.w), {}
    for block in network.gates:
        channels = np.array([0, block.gate.out_channels - 1])
        bias = views[f"{block.gate.name}.fc2.bias"].reshape(-1, 2)
        bias[channels] = 60.0, -60.0
        closed[block.gate.name] = channels
    return point, closed


@pytest.mark.parametrize("context", [Context(train=("theta",)), Context(Gating(gate_grad="active"), BOTH)])
def test_weights_and_values_of_closed_channels_are_never_read(context):
    """Poisoned with NaN, they change no bit of loss and gradient, and their own gradients are zeros."""
    network = chain()
    point, closed = closing_some_channels(network, 2)
    poisoned = point._replace(w=point.w.copy())
    views = network.layout.views(poisoned.w)
    for name, channels in closed.items():
        for kind in ("weight", "bias"):
            views[name.replace("gate", kind)][channels] = np.nan
    views["conv2.weight"][:, closed["conv1.gate"]] = np.nan
    flat = views["fc1.weight"].reshape(6, 5, 4)  # conv2's channels as the linear layer sees them
    flat[:, closed["conv2.gate"]] = np.nan
    views["fc2.weight"][:, closed["fc1.gate"]] = np.nan
    loss, gradient = value_and_gradient(network, poisoned, context)
    wanted_loss, wanted = value_and_gradient(network, point, context)
    assert loss == wanted_loss
    assert_same_bits(gradient, wanted, "gradient")
    assert np.isfinite(loss)
    assert not gradient[np.isnan(poisoned.w)].any()
    assert np.isnan(poisoned.w).sum() > 50


def test_dense_gate_gradients_do_read_closed_channels():
    network = chain()
    point, _ = closing_some_channels(network, 2)
    network.layout.views(point.w)["conv1.bias"][0] = np.nan
    _, gradient = value_and_gradient(network, point, Context(Gating(gate_grad="dense"), BOTH))
    assert np.isnan(gradient[network.layout.phi]).any()
    assert np.isfinite(gradient[network.layout.theta]).all()


# Masks, groups, batches


def test_masks_and_decisions_are_reported_by_gate():
    network = chain()
    point = sample(network, Context(), 0)
    _, trace = network.forward(point.w, point.x)
    assert [block.gate.name for block in network.gates] == ["conv1.gate", "conv2.gate", "fc1.gate"]
    masks = network.masks(trace)
    assert {name: (mask.shape, mask.dtype.name) for name, mask in masks.items()} == {
        "conv1.gate": ((3, 4), "bool"),
        "conv2.gate": ((3, 5), "bool"),
        "fc1.gate": ((3, 6), "bool"),
    }
    _, trace = network.forward(point.w, point.x, Context(Gating("soft")))
    assert all(mask.dtype == np.float64 for mask in network.masks(trace).values())


def test_gates_inside_residual_blocks_are_found():
    inner = zoo.with_gates([(Conv2d("a", 2, 2, 3, padding=1), ReLU())], ["a"])
    shortcut = zoo.with_gates([(Conv2d("b", 2, 2, 1), ReLU())], ["b"])
    network = Network("r", (Residual(inner, shortcut), Flatten(), Linear("fc", 32, 2)), (2, 4, 4))
    point = sample(network, Context(), 0)
    _, trace = network.forward(point.w, point.x)
    assert list(network.masks(trace)) == ["a.gate", "b.gate"]
    with pytest.raises(InputError, match="branches must agree"):
        Residual(inner, (Conv2d("c", 2, 3, 1),)).output_shape((2, 4, 4))


def test_gate_groups_partition_the_second_layers_of_all_gates():
    network = chain()
    indptr, indices = network.gate_groups
    assert indptr.dtype == indices.dtype == np.int64
    assert (np.diff(indptr) == 2 * 16 + 2).all()
    assert len(indptr) - 1 == 4 + 5 + 6
    assert len(np.unique(indices)) == len(indices)
    named = np.zeros(network.layout.size, dtype=bool)
    for name, view in network.layout.views(marked := np.zeros(network.layout.size)).items():
        view[:] = ".gate.fc2" in name
    named[network.layout.phi.start + indices] = True
    assert_same_bits(named, marked.astype(bool))
    plain_ptr, plain_indices = ungated(network).gate_groups
    assert plain_ptr.tolist() == [0]
    assert plain_indices.size == 0


def test_images_are_accepted_where_the_network_flattens_first():
    network = zoo.mlp((16, 3))
    w = network.layout.initialise(SeedTree(0), "float64")
    x = np.random.default_rng(0).standard_normal((5, 1, 4, 4))
    assert_same_bits(network.forward(w, x)[0], network.forward(w, x.reshape(5, 16))[0])


DIGITS = zoo.digits(widths=(2, 3))
W = DIGITS.layout.initialise(SeedTree(0))
X = np.zeros((4, 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: DIGITS.forward(W, X[:, 0]),
            r"digits.forward: expected .* sample of shape \(1, 8, 8\)",
        ),
        (lambda: DIGITS.forward(W, X[:0]), r"got an array \(0, 1, 8, 8\)"),
        (lambda: DIGITS.forward(W, X.astype(float)), "samples are float64 but parameters float32"),
        (lambda: DIGITS.forward(W[:-1].copy(), X), "expected a contiguous, writable float32/float64 vector"),
        (lambda: zoo.mlp((16, 3)).forward(np.zeros(51), np.zeros((0, 16))), "at least one sample"),
        (lambda: zoo.mlp((16, 3)).forward(np.zeros(51), 3.0), "at least one sample"),
        (lambda: NetworkObjective(DIGITS, X, np.arange(3)), "expected 4 labels"),
        (lambda: NetworkObjective(DIGITS, X, [0, 1, 2, 10]), r"labels must lie in 0..9, got 0..10"),
        (lambda: NetworkObjective(DIGITS, X, [0, 1, 2, -1]), r"labels must lie in 0..9, got -1..2"),
        (lambda: NetworkObjective(DIGITS, X, np.zeros(4)), "labels must be whole numbers, got float64"),
        (lambda: NetworkObjective(DIGITS, X.astype(int), np.arange(4)), "samples are int64"),
        (lambda: Network("n", (ReLU(),), (1, 2, 2)), "n: the last layer must give one vector"),
        (lambda: Network("n", (Linear("f", 3, 2),), (4,)), "f: expected input shape"),
    ],
)
def test_wrong_input_says_what_to_do(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_awkward_arrays_are_taken_without_recompiling():
    """Read-only and strided samples are copied before kernels see them; a read-only vector is refused."""
    x = np.random.default_rng(0).standard_normal((8, 1, 8, 16))[::2, :, :, ::2]
    w = W.astype(float)
    frozen = np.ascontiguousarray(x)
    frozen.flags.writeable = False
    assert_same_bits(DIGITS.forward(w, x)[0], DIGITS.forward(w, frozen)[0])
    w.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        DIGITS.forward(w, frozen)


SPECIALISATIONS = """
import importlib, pkgutil
import numpy as np
import refimpl.kernels
from refimpl.nn import zoo
from refimpl.nn.context import MODES, Context, Gating
from refimpl.nn.network import draw_gate_noise
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree

def frozen(array):
    array.flags.writeable = False
    return array

rng = np.random.default_rng(0)
for network in (zoo.digits(widths=(2, 3)), zoo.mlp((64, 5, 10), gates=("fc1",), activation="tanh")):
    for dtype in ("float32", "float64"):
        w = network.layout.initialise(SeedTree(0), dtype)
        x = rng.standard_normal((6, *network.input_shape)).astype(dtype)
        noise = draw_gate_noise(network, 3, rng)
        for samples in (x[::2], frozen(x[:3].copy()), np.asfortranarray(x[:3])):
            for mode in MODES:
                for tau in (1, 0.5, np.float32(0.5)):
                    for train in ((), ("theta",), ("phi",), ("theta", "phi")):
                        for gate_grad in ("dense", "active"):
                            context = Context(Gating(mode, tau, gate_grad), train, noise)
                            labels = frozen(np.arange(3, dtype=np.int32))
                            NetworkObjective(network, samples, labels, context)(w, np.empty_like(w))
seen = {}
for module in pkgutil.iter_modules(refimpl.kernels.__path__, "refimpl.kernels."):
    for name, item in vars(importlib.import_module(module.name)).items():
        if hasattr(item, "py_func") and item.signatures:  # a compiled function, or an entry to one
            seen[f"{item.py_func.__module__}.{item.py_func.__name__}"] = len(item.signatures)
print(max(seen.values()), len(seen), {name: n for name, n in seen.items() if n > 2})
"""


def test_one_specialisation_per_dtype():
    """Whatever layout, mode, mask or temperature comes in: each kernel is compiled at most twice."""
    out = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", SPECIALISATIONS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    most, kernels, worse = out.stdout.split(maxsplit=2)
    assert int(kernels) > 10
    assert int(most) <= 2, worse


@given(networks(), st.integers(2, 4), seeds)
@examples(30)
def test_samples_do_not_influence_each_other(network, batch, seed):
    """A batch gives each sample the bits it gets alone (batch normalisation aside)."""
    assume(not any(isinstance(layer, BatchNorm2d) for layer in network.layers))
    point = sample(network, Context(), seed, batch)
    together, _ = network.forward(point.w, point.x)
    for n in range(batch):
        assert_same_bits(together[n], network.forward(point.w, point.x[n : n + 1])[0][0])


@given(networks(), contexts(), seeds, st.sampled_from(("float32", "float64")))
@examples(120)
def test_a_compiled_solve_has_the_bytes_of_the_layers(network, context, seed, dtype):
    """The program of `lowering.py` routes masks by itself; on drawn networks it must route them alike."""
    point = cast(sample(network, context, seed, batch=7), dtype)
    task = NetworkTask(network, point.x, point.y, context.gating, context.train, batch_size=3)
    assume(task.program is not None)
    settings = LocalSettings(lam=1.0, eta=0.05, steps=3)
    compiled = solve_local(task, point.w, settings, np.random.default_rng(seed))
    by_layers = solve_local(Interpreted(task), point.w, settings, np.random.default_rng(seed))
    assert_same_bits(compiled.w, by_layers.w, "solution")
    assert (compiled.loss, compiled.residual) == (by_layers.loss, by_layers.residual)
    assert (compiled.gradients, compiled.flops) == (by_layers.gradients, by_layers.flops)


class Interpreted:
    """A task without its compiled iteration: the layers run."""

    def __init__(self, task):
        self.draw, self.size = task.draw, task.size
