"""PyTorch as a second implementation, live: drawn configurations, all golden levels, planted mistakes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checks import assert_close
from hypothesis import given
from hypothesis import strategies as st
from readme_commands import document
from strategies import contexts, conv_cases, examples, networks, pools, sample, seeds

from refimpl.crosscheck.compare import FINE, as_theirs, compare
from refimpl.crosscheck.golden.case import Case
from refimpl.crosscheck.golden.draw import Draw, gates_of, network_settings
from refimpl.crosscheck.golden.file import read_golden
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.levels.prox import PENALTIES
from refimpl.crosscheck.golden.models import DEEP, model
from refimpl.crosscheck.golden.names import network_outputs
from refimpl.crosscheck.golden.ours import run as ours
from refimpl.errors import InputError
from refimpl.nn import zoo
from refimpl.nn.context import MODES, Context, Gating
from refimpl.nn.norms import calibrate, frozen
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pooling import MaxPool2d
from refimpl.nn.predict import predict
from refimpl.rng import SeedTree

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import make_golden  # noqa: E402
from worst import rows_of  # noqa: E402

from refimpl.crosscheck.bridges import run as run_command  # noqa: E402
from refimpl.crosscheck.bridges.torch import ops  # noqa: E402
from refimpl.crosscheck.bridges.torch.network import Batch, Objective, build  # noqa: E402
from refimpl.crosscheck.bridges.torch.run import run  # noqa: E402
from refimpl.crosscheck.bridges.torch.weights import (  # noqa: E402
    array,
    from_state_dict,
    tensor,
    to_state_dict,
)

dtypes = st.sampled_from(("float64", "float32"))


def assert_agree(case: Case, kind: str = "network", floor: float = 1e-3) -> None:
    """Every output of both implementations; where hardly anything is expected, relative to `floor`."""
    theirs, mine = run(case), ours(case)
    assert list(theirs) == list(mine) == list(case.outputs)
    for name, expected in mine.items():
        assert theirs[name].dtype == expected.dtype, name
        assert_close(theirs[name], expected, kind, case.dtype, f"{case.name}/{name}", floor)


# --- weights


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_weights_go_there_and_back(dtype):
    network = zoo.cnn3(gates=("conv2", "conv3"))
    w = network.layout.initialise(SeedTree(3), dtype)
    state = build(network, w).state_dict()
    assert list(to_state_dict(network.layout, w)) == list(network.layout.by_name)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        slot.name: slot.shape for slot in network.layout.slots
    }
    back = from_state_dict(network.layout, state)
    assert back.dtype == w.dtype
    np.testing.assert_array_equal(back, w)


def test_a_plain_pytorch_model_fits_by_name():
    network = zoo.mlp((12, 7, 4))
    theirs = torch.nn.Sequential()
    theirs.add_module("fc1", torch.nn.Linear(12, 7))
    theirs.add_module("relu", torch.nn.ReLU())
    theirs.add_module("fc2", torch.nn.Linear(7, 4))
    w = from_state_dict(network.layout, theirs.state_dict(), "float32")
    x = np.random.default_rng(0).standard_normal((3, 12)).astype("float32")
    assert_close(predict(network, w, x).logits, array(theirs(tensor(x))), "network", "float32")


def test_wrong_names_are_named():
    network = zoo.mlp((12, 7, 4))
    with pytest.raises(InputError, match=r"missing arrays: fc1\.bias"):
        from_state_dict(network.layout, {"fc1.weight": torch.zeros(7, 12)})
    with pytest.raises(InputError, match="different dtypes"):
        from_state_dict(network.layout, {"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.float64)})


# --- drawn configurations


@examples(40)
@given(conv_cases(), dtypes)
def test_convolutions_of_any_shape_stride_dilation_groups_and_mask(drawn, dtype):
    layer, draw = drawn.layer, Draw(drawn.seed, "conv", dtype)
    inputs = {"x": draw.normal(drawn.batch, *drawn.shape)}
    inputs["weight"] = draw.normal(layer.out_channels, layer.in_channels // layer.groups, *layer.window)
    if layer.bias:
        inputs["bias"] = draw.normal(layer.out_channels)
    if drawn.writes is not None:
        inputs["mask"] = drawn.writes
    inputs["dy"] = draw.coarse(drawn.batch, *layer.output_shape(drawn.shape))  # sums over pixels are exact
    settings = {"stride": list(layer.step), "padding": list(layer.pad)}
    settings |= {"dilation": list(layer.spacing), "groups": layer.groups}
    outputs = ("y", "grad.x", "grad.weight", *(["grad.bias"] if layer.bias else []))
    assert_agree(Case("ops/drawn", "conv2d", dtype, inputs, settings, outputs), "reference")


@examples(25)
@given(pools, st.integers(3, 7), st.integers(3, 7), seeds, dtypes)
def test_pools_of_any_window_stride_and_padding_with_ties(layer, rows, columns, seed, dtype):
    draw, shape = Draw(seed, "pool", dtype), (2, rows, columns)
    inputs = {"x": draw.coarse(2, *shape), "dy": draw.normal(2, *layer.output_shape(shape))}
    kind = "max_pool2d" if isinstance(layer, MaxPool2d) else "avg_pool2d"
    settings = {"kernel": list(layer.window), "stride": list(layer.step), "padding": list(layer.pad)}
    assert_agree(Case("ops/drawn", kind, dtype, inputs, settings, ("y", "grad.x")), "reference")


@examples(40)
@given(networks(kinks=False), contexts(train=(("theta", "phi"),)), seeds)
def test_networks_of_any_shape_in_any_mode(network, context, seed):
    """Every activation, mask and gradient."""
    draw, gating = Draw(seed, "network", "float64"), context.gating
    inputs = draw.params(network.layout, zeros=False) | {"x": draw.normal(3, *network.input_shape)}
    inputs["labels"] = draw.labels(3, classes=network.classes)
    if gating.mode == "gumbel":
        inputs |= draw.noise(gates_of(network), 3)
    settings = network_settings(network, gating)
    outputs = network_outputs(settings["layers"], gating.gate_grad)
    assert_agree(Case("networks/drawn", "network", "float64", inputs, settings, outputs))


@examples(40)
@given(networks(kinks=False), contexts(), seeds)
def test_gradients_of_trained_parts(network, context, seed):
    """Where only phi or only theta is trained, too: then masks may be constants."""
    point = sample(network, context, seed)
    expected = np.empty_like(point.w)
    loss = NetworkObjective(network, point.x, point.y, point.context)(point.w, expected)
    module = build(network, point.w, context.gating, context.train)
    noise = {name: tensor(value) for name, value in point.context.noise.items()}
    objective = Objective(module, Batch(tensor(point.x), tensor(point.y), noise))
    theirs, gradient = objective.both(tensor(point.w))
    assert_close(np.array(float(theirs)), np.array(loss), "network")
    assert_close(array(gradient), expected, "network", scale=1e-3)
    wanted = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert wanted == {s.name for s in network.layout.slots if s.parameter.part in context.train}


@examples(60)
@given(st.sampled_from(sorted(PENALTIES)), st.floats(0.01, 5.0), seeds, dtypes)
def test_penalties_at_any_step(penalty, step, seed, dtype):
    (case,) = (c for c in build_cases("prox", seed, dtype) if c.name == f"prox/{penalty}")
    assert_agree(replace(case, settings={**case.settings, "step": step}), "reference")


@examples(8)
@given(st.sampled_from(("local", "adapt", "baselines", "algorithm")), seeds, dtypes)
def test_iterations_from_any_seed(level, seed, dtype):
    for case in build_cases(level, seed, "float64" if level == "algorithm" else dtype):
        assert_agree(case)


# --- the zoo and the levels


def assert_conforms(case: Case) -> None:
    """Every output within the limits that a golden file of the case would have."""
    assert {row.output: row.status for row in rows_of(case)} == dict.fromkeys(case.outputs, FINE)


@pytest.mark.parametrize("mode", ["ungated", *MODES])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["mlp", "digits", "cnn3", "cnn7", "residual"])
def test_networks_of_the_zoo_in_full(name, dtype, mode):
    """In float32 with inputs in which no two pixels of a pooling window are within rounding of each other.

    Where they are (cnn7 with the inputs of seed 1), each side may send the gradient another way.
    """
    seed = 1 if dtype == "float64" else 0
    for case in build_cases("networks", seed, dtype, (name,), full=True):
        if f"-{mode}" in case.name:
            assert_conforms(case)


@pytest.mark.parametrize("gates", [(), None], ids=["ungated", "gated"])
@pytest.mark.parametrize(
    ("name", "shape", "widths"),
    [
        ("conv4", (2, 16, 16), [5, 6, 7, 8]),
        ("resnet12", (2, 16, 16), [4, 5, 6, 7]),
        ("resnet20", (2, 8, 8), [4, 6, 8]),
        ("resnet56", (2, 8, 8), [4, 6, 8]),
    ],
)
def test_gradients_of_normalised_models(name, shape, widths, gates):
    """Through batch statistics and residual sums, to 1e-10 of the largest entry."""
    network = zoo.network(name, gates, shape, 5, widths=widths)
    point = sample(network, Context(Gating("hard"), ("theta", "phi")), seed=1)
    expected = np.empty_like(point.w)
    loss = NetworkObjective(network, point.x, point.y, point.context)(point.w, expected)
    module = build(network, point.w, point.context.gating)
    theirs, gradient = Objective(module, Batch(tensor(point.x), tensor(point.y))).both(tensor(point.w))
    assert_close(np.array(float(theirs)), np.array(loss), "network")
    assert_close(array(gradient), expected, "network")


@pytest.mark.parametrize("name", DEEP)
def test_deep_networks(name):
    for case in build_cases("networks", 1, "float64", (name,)):
        assert_conforms(case)


@pytest.mark.parametrize("name", DEEP)
def test_calibrated_statistics_are_pytorchs_running_ones(name, monkeypatch):
    """PyTorch's modules with momentum=None see one batch; then both sides compute with its statistics.

    PyTorch keeps the unbiased variance, which is count/(count - 1) times the biased one.
    """
    network = model(name, gated=False)
    w, x, _, _ = sample(network, Context(train=("theta",)), seed=3, batch=6)
    modules, factors = {}, {}

    def normalise(entry, x, p):
        weight, bias = p["weight"], p["bias"]
        own = modules.setdefault(
            entry["name"], torch.nn.BatchNorm2d(entry["channels"], entry["eps"], momentum=None, dtype=x.dtype)
        )
        factors[entry["name"]] = 1 - x.shape[1] / x.numel()
        own.weight, own.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())
        return own(x)

    monkeypatch.setitem(ops.template.LAYERS, "batch_norm2d", normalise)
    module, still = build(network, w), frozen(network)
    module(tensor(x))
    statistics = still.layout.initialise(SeedTree(0), "float64")[still.layout.stats]
    found = calibrate(still, np.concatenate([w, statistics]), x)
    views = still.layout.views(found)
    for layer, own in modules.items():
        own.running_var *= factors[layer]
        assert_close(views[f"{layer}.running_mean"], array(own.running_mean), "network")
        assert_close(views[f"{layer}.running_var"], array(own.running_var), "network")
    for own in modules.values():
        own.eval()
    other = x[::-1].copy() + 0.5
    assert_close(predict(still, found, other).logits, array(module(tensor(other))), "network")


@pytest.mark.parametrize(
    "level", ["ops", "prox", "local", "algorithm", "adapt", "baselines", "cooperative", "fewshot"]
)
def test_levels(level):
    for dtype in ("float64", "float32"):
        for case in build_cases(level, 2, dtype):
            assert_conforms(case)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_pytorchs_own_sigmoid_is_no_departure(dtype, monkeypatch):
    """Whose derivative, y (1 - y), loses digits where a gate is nearly sure: cases have no such gates."""
    monkeypatch.setattr(ops.template, "sigmoid", torch.sigmoid)
    for case in build_cases("networks", 0, dtype):
        assert_conforms(case)


def test_adaptation_decides_without_noise():
    (case,) = (case for case in build_cases("adapt") if case.name == "adapt/hard")
    gumbel = {**case.settings, "gating": {**case.settings["gating"], "mode": "gumbel"}}
    noisy, hard = run(replace(case, settings=gumbel)), run(case)
    for name in case.outputs:
        np.testing.assert_array_equal(noisy[name], hard[name])


def test_a_case_of_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="unknown kind of case 'fft'"):
        run(Case("ops/odd", "fft", "float64", {}))


def test_the_module_is_an_ordinary_one():
    """It trains with an optimiser of PyTorch's, and evaluates under `inference_mode`."""
    network = model("digits")
    module = build(network, network.layout.initialise(SeedTree(0), "float32"), Gating("ste"))
    x, y = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    optimiser, losses = torch.optim.SGD(module.parameters(), 0.1), []
    for _ in range(10):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), y)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    with torch.inference_mode():
        mine = predict(network, from_state_dict(network.layout, module.state_dict()), x.numpy())
        assert_close(mine.logits, module(x).numpy(), "network", "float32")


