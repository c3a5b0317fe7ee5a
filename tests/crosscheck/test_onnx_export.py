"""Exported networks give our logits in onnxruntime."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refimpl.crosscheck.golden.draw import Draw
from refimpl.crosscheck.golden.models import DEEP, NAMES, model
from refimpl.errors import InputError
from refimpl.nn import zoo
from refimpl.nn.context import Gating
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.norms import GroupNorm, calibrate, frozen, with_summaries
from refimpl.nn.pointwise import ReLU, Softplus
from refimpl.nn.pooling import AvgPool2d, Flatten, MaxPool2d
from refimpl.nn.predict import predict
from refimpl.rng import SeedTree

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.onnx

from refimpl.crosscheck.bridges.onnx import disagreement, export  # noqa: E402

TOLERANCE = 1e-5


def point(network: Network, seed: int = 0, batch: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Parameters at which gates are mixed, and samples."""
    draw = Draw(seed, "onnx", "float32")
    arrays = {name.removeprefix("param."): value for name, value in draw.params(network.layout).items()}
    return network.layout.from_arrays(arrays), draw.normal(batch, *network.input_shape)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_the_zoo_in_full(name, gated):
    network = model(name, gated, full=True)
    w, x = point(network)
    for gating in (Gating(), Gating("soft", tau=0.7)):
        expected = predict(network, w, x, gating)
        assert disagreement(export(network, w, gating), x, expected.logits) <= TOLERANCE
        if gated and gating.mode == "hard":
            channels = sum(block.gate.out_channels for block in network.gates)
            assert 0 < expected.opened.sum() < len(x) * channels  # some on, some off


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", DEEP)
def test_deep_networks_with_the_batchs_and_with_frozen_statistics(name, gated):
    network = model(name, gated)
    w, x = point(network)
    still = frozen(network)
    at = np.concatenate([w, still.layout.initialise(SeedTree(0))[len(w) :]])
    at = calibrate(still, at, x)
    assert disagreement(export(network, w), x, predict(network, w, x).logits) <= TOLERANCE
    exported = export(still, at)
    assert disagreement(exported, x[:2], predict(still, at, x[:2]).logits) <= TOLERANCE
    assert "BatchNormalization" in {node.op_type for node in exported.graph.node}


def test_group_normalisation():
    layers = (Conv2d("c", 2, 6, 3), GroupNorm("n", 6, groups=3), Flatten(), Linear("fc", 96, 3, bias=False))
    network = Network("groups", layers, (2, 6, 6))
    w, x = point(network)
    assert disagreement(export(network, w), x, predict(network, w, x).logits) <= TOLERANCE


@pytest.mark.parametrize("kind", ["normalised", "centred"])
def test_gates_that_normalise_their_summaries(kind):
    network = with_summaries(zoo.digits((3, 4), gates=("conv1", "conv2")), kind)
    w, x = point(network)
    w[network.layout.stats] = np.abs(w[network.layout.stats]) + 0.1
    assert disagreement(export(network, w), x, predict(network, w, x).logits) <= TOLERANCE


@pytest.mark.parametrize("activation", ["softplus", "tanh"])
def test_other_activations_behind_gates(activation):
    network = zoo.digits((3, 5), 4, ("conv1", "conv2"), activation)
    w, x = point(network)
    assert disagreement(export(network, w), x, predict(network, w, x).logits) <= TOLERANCE


def test_padded_pools_and_dilated_and_grouped_convolutions():
    layers = (
        *(Conv2d("c1", 2, 4, 3, padding=2, dilation=2, groups=2), ReLU(), MaxPool2d(3, 2, 1)),
        *(Conv2d("c2", 4, 4, 3, padding=1, groups=4), AvgPool2d(3, 2, 1), Flatten(), Linear("fc", 24, 3)),
    )
    network = Network("windows", layers, (2, 9, 8))
    w, x = point(network)
    assert disagreement(export(network, w), x, predict(network, w, x).logits) <= TOLERANCE


def test_the_batch_size_is_free_and_masks_multiply():
    network = model("digits", full=True)
    w, x = point(network, batch=9)
    exported = export(network, w)
    for count in (1, 9):
        assert disagreement(exported, x[:count], predict(network, w, x[:count]).logits) <= TOLERANCE
    operators = [node.op_type for node in exported.graph.node]
    assert {"Greater", "Cast", "Mul"} <= set(operators)
    masks = [node.output[0] for node in exported.graph.node if node.op_type == "Cast"]
    assert masks == [f"{block.gate.name}.mask" for block in network.gates]


def test_modes_with_noise_or_straight_through_decide_as_hard_ones_do():
    network = model("mlp")
    w, _ = point(network)
    hard = export(network, w).SerializeToString()
    assert export(network, w, Gating("gumbel")).SerializeToString() == hard
    assert export(network, w, Gating("ste")).SerializeToString() == hard
    assert export(network, w, Gating("soft")).SerializeToString() != hard


def test_a_disagreement_is_seen():
    network = model("mlp")
    w, x = point(network)
    logits = predict(network, w, x).logits
    other = w.copy()
    other[network.layout.theta] *= np.float32(1.001)
    assert disagreement(export(network, other), x, logits) > TOLERANCE


def test_an_unknown_layer_is_refused():
    class Odd(Softplus):
        pass

    network = model("mlp", gated=False)
    odd = Network("odd", (*network.layers[:2], Odd(), *network.layers[3:]), network.input_shape)
    with pytest.raises(InputError, match="a Odd has no ONNX counterpart"):
        export(odd, odd.layout.from_arrays(network.layout.to_arrays(point(network)[0])))


# --- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two rounds."""
    from refimpl.cli import app

    run = tmp_path_factory.mktemp("export") / "run"
    few = ("--rounds", "2", "--nodes", "2", "--targets", "2", "--threads", "1", "-q", "--gate-mode", "gumbel")
    assert app.run(["train", "--dataset", "digits", "--method", "metagater", *few, "--out", str(run)]) == 0
    return run


def test_the_meta_model_and_an_adapted_model(refimpl, trained, tmp_path):
    for extra in ((), ("--node", "target-1")):
        code, out, err = refimpl("export", trained, "--out", "model.onnx", "--force", "--json", *extra)
        assert (code, err) == (0, "")
        assert json.loads(out)["difference"] <= TOLERANCE
        session = onnxruntime.InferenceSession(
            str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        (logits,) = session.run(["logits"], {"x": np.zeros((2, 1, 8, 8), np.float32)})
        assert logits.shape == (2, 10)
        assert np.isfinite(logits).all()


def test_it_says_what_it_wrote(refimpl, trained):
    code, out, _ = refimpl("export", trained, "--out", "model.onnx")
    assert code == 0
    assert "x (N, 1, 8, 8) -> logits (N, 10), float32" in out
    assert "allowed 1e-05" in out


def test_mistakes_are_one_line(refimpl, trained, tmp_path):
    (tmp_path / "there.onnx").write_bytes(b"mine")
    for arguments, words in (
        (("--out", "there.onnx"), "--force replaces it"),
        (("--out", "new.onnx", "--node", "target-7"), "target-0, target-1"),
    ):
        code, out, err = refimpl("export", trained, *arguments)
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"
    assert not (tmp_path / "new.onnx").exists()
