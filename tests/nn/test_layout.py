"""The layout: where every parameter lies, views that copy nothing, exchange by name."""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, networks, seeds

from refimpl.errors import InputError
from refimpl.nn import zoo
from refimpl.nn.layout import Layout, Parameter, kaiming_std
from refimpl.rng import SeedTree

SMALL = Layout(
    [
        Parameter("a.weight", (2, 3)),
        Parameter("g.weight", (4,), "phi", fill=(-1.0, 1.0)),
        Parameter("a.bias", (2,), fill=(0.5,)),
    ]
)


def test_backbone_first_gates_last_each_in_order_of_declaration():
    assert [(slot.name, slot.start, slot.stop) for slot in SMALL.slots] == [
        ("a.weight", 0, 6),
        ("a.bias", 6, 8),
        ("g.weight", 8, 12),
    ]
    assert SMALL.size == 12
    assert (SMALL.theta, SMALL.phi) == (slice(0, 8), slice(8, 12))


@given(networks())
@examples(40)
def test_slots_tile_the_vector_without_gap_or_overlap(network):
    layout, at = network.layout, 0
    for slot in layout.slots:
        assert slot.start == at
        assert slot.stop - slot.start == np.prod(slot.shape)
        at = slot.stop
    assert at == layout.size
    parts = [slot.parameter.part for slot in layout.slots]
    assert parts == sorted(parts, key=("theta", "phi").index)
    assert layout.theta.stop == layout.phi.start
    for slot in layout.slots:
        assert (".gate." in slot.name) == (layout.phi.start <= slot.start)


def test_names_and_shapes_are_those_of_pytorch():
    """As printed by `{n: tuple(p.shape) for n, p in module.named_parameters()}` of

    cnn = nn.Module(); cnn.conv1 = nn.Conv2d(3, 32, 3, padding=1); cnn.conv2 = nn.Conv2d(32, 64, 3, padding=1)
    cnn.conv3 = nn.Conv2d(64, 128, 3, padding=1); cnn.fc = nn.Linear(2048, 10)
    gate = nn.Module(); gate.fc1 = nn.Linear(64, 16); gate.fc2 = nn.Linear(16, 256)
    """
    assert {slot.name: slot.shape for slot in zoo.cnn3().layout.slots} == {
        "conv1.weight": (32, 3, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "conv3.weight": (128, 64, 3, 3),
        "conv3.bias": (128,),
        "fc.weight": (10, 2048),
        "fc.bias": (10,),
        "conv3.gate.fc1.weight": (16, 64),
        "conv3.gate.fc1.bias": (16,),
        "conv3.gate.fc2.weight": (256, 16),
        "conv3.gate.fc2.bias": (256,),
    }


def test_views_copy_nothing():
    w = np.arange(12.0)
    views = SMALL.views(w)
    assert views["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert all(np.shares_memory(view, w) and view.flags.c_contiguous for view in views.values())
    views["g.weight"][1] = -7
    assert w[9] == -7
    w[0] = 42
    assert views["a.weight"][0, 0] == 42


def test_copies_share_nothing():
    w = np.arange(12.0)
    arrays = SMALL.to_arrays(w)
    assert not any(np.shares_memory(array, w) for array in arrays.values())


@given(networks(), st.sampled_from(("float32", "float64")), seeds)
@examples(40)
def test_arrays_go_out_and_come_back(network, dtype, seed):
    w = np.random.default_rng(seed).standard_normal(network.layout.size).astype(dtype)
    assert_same_bits(network.layout.from_arrays(network.layout.to_arrays(w), dtype), w)


def arrays(**changes):
    out = SMALL.to_arrays(np.arange(12.0))
    out.update(changes)
    return {name: array for name, array in out.items() if array is not None}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SMALL.from_arrays(arrays(**{"a.bias": None})),
            "missing arrays: a.bias; not of",
        ),
        (lambda: SMALL.from_arrays(arrays(b=np.zeros(1))), "missing arrays: none; not of this network: b"),
        (
            lambda: SMALL.from_arrays(arrays(**{"a.bias": np.zeros(3)})),
            r"a.bias must have shape \(2,\), got \(3,\)",
        ),
        (
            lambda: SMALL.from_arrays(arrays(**{"a.weight": np.zeros((3, 2))})),
            r"a.weight must have shape \(2, 3\), got \(3, 2\)",
        ),
        (
            lambda: SMALL.from_arrays(arrays(), "float16"),
            "unknown dtype 'float16'; did you mean float64\\? choose one of float32",
        ),
        (lambda: SMALL.initialise(SeedTree(0), "int32"), "unknown dtype 'int32'"),
        (lambda: SMALL.views(np.zeros((12, 1))), r"vector of 12 entries, got float64 of shape \(12, 1\)"),
        (lambda: SMALL.views(np.zeros(11)), r"vector of 12 entries, got float64 of shape \(11,\)"),
        (lambda: SMALL.views(np.zeros(12, dtype=int)), "got int64"),
        (lambda: SMALL.views(np.zeros(24)[::2]), "not contiguous"),
        (lambda: SMALL.views(np.broadcast_to(0.0, 12)), "not contiguous|read-only"),
        (lambda: SMALL.views([0.0] * 12), "got list"),
        (lambda: Layout([Parameter("a", (1,)), Parameter("a", (2,), "phi")]), "got a twice; rename"),
        (
            lambda: Layout([Parameter("a", (1,), "psi")]),
            "unknown part 'psi'; did you mean phi\\? choose one of th",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_initial_values_are_pattern_plus_noise():
    w = SMALL.initialise(SeedTree(0), "float64")
    assert SMALL.views(w)["g.weight"].tolist() == [-1, 1, -1, 1]
    assert SMALL.views(w)["a.bias"].tolist() == [0.5, 0.5]
    big = Layout([Parameter("w", (200, 500), std=0.25, fill=(1.0, 3.0))])
    values = big.initialise(SeedTree(1), "float64").reshape(-1, 2)
    assert values.mean(axis=0) == pytest.approx([1.0, 3.0], abs=5 * 0.25 / np.sqrt(50_000))
    assert values.std(axis=0) == pytest.approx([0.25, 0.25], rel=0.02)


def test_initial_weights_keep_the_variance_through_relu():
    """He et al. 2015: with gain sqrt(2) the mean square of relu(W x) is that of x."""
    assert kaiming_std(8) == pytest.approx(0.5)
    assert kaiming_std(4, gain=1.0) == 0.5
    rng = np.random.default_rng(0)
    x = rng.standard_normal(400)
    weight = kaiming_std(400) * rng.standard_normal((5000, 400))
    assert np.mean(np.maximum(weight @ x, 0) ** 2) == pytest.approx(np.mean(x**2), rel=0.1)


def test_initialisation_depends_on_the_seed_alone():
    network = zoo.digits()
    first, again = (network.layout.initialise(SeedTree(3)) for _ in range(2))
    assert_same_bits(first, again)
    assert first.dtype == np.float32
    other = network.layout.initialise(SeedTree(4))
    assert (first != other).mean() > 0.9
    double = network.layout.initialise(SeedTree(3), "float64")
    assert_same_bits(double.astype(np.float32), first)  # drawn in float64, rounded once


def test_gates_do_not_change_the_initial_backbone():
    gated, plain = zoo.digits(), zoo.digits(gates=())
    seeds_ = SeedTree(7)
    assert_same_bits(gated.layout.initialise(seeds_)[gated.layout.theta], plain.layout.initialise(seeds_))