@pytest.mark.parametrize(("level", "dtype"), make_golden.SELECTION)
def test_the_files_kept_with_the_tests_are_what_make_golden_gives(level, dtype):
    kept = read_golden(Path(__file__).parent / "golden" / f"{level}-{dtype}.npz")
    selected = list(make_golden.selected(level, dtype))
    assert [case.name for case in kept.cases] == [case.name for case in selected]
    for old, new in zip(kept.cases, selected, strict=True):
        assert (old.kind, old.dtype, old.settings) == (new.kind, new.dtype, new.settings)
        assert old.outputs == new.outputs
        assert set(old.inputs) == set(new.inputs)
        assert all(np.array_equal(old.inputs[name], new.inputs[name]) for name in old.inputs)
    comparison = compare(kept, as_theirs({case.name: run(case) for case in selected}))
    assert {row.status for row in comparison.rows} == {FINE}


def test_a_golden_file_is_computed_and_checked_end_to_end(refimpl, tmp_path):
    assert refimpl("golden", "make", "--level", "prox", "--out", "f.npz", "-q")[0] == 0
    assert run_command.main(["f.npz", "--out", "theirs.npz"]) == 0
    code, out, _ = refimpl("golden", "check", "f.npz", "theirs.npz", "-q")
    assert code == 0
    assert "26 of 26 arrays agree" in out


def test_the_readme_example_of_the_bridge_runs():
    (block,) = (
        block
        for block in re.findall(r"```py\n(.*?)\n```", document("refimpl/crosscheck/README.md"), flags=re.S)
        if "refimpl.crosscheck.bridges.torch" in block
    )
    found: dict = {}
    exec(compile(block, "README.md", "exec"), found)
    expected = found["network"].layout.initialise(SeedTree(0))
    np.testing.assert_array_equal(found["w"], expected)  # there and back


def test_bfloat16_and_an_empty_state_are_understood():
    network = zoo.mlp((12, 7, 4))
    w = network.layout.initialise(SeedTree(0))
    half = {name: value.bfloat16() for name, value in to_state_dict(network.layout, w).items()}
    assert np.allclose(from_state_dict(network.layout, half), w, rtol=2**-7)
    with pytest.raises(InputError, match="missing arrays: fc1"):
        from_state_dict(network.layout, {})
