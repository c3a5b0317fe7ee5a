"""Counted work against a meter that walks each sample, and against counts by hand."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meter import BOTH, PASSES, metered, ticks
from strategies import contexts, examples, networks, sample, seeds

from refimpl.errors import InputError
from refimpl.kernels import conv, linear
from refimpl.nn import zoo
from refimpl.nn.chain import Residual
from refimpl.nn.context import Context, Gating
from refimpl.nn.gate import Gated
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten
from refimpl.nn.work import Work, dense_work, executed_work, work_tables

ALL_PARTS = ((), ("theta",), ("phi",), BOTH)


@given(networks(), contexts(train=ALL_PARTS), seeds)
@examples(80)
def test_executed_work_is_what_the_meter_ticks(network, context, seed):
    point = sample(network, context, seed)
    _, trace = network.forward(point.w, point.x, point.context)
    masks = network.masks(trace)
    assert executed_work(network, masks, 3, context) == metered(network, masks, 3, context)


def count(mask, batch, channels):
    """Open channels per sample; a mask of groups counts for all their features."""
    if mask is None:
        return np.full(batch, channels)
    return mask.sum(axis=1) * (channels // mask.shape[1])


class Spy:
    """Stands before the convolution and linear kernels and adds up what the layers ask them for."""

    def __init__(self, monkeypatch):
        self.flops: Counter[str] = Counter()
        for module, name in itertools.product((conv, linear), PASSES):
            monkeypatch.setattr(module, name, self.wrap(name, getattr(module, name)))

    def wrap(self, name, kernel):
        signature = inspect.signature(kernel)

        def call(*args, **kwargs):
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            result = kernel(*args, **kwargs)
            self.note(name, SimpleNamespace(**given.arguments), result)
            return result

        return call

    def note(self, name, given, result):
        if name == "forward":
            weight, outs, ins, maps = given.weight, given.writes, given.reads, result
        elif name == "input_grad":
            weight, outs, ins, maps = given.weight, given.dy_mask, given.dx_mask, given.dy
        else:
            weight, outs, ins, maps = given.dweight, given.dy_mask, given.x_mask, given.dy
        batch, (filters, channels) = len(maps), weight.shape[:2]
        pairs = count(outs, batch, filters) @ count(ins, batch, channels)
        self.flops[name] += int(2 * pairs * np.prod(weight.shape[2:]) * np.prod(maps.shape[2:]))


@given(networks(), contexts(train=ALL_PARTS), seeds)
@examples(60)
def test_layers_ask_the_kernels_for_exactly_what_is_counted(network, context, seed):
    """The routing of masks in the real passes, seen from the kernels, against the meter's own routing."""
    point = sample(network, context, seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        spy = Spy(monkeypatch)
        objective = NetworkObjective(network, point.x, point.y, point.context)
        objective(point.w, np.empty_like(point.w))
    wanted = ticks(network, objective.masks, 3, context)
    assert {kind: spy.flops[kind] for kind in PASSES} == {k: wanted[f"{k} by kernels"] for k in PASSES}


@given(networks(), st.sampled_from(ALL_PARTS))
@examples(40)
def test_dense_work_is_that_of_the_network_without_gates(network, train):
    backbone = tuple(part for part in train if part == "theta")
    expected = metered(without_gates(network), {}, 2, Context(train=backbone))
    assert dense_work(network, 2, train) == expected
    assert expected.gate == 0


def without_gates(network: Network) -> Network:
    def strip(layers):
        for layer in layers:
            if isinstance(layer, Gated):
                yield from strip(layer.body)
            elif isinstance(layer, Residual):
                yield Residual(tuple(strip(layer.body)), tuple(strip(layer.shortcut)))
            else:
                yield layer

    return Network("plain", tuple(strip(network.layers)), network.input_shape)


CHAIN = Network(
    "chain",
    (
        *zoo.with_gates(
            [(Conv2d("a", 2, 3, (3, 2), (2, 1), (1, 2)), ReLU()), (Conv2d("b", 3, 4, 3, padding=1), ReLU())],
            ("a", "b"),
        ),
        Flatten(),
        *zoo.with_gates([(Linear("c", 96, 5), ReLU()), (Linear("d", 5, 2),)], ("c",)),
    ),
    (2, 8, 3),
)


@pytest.mark.parametrize("train", ALL_PARTS, ids=lambda parts: "+".join(parts) or "evaluation")
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("gate_grad", ["dense", "active"])
@pytest.mark.parametrize("mode", ["hard", "gumbel", "ste", "soft"])
def test_every_setting_on_a_chain_of_gates(mode, gate_grad, detach, train):
    """Strides and padding, gated convolution into gated convolution into gated linear layer."""
    rng = np.random.default_rng(0)
    shapes = {block.gate.name: (2, block.gate.out_channels) for block in CHAIN.gates}
    masks = {name: rng.random(shape) for name, shape in shapes.items()}
    if mode != "soft":
        masks = {name: mask < 0.5 for name, mask in masks.items()}
        assert all(0 < mask.sum() < mask.size for mask in masks.values())
    context = Context(Gating(mode, 1.0, gate_grad, detach), train)
    assert executed_work(CHAIN, masks, 2, context) == metered(CHAIN, masks, 2, context)


# By hand


def test_dense_cnn3_by_hand():
    """2*C*K*9*H*W per convolution; bias and ReLU one FLOP per output element, pooling one per its own."""
    conv = [2 * 9 * c * k * s * s for c, k, s in ((3, 32, 32), (32, 64, 16), (64, 128, 8))]
    maps = [32 * 32 * 32, 64 * 16 * 16, 128 * 8 * 8]
    pooled = [m // 4 for m in maps]
    fc = 2 * 2048 * 10
    forward = sum(conv) + 2 * sum(maps) + sum(pooled) + fc + 10
    weight = sum(conv) + sum(maps) + fc + 10
    inputs = conv[1] + conv[2] + sum(maps) + sum(pooled) + fc  # nothing below the first convolution
    assert dense_work(zoo.cnn3(), 1) == Work(forward)
    assert dense_work(zoo.cnn3(), 7, BOTH) == Work(7 * forward, 7 * inputs, 7 * weight)


def test_a_gate_by_hand():
    """digits: 32 gated channels over 16, of which one sample opens 5 and the other none."""
    network = zoo.digits()
    mask = np.zeros((2, 32), dtype=bool)
    mask[0, [0, 3, 4, 9, 31]] = True
    conv1 = 2 * 9 * 16 * 64 + 2 * 16 * 64 + 16 * 16
    gate = 16 + (2 * 16 * 16 + 16) + 16 + (2 * 16 * 64 + 64)
    per_channel = 2 * 9 * 16 * 16 + 2 * 16 + 4 + 2 * 4 * 10  # convolution, bias and ReLU, pool, read by fc
    work = executed_work(network, {"conv2.gate": mask}, 2, Context())
    assert work == Work(2 * (conv1 + gate + 10) + 5 * per_channel, 0, 0, 2 * gate)


def test_evaluation_with_all_gates_open_costs_the_dense_model_and_the_gates():
    for make in (zoo.digits, zoo.cnn3, zoo.cnn7):
        network = make()
        masks = {b.gate.name: np.ones((3, b.gate.out_channels), dtype=bool) for b in network.gates}
        work = executed_work(network, masks, 3, Context())
        assert work.forward - work.gate == dense_work(network, 3).forward
        assert work.gate > 0


@given(networks(), contexts(train=ALL_PARTS), seeds)
@examples(40)
def test_work_adds_up_over_samples_and_falls_with_every_channel_closed(network, context, seed):
    rng = np.random.default_rng(seed)
    masks = {b.gate.name: rng.random((4, b.gate.out_channels)) < 0.7 for b in network.gates}
    whole = executed_work(network, masks, 4, context)
    singles = [
        executed_work(network, {name: mask[n : n + 1] for name, mask in masks.items()}, 1, context)
        for n in range(4)
    ]
    assert sum(singles, Work()) == whole
    for mask in masks.values():
        if mask.any():
            mask[tuple(np.argwhere(mask)[0])] = False
            fewer = executed_work(network, masks, 4, context)
            assert fewer.total < whole.total
            whole = fewer


def test_the_objective_reports_the_work_of_its_last_call():
    network = zoo.digits()
    point = sample(network, Context(), 0)
    objective = NetworkObjective(network, point.x, point.y, Context(train=("theta",)))
    objective(point.w, np.empty_like(point.w))
    assert objective.work == metered(network, objective.masks, 3, objective.context)


# The value itself


def test_work_adds_and_totals():
    work = Work(10, 20, 30, 5)
    assert work.total == 60, "gates are part of the passes, not a fourth"
    assert work + Work(1, 2, 3, 4) == Work(11, 22, 33, 9)
    assert Work().total == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        work.forward = 0
    assert isinstance(dense_work(zoo.digits(), 2).total, int)


def test_groups_and_depthwise_convolutions_count_the_channels_that_meet():
    """Closed forms; the depthwise convolution passes the mask on, and the grouped one reads it."""
    layers = (
        *zoo.with_gates([(Conv2d("c1", 2, 6, 1, bias=False), ReLU())], ("c1",)),
        Conv2d("c2", 6, 6, 3, padding=1, bias=False, groups=6),
        Conv2d("c3", 6, 4, 1, groups=2),
        *(Flatten(), Linear("fc", 64, 3)),
    )
    network = Network("grouped", layers, (2, 4, 4))
    masks = {"c1.gate": np.array([[True] * 6, [True, False] * 3, [False] * 6])}
    on, pixels, batch = 9, 16, 3
    work = executed_work(network, masks, batch, Context(Gating(gate_grad="active"), ("theta",)))
    depthwise, grouped, head = 2 * pixels * 9 * on, 2 * pixels * 2 * on, batch * 2 * 64 * 3
    conv1, bias = 2 * pixels * 2 * on, batch * (4 * pixels + 3)
    assert work.forward - work.gate == conv1 + pixels * on + depthwise + grouped + head + bias
    assert work.weight_grad == conv1 + depthwise + grouped + head + bias
    assert work.input_grad == pixels * on + depthwise + grouped + head
    dense = dense_work(network, 1)
    assert dense.forward == pixels * (24 + 6 + 108 + 24 + 4) + 2 * 64 * 3 + 3


def test_counts_beyond_32_bits_are_exact():
    network, batch = zoo.cnn3(), 50_000
    masks = {"conv3.gate": np.ones((batch, 128), dtype=bool)}
    one = executed_work(network, {"conv3.gate": masks["conv3.gate"][:1]}, 1, Context(train=BOTH))
    many = executed_work(network, masks, batch, Context(train=BOTH))
    assert many.forward == batch * one.forward > 2**39


def test_tables_are_made_once_per_network_and_setting():
    work_tables.cache_clear()
    for _ in range(3):
        masks = {"conv2.gate": np.ones((1, 32), dtype=bool)}
        executed_work(zoo.digits(), masks, 1, Context(train=BOTH))
    assert work_tables.cache_info().misses == 1


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, r"conv2.gate needs a mask of shape \(2, 32\), got none"),
        ({"conv2.gate": np.ones((3, 32), dtype=bool)}, r"got shape \(3, 32\)"),
        ({"conv2.gate": np.ones(32, dtype=bool)}, r"got shape \(32,\)"),
    ],
)
def test_masks_that_do_not_fit_are_named(masks, message):
    with pytest.raises(InputError, match=message):
        executed_work(zoo.digits(), masks, 2, Context())


def test_a_layer_without_a_rule_is_an_error_not_a_zero():
    class Mystery:
        keeps_zero = True

        def parameters(self):
            return ()

        def output_shape(self, shape):
            return shape

    with pytest.raises(InputError, match="no rule to count the operations of a Mystery"):
        dense_work(Network("m", (Mystery(), Linear("f", 3, 2)), (3,)), 1)
