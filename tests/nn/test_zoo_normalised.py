"""The models with batch normalisation: sizes and work counted by hand, gradients, equal bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checks import assert_close, assert_gradients, assert_same_bits
from test_hessian import assert_hessian

from refimpl.errors import InputError
from refimpl.nn import zoo
from refimpl.nn.context import Context, Gating
from refimpl.nn.gradcheck import check_network
from refimpl.nn.layers import Conv2d, Flow, Linear
from refimpl.nn.lowering import uncompiled
from refimpl.nn.network import Network
from refimpl.nn.norms import FrozenNorm2d, calibrate, fold, folded, frozen
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.plan import every_layer
from refimpl.nn.pooling import Flatten, MaxPool2d
from refimpl.nn.predict import predict
from refimpl.nn.task import NetworkTask
from refimpl.nn.work import dense_work, executed_work
from refimpl.rng import SeedTree

BOTH = ("theta", "phi")
SMALL = {
    "conv4": {"input_shape": (2, 16, 16), "widths": [3, 4, 4, 5], "classes": 3},
    "resnet12": {"input_shape": (2, 16, 16), "widths": [2, 3, 3, 4], "classes": 3},
    "resnet20": {"input_shape": (2, 8, 8), "widths": [2, 3, 4], "classes": 3},
}


def small(name: str, gates=None) -> Network:
    return zoo.network(name, gates, **SMALL[name])


def point(network: Network, batch: int = 4, dtype: str = "float64", seed: int = 1):
    """Parameters away from their special starting values, with mixed gates; samples and labels."""
    rng = np.random.default_rng(seed)
    w = network.layout.initialise(SeedTree(seed), "float64") + 0.05 * rng.standard_normal(network.layout.size)
    w[network.layout.phi] += rng.standard_normal(w[network.layout.phi].size)
    x, y = rng.standard_normal((batch, *network.input_shape)), rng.integers(0, network.classes, batch)
    return w.astype(dtype), x.astype(dtype), y


def conv(before, after, side, kernel=3, activated=True):
    """Convolution, normalisation and, usually, activation: parameters and FLOPs of one sample."""
    weights, outputs = kernel**2 * before * after, after * side**2
    return np.array([weights + 2 * after, 2 * weights * side**2 + (1 + activated) * outputs])


def plain(parameters=0, flops=0):
    return np.array([parameters, flops])


def conv4(widths, colours, side, classes):
    total = plain()
    for before, after in zip((colours, *widths), widths, strict=False):
        total, side = total + conv(before, after, side) + plain(0, after * (side // 2) ** 2), side // 2
    features = widths[-1] * side**2
    return total + plain((features + 1) * classes, (2 * features + 1) * classes)


def head(width, classes):
    return plain((width + 1) * classes, width + (2 * width + 1) * classes)


def resnet12(widths, colours, side, classes):
    total = plain()
    for before, after in zip((colours, *widths), widths, strict=False):
        total = total + conv(before, after, side) + conv(after, after, side)
        total = total + conv(after, after, side, 3, False) + conv(before, after, side, 1, False)
        total = total + plain(0, 2 * after * side**2 + after * (side // 2) ** 2)  # sum, activation, pooling
        side //= 2
    return total + head(widths[-1], classes)


def deep(blocks, widths, colours, side, classes):
    total, before = conv(colours, widths[0], side), widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            if stage and not block:
                side //= 2
                total = total + conv(before, width, side, 1, False)
            total = total + conv(before, width, side) + conv(width, width, side, 3, False)
            total, before = total + plain(0, 2 * width * side**2), width  # sum and activation
    return total + head(widths[-1], classes)


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (zoo.network("conv4", ()), conv4((64,) * 4, 3, 32, 10)),
        (zoo.network("conv4", (), (1, 28, 28), 20, widths=[32] * 4), conv4((32,) * 4, 1, 28, 20)),
        (zoo.network("resnet12", ()), resnet12((64, 128, 256, 512), 3, 32, 10)),
        (zoo.network("resnet12", (), classes=5, widths=[8, 9, 9, 12]), resnet12((8, 9, 9, 12), 3, 32, 5)),
        (zoo.network("resnet20", ()), deep(3, (16, 32, 64), 3, 32, 10)),
        (zoo.network("resnet32", ()), deep(5, (16, 32, 64), 3, 32, 10)),
        (zoo.network("resnet56", (), widths=[4, 4, 6]), deep(9, (4, 4, 6), 3, 32, 10)),
    ],
)
def test_parameters_and_work_as_counted_by_hand(network, wanted):
    assert network.layout.size == wanted[0]
    assert dense_work(network, 3).forward == 3 * wanted[1]


def test_the_published_sizes():
    """He et al. 2016, table 6 (0.27, 0.46 and 0.85 million); Lee et al. 2019 (8.0 million)."""
    sizes = {name: zoo.network(name, ()).layout.size for name in ("resnet20", "resnet32", "resnet56")}
    assert [round(size / 1e6, 2) for size in sizes.values()] == [0.27, 0.47, 0.86]
    assert round(zoo.network("resnet12", (), classes=64).layout.size / 1e6, 1) == 8.0


def convolutions(name):
    """The names of all that can carry a gate."""
    with pytest.raises(InputError) as caught:
        small(name, ("no such layer",))
    return str(caught.value).split("choose one of ")[1].split(", ")


@pytest.mark.parametrize("name", SMALL)
def test_every_convolution_can_carry_a_gate_and_keeps_its_normalisation(name):
    names = convolutions(name)
    network = small(name, names)
    assert frozen(network) == network  # nothing is left to freeze
    assert set(frozen(small(name, ())).layout.by_name) < set(network.layout.by_name)
    assert [block.gate.name for block in network.gates] == [f"{layer}.gate" for layer in names]
    w, x, _ = point(network)
    assert 0 < predict(network, w, x).opened.sum() < len(x) * sum(g.gate.out_channels for g in network.gates)


@pytest.mark.parametrize("name", SMALL)
def test_a_trained_network_is_frozen_and_then_gated(name):
    """With open gates the gated, calibrated network computes what batch statistics do."""
    network = small(name, ())
    gated = small(name, convolutions(name))
    w, x, _ = point(network)
    views, at = network.layout.views(w), gated.layout.initialise(SeedTree(0), "float64")
    for part, view in gated.layout.views(at).items():
        view[...] = views.get(part, view)  # the gates are all open at the start
    found = calibrate(gated, at, x)
    assert_close(predict(gated, found, x).logits, network.forward(w, x)[0], "network")
    unlike = found != at
    assert unlike[gated.layout.stats].all()
    assert not unlike[: gated.layout.stats.start].any()


def test_closed_channels_are_calibrated_as_well():
    """The statistics of the gated layer are those of what all of its channels would be, for all samples."""
    network = small("conv4", ("conv1",))
    w, x, _ = point(network)
    assert 0 < predict(network, w, x).opened.sum() < 3 * len(x)
    maps = Conv2d("conv1", 2, 3, 3, padding=1, bias=False).forward(network.layout.views(w), x, Flow())[0]
    found = network.layout.views(calibrate(network, w, x))
    np.testing.assert_allclose(found["conv1.norm.running_mean"], maps.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found["conv1.norm.running_var"], maps.var((0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("gates", [(), None], ids=["ungated", "gated"])
@pytest.mark.parametrize("name", SMALL)
def test_predictions_fold_frozen_statistics_into_convolutions(name, gates):
    network = frozen(small(name, gates))
    w, x, _ = point(network)
    kinds = [type(layer) for layer in every_layer(folded(network).layers)]
    assert FrozenNorm2d not in kinds
    found = predict(network, w, x)
    assert_close(found.logits, network.forward(w, x)[0], "network")
    assert (
        found.flops
        == executed_work(network, network.masks(network.forward(w, x)[1]), len(x), Context()).total
    )


def test_what_is_not_behind_a_convolution_is_not_folded():
    """Neither a normalisation at the front, nor one behind a pooling; two in a row are folded both."""
    norms = [FrozenNorm2d(f"n{number}", channels) for number, channels in enumerate((2, 3, 3, 3))]
    conv, ends = Conv2d("c", 2, 3, 3), (MaxPool2d(2), norms[3], Flatten(), Linear("fc", 12, 3))
    network = Network("odd", (norms[0], conv, *norms[1:3], *ends), (2, 6, 6))
    w, x, _ = point(network)
    assert folded(network).layers == (norms[0], conv, *ends)
    assert_close(predict(network, w, x).logits, network.forward(w, x)[0], "network")


@pytest.mark.parametrize("name", SMALL)
def test_gradients_without_gates(name):
    network = small(name, ())
    w, x, y = point(network)
    rng = np.random.default_rng(0)
    assert_gradients(check_network(network, w, x, y, Context(Gating(), BOTH), rng, directions=1))


@pytest.mark.parametrize(
    "gating", [Gating("hard"), Gating("ste", gate_grad="active"), Gating("soft")], ids=str
)
@pytest.mark.parametrize("name", SMALL)
def test_gradients_with_the_usual_gates(name, gating):
    network = small(name)
    w, x, y = point(network)
    rng = np.random.default_rng(0)
    assert_gradients(check_network(network, w, x, y, Context(gating, BOTH), rng, directions=1))


@pytest.mark.parametrize("gates", [(), None], ids=["ungated", "soft"])
@pytest.mark.parametrize("name", SMALL)
def test_second_derivatives(name, gates):
    network = small(name, gates)
    w, x, y = point(network)
    assert_hessian(NetworkObjective(network, x, y, Context(Gating("soft"), BOTH)), w)


@pytest.mark.parametrize("gates", [(), None], ids=["ungated", "gated"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SMALL)
def test_programs_and_layers_give_the_same_bits(name, dtype, gates):
    network = small(name, gates)
    assert not uncompiled(network)
    w, x, y = point(network, 5, dtype)
    found = []
    for compiled in (True, False):
        task = replace(NetworkTask(network, x, y), compiled=compiled)
        (objective,) = task.draw(np.random.default_rng(0), 1)
        gradient = np.empty_like(w)
        found.append((objective(w, gradient), gradient))
    assert found[0][0] == found[1][0]
    assert_same_bits(found[0][1], found[1][1])
    assert_same_bits(predict(network, w, x).logits, folded(network).forward(fold(network, w), x)[0])


@pytest.mark.parametrize("name", SMALL)
def test_float32_is_near_float64(name):
    network = small(name)
    w, x, _ = point(network)
    single = network.forward(w.astype("float32"), x.astype("float32"))[0]
    assert_close(single, network.forward(w, x)[0], "network", "float32")


def test_images_too_small_for_the_poolings():
    with pytest.raises(InputError, match=r"resnet12: images of 8x8 pixels are too small, .* at least 16x16"):
        zoo.network("resnet12", input_shape=(1, 8, 8))


def test_training_on_two_threads_gives_the_same_bytes(refimpl, tmp_path):
    few = "--dataset digits --model resnet20 --widths 2,3,4 --nodes 2 --targets 1 --rounds 2 -q"
    for threads in (1, 2):
        code, _, err = refimpl("train", *few.split(), "--threads", threads, "--out", tmp_path / str(threads))
        assert (code, err) == (0, "")
    one, two = (np.load(tmp_path / str(threads) / "meta_model.npz") for threads in (1, 2))
    assert one.files == two.files
    for array in one.files:
        np.testing.assert_array_equal(one[array], two[array])
