"""Gates: decisions and derivatives of every mode in closed form, what is skipped, and golden gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from checks import assert_close, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, networks, sample, seeds

from refimpl.errors import InputError
from refimpl.nn import zoo
from refimpl.nn.chain import Residual
from refimpl.nn.context import MODES, Anchor, Context, Gating
from refimpl.nn.gate import OPEN_MARGIN, ChannelGate, Decision, Gated
from refimpl.nn.gradcheck import check_network
from refimpl.nn.layers import BatchNorm2d, Conv2d, Linear
from refimpl.nn.layout import Layout
from refimpl.nn.network import Network, draw_gate_noise
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten, MaxPool2d
from refimpl.rng import SeedTree

BOTH = ("theta", "phi")
GATE = ChannelGate("g", in_channels=1, out_channels=3)
# By hand: s = mean(1, 3) = 2; hidden unit 0 = relu(3*2 - 1) = 5, unit 1 = relu(-2) = 0, the others 0.
# Channel 0: z = (0.1*5 + 0.2, 0.3*5 - 0.1) = (0.7, 1.4), d = 0.7; channel 1: z = (1, -1), d = -2;
# channel 2: z = (0.5, 0.5), d = 0, a tie.
X = np.array([[[[1.0, 3.0]]]])
D = np.array([[0.7, -2.0, 0.0]])


def hand_made() -> dict[str, np.ndarray]:
    layout = Layout(GATE.parameters())
    params = layout.views(np.zeros(layout.size))
    params["g.fc1.weight"][:2, 0] = 3.0, -1.0
    params["g.fc1.bias"][0] = -1.0
    params["g.fc2.weight"][:2, :2] = [[0.1, 7.0], [0.3, 7.0]]  # unit 1 is silent: its weights do not matter
    params["g.fc2.bias"][:] = 0.2, -0.1, 1.0, -1.0, 0.5, 0.5
    return params


def decide(gate: ChannelGate, params: dict[str, np.ndarray], x: np.ndarray, context: Context) -> Decision:
    """What the gate decides in a network that is nothing but a layer with this gate."""
    kind = Conv2d if x.ndim == 4 else Linear
    body = kind("body", gate.in_channels, gate.out_channels, 1)
    network = Network("one", (Gated(gate, (body,)), Flatten()), x.shape[1:])
    w = network.layout.initialise(SeedTree(0), "float64")
    for name, values in params.items():
        network.layout.views(w)[name][...] = values
    return network.decisions(network.forward(w, x, context)[1])[gate.name]


def logistic(d):
    return 1 / (1 + np.exp(-d))


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("mode", MODES)
def test_decisions_and_derivatives_of_each_mode_by_hand(mode, tau):
    noise = np.array([[-1.0, 2.5, 0.25]])
    d = D + noise if mode == "gumbel" else D
    decision = decide(GATE, hand_made(), X, Context(Gating(mode, tau), noise={"g": noise}))
    p = logistic(d / tau)
    if mode == "soft":
        assert_close(decision.mask, p, "reference")
    else:
        assert decision.mask.dtype == np.bool_
        assert decision.mask.tolist() == (d > 0).tolist()
    assert_close(decision.slope, np.ones_like(d) if mode == "ste" else p * (1 - p) / tau, "reference")
    assert_close(decision.relaxed, d if mode == "ste" else p, "reference")
    assert_close(decision.summary, np.array([[2.0]]), "reference")


def test_a_tie_is_off():
    layout = Layout(GATE.parameters())
    for mode in ("hard", "ste"):
        decision = decide(GATE, layout.views(np.zeros(layout.size)), X, Context(Gating(mode)))
        assert not decision.mask.any()


def test_a_gate_on_a_vector_looks_at_all_of_it():
    gate = ChannelGate("g", 2, 1)
    params = Layout(gate.parameters()).views(np.zeros(Layout(gate.parameters()).size))
    params["g.fc1.weight"][0] = 1.0, -1.0
    params["g.fc2.weight"][1, 0] = 1.0
    decision = decide(gate, params, np.array([[3.0, 1.0], [1.0, 3.0]]), Context(Gating("ste")))
    assert decision.relaxed.ravel().tolist() == [2.0, 0.0]


# Noise


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({}, "got none"),
        ({"g": np.zeros((2, 3))}, "got shape (2, 3)"),
        ({"other": np.zeros((1, 3))}, "got none"),
    ],
)
def test_gumbel_without_fitting_noise_says_how_to_draw_it(noise, message):
    with pytest.raises(InputError, match="draw it with draw_gate_noise") as error:
        decide(GATE, hand_made(), X, Context(Gating("gumbel"), noise=noise))
    assert f"g: mode 'gumbel' needs noise of shape (1, 3), {message}" in str(error.value)


def test_noise_is_an_input():
    network = zoo.digits()
    w = network.layout.initialise(SeedTree(0), "float64")
    x = np.random.default_rng(1).standard_normal((4, 1, 8, 8))
    noise = draw_gate_noise(network, 4, np.random.default_rng(2))
    again = draw_gate_noise(network, 4, np.random.default_rng(2))
    context = Context(Gating("gumbel"))
    first = network.forward(w, x, replace(context, noise=noise))
    second = network.forward(w, x, replace(context, noise=again))
    assert_same_bits(first[0], second[0])
    other = network.forward(
        w, x, replace(context, noise=draw_gate_noise(network, 4, np.random.default_rng(3)))
    )
    masks = [network.masks(trace)["conv2.gate"] for _, trace in (first, second, other)]
    assert_same_bits(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def test_noise_is_logistic():
    network = zoo.digits(widths=(4, 200))
    noise = draw_gate_noise(network, 500, np.random.default_rng(0), np.float32)["conv2.gate"]
    assert noise.dtype == np.float32
    assert noise.shape == (500, 200)
    # The difference of two Gumbel(0,1) variables: mean 0, variance pi^2/3, P(< 1) = sigma(1); 1e5 draws.
    assert abs(noise.mean()) < 5 * np.pi / np.sqrt(3e5)
    assert noise.var() == pytest.approx(np.pi**2 / 3, rel=0.03)
    assert (noise < 1).mean() == pytest.approx(logistic(1.0), abs=0.01)


# Initial state and closing


@pytest.mark.parametrize("network", [zoo.digits(), zoo.cnn3(), zoo.cnn7(), zoo.mlp(gates=("fc1",))])
def test_initial_gates_are_open(network):
    x = np.random.default_rng(0).standard_normal((4, *network.input_shape))  # as normalised images
    for seed in range(3):
        w = network.layout.initialise(SeedTree(seed), "float64")
        _, trace = network.forward(w, x, Context(Gating("ste")))
        for name, decision in network.decisions(trace).items():
            assert decision.mask.all(), name
            assert decision.relaxed.mean() == pytest.approx(2 * OPEN_MARGIN, rel=0.1)
            assert decision.relaxed.std() < OPEN_MARGIN, f"{name}: d spreads as far as the margin"


@given(networks(), seeds)
@examples(40)
def test_a_zero_group_closes_its_channel_for_every_input(network, seed):
    point = sample(network, Context(), seed)
    indptr, indices = network.gate_groups
    phi = point.w[network.layout.phi]
    group, channels = 0, [(b.gate.name, c) for b in network.gates for c in range(b.gate.out_channels)]
    assert len(indptr) == len(channels) + 1
    for group, (name, channel) in enumerate(channels):
        keep = phi[indices[indptr[group] : indptr[group + 1]]].copy()
        phi[indices[indptr[group] : indptr[group + 1]]] = 0
        _, trace = network.forward(point.w, point.x, Context())
        assert not network.masks(trace)[name][:, channel].any()
        phi[indices[indptr[group] : indptr[group + 1]]] = keep


# What a gated body may be


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((Conv2d("c", 1, 3), BatchNorm2d("b", 3), ReLU()), "batch normalisation cannot be inside"),
        ((Conv2d("c", 1, 3), ReLU(), Conv2d("d", 3, 3)), "gate each layer by itself"),
        ((Conv2d("c", 1, 3), Residual(())), "gate each layer by itself"),
        ((Conv2d("c", 1, 3), Gated(ChannelGate("h", 3, 3), (Conv2d("d", 3, 3),))), "gate each layer"),
        ((ReLU(), Conv2d("c", 1, 3)), "gate each layer by itself"),
        ((Conv2d("c", 1, 3), ReLU(), Flatten()), "flatten behind the gated block"),
        ((), "got nothing"),
    ],
)
def test_only_channelwise_layers_may_follow_in_a_gated_body(body, message):
    with pytest.raises(InputError, match=message):
        Gated(GATE, body)


def test_a_gate_of_the_wrong_size_is_refused():
    with pytest.raises(InputError, match=r"g: sized for channels \(1, 3\), but the body has \(2, 3\)"):
        Gated(GATE, (Conv2d("c", 2, 3),)).output_shape((2, 5, 5))
    with pytest.raises(InputError, match="at least 1"):
        ChannelGate("g", 0, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Gating("hrad"),
            "unknown mode 'hrad'; did you mean hard\\? choose one of hard, gumbel, ste, soft",
        ),
        (lambda: Gating(gate_grad="sparse"), "unknown gate_grad 'sparse'; choose one of dense, active"),
        (lambda: Gating(tau=0.0), "tau must be positive"),
        (lambda: Gating(tau=float("nan")), "tau must be positive"),
        (lambda: Context(train=("gate",)), "unknown part to train 'gate'; choose one of theta, phi"),
        (lambda: Context(train="phi"), "unknown part to train 'p'"),
    ],
)
def test_unknown_settings_list_the_known_ones(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Which gradients gates get


@given(networks(), st.sampled_from(("hard", "gumbel", "ste")), seeds)
@examples(40)
def test_active_gates_that_are_off_for_all_samples_get_no_gradient(network, mode, seed):
    point = sample(network, Context(Gating(mode, gate_grad="active"), BOTH), seed)
    objective = NetworkObjective(network, point.x, point.y, point.context)
    gradient = np.full_like(point.w, np.nan)
    objective(point.w, gradient)
    indptr, indices = network.gate_groups
    phi, group = gradient[network.layout.phi], 0
    for block in network.gates:
        for on in objective.masks[block.gate.name].any(axis=0):
            if not on:
                assert not phi[indices[indptr[group] : indptr[group + 1]]].any()
            group += 1


def test_dense_gates_that_are_off_do_get_a_gradient():
    network = zoo.digits(widths=(2, 4))
    w = network.layout.initialise(SeedTree(0), "float64")
    network.layout.views(w)["conv2.gate.fc2.bias"][:2] = 3.0, -3.0
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8))
    for gate_grad, wanted in (("dense", True), ("active", False)):
        objective = NetworkObjective(network, x, np.arange(5), Context(Gating(gate_grad=gate_grad), BOTH))
        gradient = np.empty_like(w)
        objective(w, gradient)
        assert not objective.masks["conv2.gate"][:, 0].any()
        got = network.layout.views(gradient)["conv2.gate.fc2.bias"][:2]
        assert got.any() == wanted
        assert got[0] == -got[1]


def one_gate(pool: tuple = ()) -> Network:
    blocks = [(Conv2d("conv1", 1, 2, padding=1), ReLU()), (Conv2d("conv2", 2, 3, padding=1), ReLU(), *pool)]
    layers = (*zoo.with_gates(blocks, ["conv2"]), Flatten(), Linear("fc", 12 if pool else 48, 2))
    return Network("one gate", layers, (1, 4, 4))


@pytest.mark.parametrize("gate_grad", ["dense", "active"])
@pytest.mark.parametrize("mode", MODES)
def test_a_detached_gate_input_changes_theta_but_not_phi(mode, gate_grad):
    """Detached, theta's gradient is that with the masks held fixed; phi's stays as it is."""
    network = one_gate()
    point = sample(network, Context(Gating(mode, 1.0, gate_grad), BOTH), 5, batch=6)
    attached = gradient_of(network, point, point.context)
    detached = gradient_of(
        network, point, replace(point.context, gating=replace(point.context.gating, detach_gate_input=True))
    )
    _, trace = network.forward(point.w, point.x, point.context)
    mask = network.masks(trace)["conv2.gate"].astype(float)
    frozen = gradient_of(
        network, point, replace(point.context, anchors={"conv2.gate": Anchor(mask, np.zeros_like(mask))})
    )
    theta, phi = network.layout.theta, network.layout.phi
    assert_same_bits(detached[phi], attached[phi])
    assert attached[phi].any()
    assert_close(detached[theta], frozen[theta], "reference")
    assert np.abs(attached[theta] - detached[theta]).max() > 1e-6
    assert not frozen[phi].any()


def gradient_of(network, point, context):
    out = np.full_like(point.w, np.nan)
    NetworkObjective(network, point.x, point.y, context)(point.w, out)
    return out


def test_the_soft_derivative_is_exact():
    network = one_gate()
    for seed in range(5):
        context = Context(Gating("soft", 0.7), BOTH)
        point = sample(network, context, seed)
        rng = np.random.default_rng(seed)
        errors = check_network(network, point.w, point.x, point.y, context, rng)
        assert max(error for _, error in errors) < 1e-7
        assert len(errors) == 10


def test_hard_masks_follow_the_temperature_of_a_soft_gate_in_the_limit():
    network = one_gate()
    point = sample(network, Context(), 3)
    hard, _ = network.forward(point.w, point.x, Context(Gating("hard")))
    soft, _ = network.forward(point.w, point.x, Context(Gating("soft", tau=1e-6)))
    assert_close(soft, hard, "reference")


def golden_numbers(shape, k):
    return np.sin(1.3 * np.arange(np.prod(shape)) + k).reshape(shape)


# (mode, tau, gate_grad, detach_gate_input, masks): loss, then gradient . cos(0, 1, 2, ...) per parameter.
# Printed by PyTorch 2.13 (CPU, float64) with:
#
# import torch, torch.nn.functional as F
#
# SHAPES = {"conv1.weight": (2, 1, 3, 3), "conv1.bias": (2,), "conv2.weight": (3, 2, 3, 3),
#           "conv2.bias": (3,), "fc.weight": (2, 12), "fc.bias": (2,),
#           "conv2.gate.fc1.weight": (16, 2), "conv2.gate.fc1.bias": (16,),
#           "conv2.gate.fc2.weight": (6, 16), "conv2.gate.fc2.bias": (6,)}
#
# def numbers(shape, k):
#     return torch.sin(1.3 * torch.arange(torch.Size(shape).numel()).double() + k).reshape(shape)
#
# def run(mode, tau=1.0, gate_grad="dense", detach=False):
#     size = {n: 0.05 if "gate" in n and "bias" in n else 0.5 for n in SHAPES}
#     p = {n: numbers(s, k) * size[n] for k, (n, s) in enumerate(SHAPES.items(), start=1)}
#     p = {n: v.requires_grad_() for n, v in p.items()}
#     x = numbers((3, 1, 4, 4), 0.5) * torch.tensor([0.5, -2.0, 4.0]).reshape(3, 1, 1, 1)
#     y, noise = torch.tensor([1, 0, 1]), numbers((3, 3), 2.0)
#     x = F.relu(F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=1))
#     s = (x.detach() if detach else x).mean((2, 3))
#     h = F.relu(F.linear(s, p["conv2.gate.fc1.weight"], p["conv2.gate.fc1.bias"]))
#     z = F.linear(h, p["conv2.gate.fc2.weight"], p["conv2.gate.fc2.bias"])
#     d = z[:, 1::2] - z[:, 0::2] + (noise if mode == "gumbel" else 0)
#     soft = d if mode == "ste" else torch.sigmoid(d / tau)
#     mask = soft if mode == "soft" else (d > 0).double() + (soft - soft.detach())
#     m, c = mask[:, :, None, None], F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=1)
#     z = m * F.max_pool2d(F.relu(c), 2) if gate_grad == "dense" else F.max_pool2d(F.relu(m * c), 2)
#     loss = F.cross_entropy(F.linear(z.flatten(1), p["fc.weight"], p["fc.bias"]), y)
#     loss.backward()
#     probes = [v.grad.ravel() @ torch.cos(torch.arange(v.numel()).double()) for v in p.values()]
#     on = "".join(str(int(v > 0)) for v in d.ravel())
#     print(f"    ({mode!r}, {tau}, {gate_grad!r}, {detach}, {on!r}): [")
#     values = [f"{float(v.detach()):.12g}" for v in [loss, *probes]]
#     print("        " + ", ".join(values[:6]) + ",\n        " + ", ".join(values[6:]) + ",\n    ],")
#
# run("hard"); run("hard", 0.5, "active"); run("hard", 0.5, "dense", True)
# run("gumbel", 2.0); run("gumbel", 1.0, "active"); run("ste"); run("soft", 0.5)
# fmt: off
GOLDEN = {
    ('hard', 1.0, 'dense', False, '011001001'): [
        0.977918862152, 0.135284447818, 0.316492738314, 0.456586291664, -0.0625407528968, 0.191664311447,
        -0.0983666271693, -0.00821523980886, -0.00598942888468, 0.0805110563523, 0.182052887207,
    ],
    ('hard', 0.5, 'active', False, '011001001'): [
        0.977918862152, 0.141357845891, 0.300487843256, 0.456586291664, -0.0625407528968, 0.191664311447,
        -0.0983666271693, -0.0857836719468, -0.0409525064338, -0.21769201263, 0.101198103256,
    ],
    ('hard', 0.5, 'dense', True, '011001001'): [
        0.977918862152, 0.156676485348, 0.241655487036, 0.456586291664, -0.0625407528968, 0.191664311447,
        -0.0983666271693, 0.0212580414588, 0.00231306776132, 0.281353655724, 0.279836095955,
    ],
    ('gumbel', 2.0, 'dense', False, '100011001'): [
        0.45970227564, 0.135087480223, -0.112173877718, -0.038722850408, 0.109507785284, 0.0806858366486,
        -0.0123006636433, -0.00333289975164, -0.000753937235447, 0.0296219689988, 0.0364223092222,
    ],
    ('gumbel', 1.0, 'active', False, '100011001'): [
        0.45970227564, 0.130803458528, -0.0911020499497, -0.038722850408, 0.109507785284, 0.0806858366486,
        -0.0123006636433, 0.00170879341888, 0.00643103309208, 0.0892759772692, 0.0925785884858,
    ],
    ('ste', 1.0, 'dense', False, '011001001'): [
        0.977918862152, 0.0611203468883, 0.584109813515, 0.456586291664, -0.0625407528968, 0.191664311447,
        -0.0983666271693, -0.0703338380288, -0.038998798995, 0.20298518351, 0.810663190653,
    ],
    ('soft', 0.5, 'dense', False, '011001001'): [
        0.655638924937, 0.105352058907, 0.113665296677, 0.121239277626, -0.00241676584174, 0.136105332068,
        -0.0729451793193, 0.016110706765, 0.00211951837257, 0.246448649474, 0.226407372488,
    ],
}
# fmt: on


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: "-".join(str(part) for part in case[:4]))
def test_gradients_against_another_framework(case):
    mode, tau, gate_grad, detach, masks = case
    network = one_gate(pool=(MaxPool2d(2),))
    arrays = {}
    names = [slot.name for slot in network.layout.slots]
    assert names == GOLDEN_NAMES
    for k, slot in enumerate(network.layout.slots):
        small = 0.05 if "gate" in slot.name and "bias" in slot.name else 0.5
        arrays[slot.name] = golden_numbers(slot.shape, k + 1) * small
    w = network.layout.from_arrays(arrays, "float64")
    x = golden_numbers((3, 1, 4, 4), 0.5) * np.array([0.5, -2.0, 4.0]).reshape(3, 1, 1, 1)
    noise = {"conv2.gate": golden_numbers((3, 3), 2.0)}
    context = Context(Gating(mode, tau, gate_grad, detach), BOTH, noise)
    objective = NetworkObjective(network, x, np.array([1, 0, 1]), context)
    gradient = np.full_like(w, np.nan)
    loss = objective(w, gradient)
    if mode != "soft":
        assert "".join(str(int(on)) for on in objective.masks["conv2.gate"].ravel()) == masks
    parts = network.layout.views(gradient).values()
    got = [loss, *(part.ravel() @ np.cos(np.arange(part.size)) for part in parts)]
    for name, value, wanted in zip(["loss", *names], got, GOLDEN[case], strict=True):
        assert_close(value, wanted, "golden", what=name, scale=0.1)


GOLDEN_NAMES = [
    "conv1.weight",
    "conv1.bias",
    "conv2.weight",
    "conv2.bias",
    "fc.weight",
    "fc.bias",
    "conv2.gate.fc1.weight",
    "conv2.gate.fc1.bias",
    "conv2.gate.fc2.weight",
    "conv2.gate.fc2.bias",
]
