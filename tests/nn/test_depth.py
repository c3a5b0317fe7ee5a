"""Networks of fewer blocks: against models that are built with so many, against closed forms, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_gradients, assert_same_bits

from refimpl.errors import InputError
from refimpl.nn import zoo
from refimpl.nn.chain import Residual
from refimpl.nn.context import Context
from refimpl.nn.gate import Gated
from refimpl.nn.gradcheck import check_network
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.norms import GroupNorm
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import AvgPool2d, Flatten, MaxPool2d
from refimpl.nn.predict import predict
from refimpl.rng import SeedTree

SMALL = {"input_shape": (2, 8, 8), "widths": [2, 3, 4], "classes": 3}


def small(name: str, gates=()) -> Network:
    return zoo.network(name, gates, **SMALL)


@pytest.mark.parametrize("gates", [(), ("stage1.block1.conv1", "stage2.block2.conv1")])
def test_a_deep_network_has_the_layers_of_its_smaller_siblings(gates):
    assert small("resnet32", gates).at_depth(3).layers == small("resnet20", gates).layers
    assert small("resnet56", gates).at_depth(5).layers == small("resnet32", gates).layers


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnet20", 3),
        ("resnet32", 5),
        ("resnet56", 9),
        ("resnet12", 3),
        ("cnn7", 2),
        ("conv4", 1),
        ("mlp", 0),
    ],
)
def test_depths_of_the_models(name, depth):
    assert zoo.network(name).depth == zoo.network(name, ()).depth == depth


def test_the_full_depth_is_the_network_itself():
    network = small("resnet20")
    assert network.at_depth(3) is network


@pytest.mark.parametrize("name", ["resnet20", "resnet12", "cnn7"])
def test_a_network_cut_to_a_depth_has_that_depth(name):
    """Even where one residual block is left in each stage, whose convolutions are no blocks then."""
    network = zoo.network(name)
    for depth in range(1, network.depth + 1):
        part = network.at_depth(depth)
        assert part.depth == depth
        assert part.at_depth(depth) is part
        assert part.at_depth(1).layers == network.at_depth(1).layers


@pytest.mark.parametrize("depth", [0, 4])
def test_other_depths_are_refused(depth):
    with pytest.raises(InputError, match=f"resnet20: .* got {depth}; it has depths 1 to 3"):
        small("resnet20").at_depth(depth)
    with pytest.raises(InputError, match="no stages"):
        zoo.mlp().at_depth(1)


@pytest.mark.parametrize("depth", [1, 2])
def test_parameters_of_a_depth_are_those_of_the_full_network(depth):
    network = small("resnet20")
    part = network.at_depth(depth)
    where = network.layout.entries(part.layout.by_name)
    assert len(np.unique(where)) == part.layout.size == len(where)
    w = np.random.default_rng(0).standard_normal(network.layout.size)
    arrays = network.layout.to_arrays(w)
    own = part.layout.from_arrays({name: arrays[name] for name in part.layout.by_name}, "float64")
    assert_same_bits(w[where], own)


def test_a_block_that_adds_nothing_is_one_that_is_left_out():
    """With zero scale and shift its body gives 0, and ReLU(x + 0) = x behind another ReLU."""
    network, rng = small("resnet20"), np.random.default_rng(3)
    w = network.layout.initialise(SeedTree(3), "float64")
    views, x = network.layout.views(w), rng.standard_normal((5, 2, 8, 8))
    for stage, block in ((1, 3), (2, 3), (3, 3), (1, 2), (2, 2), (3, 2)):
        for part in ("weight", "bias"):
            views[f"stage{stage}.block{block}.conv2.norm.{part}"][:] = 0
        if block == 3 and stage == 3:
            compare(network, network.at_depth(2), w, x)
    compare(network, network.at_depth(1), w, x)


def compare(network: Network, part: Network, w, x):
    own = w[network.layout.entries(part.layout.by_name)]
    assert_same_bits(predict(part, own, x).logits, predict(network, w, x).logits)


def test_inside_the_single_blocks_of_resnet12():
    network = zoo.network("resnet12", (), (2, 16, 16), widths=[2, 3, 3, 4], classes=3)
    for depth, kinds in ((1, "Conv2d BatchNorm2d"), (2, "Conv2d BatchNorm2d LeakyReLU Conv2d BatchNorm2d")):
        part = network.at_depth(depth)
        bodies = [layer.body for layer in part.layers if isinstance(layer, Residual)]
        assert [" ".join(type(layer).__name__ for layer in body) for body in bodies] == [kinds] * 4
    rng, w = np.random.default_rng(1), part.layout.initialise(SeedTree(1), "float64")
    w += 0.05 * rng.standard_normal(w.size)  # away from the zero biases of the start
    x, y = rng.standard_normal((4, 2, 16, 16)), rng.integers(0, 3, 4)
    assert_gradients(check_network(part, w, x, y, Context(train=("theta",)), rng, directions=1))


def test_plain_stages_keep_their_poolings():
    def conv(number, before, after):
        return Conv2d(f"conv{number}", before, after, 3, padding=1), ReLU()

    widths = (2, 2, 3, 3, 4, 4)
    expected = (
        *conv(1, 1, 2), MaxPool2d(2), *conv(3, 2, 3), MaxPool2d(2), *conv(5, 3, 4), AvgPool2d(2),
        Flatten(), Linear("fc", 4, 5, gain=1.0),
    )  # fmt: skip
    assert zoo.cnn7((1, 8, 8), widths, 5, ()).at_depth(1).layers == expected
    gated = (Gated(zoo.ChannelGate("conv6.gate", 4, 4), (*conv(6, 4, 4), AvgPool2d(2))),)
    full = zoo.cnn7((1, 8, 8), widths, 5, ("conv6",))
    assert full.layers[-3:-2] == gated
    assert full.at_depth(1).layers == expected  # the pooling inside the gated block stays


def test_a_stage_begins_behind_a_pooling_and_keeps_its_normalisation():
    """Two stages of equal width, of three and two blocks, with group normalisation."""

    def block(number):
        return Conv2d(f"c{number}", 4, 4, 3, padding=1), GroupNorm(f"n{number}", 4), ReLU()

    first = (Conv2d("c0", 1, 4, 3, padding=1), ReLU())
    head = (Flatten(), Linear("fc", 64, 3))
    network = Network(
        "mine", (*first, *block(1), *block(2), MaxPool2d(2), *block(3), *block(4), *head), (1, 8, 8)
    )
    assert network.depth == 3
    assert network.at_depth(2).layers == (*first, *block(1), MaxPool2d(2), *block(3), *block(4), *head)
    assert network.at_depth(1).layers == (*first, MaxPool2d(2), *block(3), *head)
