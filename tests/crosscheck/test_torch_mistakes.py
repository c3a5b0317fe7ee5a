"""Each usual mistake, planted in the PyTorch implementation, is caught at the right array, and named."""

from __future__ import annotations

import pytest

from refimpl.crosscheck.compare import as_theirs, compare
from refimpl.crosscheck.golden.file import Golden, golden_of
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import run as ours
from refimpl.crosscheck.hints import examine

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from refimpl.crosscheck.bridges.torch.ops import template  # noqa: E402
from refimpl.crosscheck.bridges.torch.run import run  # noqa: E402

# --- the mistakes: each replaces a part of the PyTorch implementation


def transposed(patch):
    """Weights have their two channel axes exchanged, where shapes allow it."""
    for kind in ("conv2d", "linear"):
        right = template.LAYERS[kind]

        def wrong(entry, x, p, right=right):
            weight = p["weight"]
            square = weight.shape[0] == weight.shape[1]
            return right(entry, x, p | {"weight": weight.transpose(0, 1) if square else weight})

        patch.setitem(template.LAYERS, kind, wrong)


class LeakyAtZero(torch.autograd.Function):
    """ReLU with a chosen derivative at 0."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.save_for_backward(x)
        ctx.slope = slope
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, dy, torch.where(x == 0, ctx.slope * dy, 0 * dy)), None


def slope_at_zero(slope):
    """ReLU'(0) is not 0."""

    def plant(patch):
        patch.setitem(template.LAYERS, "relu", lambda entry, x, p: LeakyAtZero.apply(x, slope))

    return plant


def windows_of(entry, x):
    """The entries of every window, on a last axis."""
    (rows, columns), (down, right) = entry["kernel"], entry["stride"]
    return x.unfold(2, rows, down).unfold(3, columns, right).flatten(-2)


def last_maximum(patch):
    """Of equal maxima in a window the last gets the gradient."""

    def wrong(entry, x, p):
        backwards = windows_of(entry, x).flip(-1)
        return backwards.gather(-1, backwards.argmax(-1, keepdim=True)).squeeze(-1)

    patch.setitem(template.LAYERS, "max_pool2d", wrong)


def shared_maximum(patch):
    """Equal maxima share the gradient."""
    patch.setitem(template.LAYERS, "max_pool2d", lambda entry, x, p: windows_of(entry, x).amax(-1))


def tie_is_on(patch):
    """A channel with d = 0 is on."""
    right = template.margin
    patch.setattr(template, "margin", lambda logits: right(logits) + 1e-30 * (right(logits) == 0))


def summed_loss(patch):
    """The loss is the sum over the batch."""
    right = template.cross_entropy
    patch.setattr(template, "cross_entropy", lambda logits, labels: len(labels) * right(logits, labels))


def mask_before(patch):
    """The mask is applied before the ReLU of a gated layer."""

    def gated(self, entry, x):
        first, *rest = entry["body"]
        mask, z = self.gate(entry["gate"], x), self.layer(first, x)
        z = self.notes[first["name"]] = z * template.over_pixels(mask, z)
        return self.chain(rest, z)

    patch.setattr(template.Pass, "gated", gated)


def on_off(patch):
    """The first of a channel's two logits is the one for on."""
    right = template.margin
    patch.setattr(template, "margin", lambda logits: -right(logits))


def weight_alone(patch):
    """A prox takes the weight of its penalty as the threshold, without the step."""
    right = template.prox_of
    patch.setattr(template, "prox_of", lambda v, step, *penalty: right(v, 1.0, *penalty))


def whole_lambda(patch):
    """The proximal term of the local problem is lam ||w - v||^2."""
    right = template.local_steps
    patch.setattr(
        template,
        "local_steps",
        lambda centre, over, eta, lam, *more: right(centre, over, eta, 2 * lam, *more),
    )


def unbiased(patch):
    """Batch normalisation divides by the unbiased variance."""

    def wrong(entry, x, p):
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        centred = x - x.mean(axes, keepdim=True)
        normalised = centred / torch.sqrt(x.var(axes, unbiased=True, keepdim=True) + entry["eps"])
        return normalised * p["weight"].view(shape) + p["bias"].view(shape)

    patch.setitem(template.LAYERS, "batch_norm2d", wrong)


def detached(patch):
    """No gradient passes from a gate to its input."""
    right = template.summary
    patch.setattr(template, "summary", lambda x: right(x.detach()))


def not_detached(patch):
    """The setting that detaches the gates' inputs is ignored."""
    right = template.Pass.gate

    def wrong(self, *given):
        self.gating = {**self.gating, "detach_gate_input": False}
        return right(self, *given)

    patch.setattr(template.Pass, "gate", wrong)


def over_channels(patch):
    """A gate's summary is one mean over all channels."""
    patch.setattr(
        template, "summary", lambda x: x.flatten(1).mean(1, keepdim=True).expand(len(x), x.shape[1])
    )


# The mistake: case, first array that departs, rule the hint names.
MISTAKES = [
    (transposed, "ops/linear-square", "y", "transposed weight"),
    (transposed, "ops/conv-square", "y", "transposed weight"),
    (transposed, "networks/cnn7-ungated", "forward.conv1", "transposed weight"),
    (slope_at_zero(1.0), "ops/relu", "grad.x", "ReLU'(0)"),
    (slope_at_zero(0.5), "ops/relu", "grad.x", "ReLU'(0)"),
    (slope_at_zero(0.5), "networks/mlp-soft-dense", "backward.fc1", "ReLU'(0)"),
    (last_maximum, "ops/max_pool2d", "grad.x", "tie rule"),
    (tie_is_on, "ops/gated-hard-dense", "forward.conv.gate.mask", "tie rule"),
    (last_maximum, "networks/cnn3-ungated", "backward.conv3.relu", "tie rule"),
    (last_maximum, "networks/cnn3-hard-dense", "backward.conv2.relu", "tie rule"),
    (last_maximum, "ops/max_pool2d-overlap", "grad.x", "tie rule"),
    (tie_is_on, "algorithm/hard", "round1.g", "tie rule"),
    (summed_loss, "ops/cross_entropy", "loss", "mean against sum loss"),
    (summed_loss, "networks/mlp-hard-dense", "loss", "mean against sum loss"),
    (mask_before, "ops/gated-hard-dense", "forward.conv", "mask before/after ReLU"),
    (mask_before, "ops/gated-soft-dense", "forward.conv", "mask before/after ReLU"),
    (mask_before, "networks/cnn7-soft-dense", "forward.conv5", "mask before/after ReLU"),
    (on_off, "ops/gated-soft-dense", "forward.conv.gate.mask", "two-logit order"),
    (on_off, "networks/cnn3-hard-dense", "forward.conv3.gate.mask", "two-logit order"),
    (on_off, "local/soft", "step1.loss", "two-logit order"),
    (on_off, "algorithm/hard", "round1.g", "two-logit order"),
    (on_off, "algorithm/ste-l1", "round1.g", "two-logit order"),
    (on_off, "baselines/maml-soft", "node0.w", "two-logit order"),
    (on_off, "adapt/hard", "before.logits", "two-logit order"),
    (weight_alone, "prox/l1", "prox", "prox step vs weight"),
    (weight_alone, "prox/group_lasso", "prox", "prox step vs weight"),
    (weight_alone, "algorithm/hard", "round1.x", "prox step vs weight"),
    (weight_alone, "algorithm/soft-bounded", "round1.x", "prox step vs weight"),
    (whole_lambda, "local/hard", "step2.w", "lambda vs lambda/2"),
    (whole_lambda, "algorithm/hard", "round1.g", "lambda vs lambda/2"),
    (detached, "ops/gated-hard-dense", "grad.x", "detached gate input"),
    (detached, "networks/cnn3-soft-dense", "backward.conv2.max_pool2d", "detached gate input"),
    (not_detached, "ops/gated-hard-dense-detached", "grad.x", "detached gate input"),
    (over_channels, "ops/gated-hard-dense", "forward.conv.gate.summary", "summary over all channels"),
    (over_channels, "networks/cnn3-ste-dense", "forward.conv3.gate.summary", "summary over all channels"),
    (unbiased, "ops/batch_norm2d", "y", "biased BatchNorm variance"),
    (unbiased, "networks/residual-soft-dense", "forward.norm", "biased BatchNorm variance"),
]


def reference(name: str, dtype: str = "float64") -> Golden:
    """This package's golden file of one case, in memory."""
    (case,) = (case for case in build_cases(name.split("/")[0], 0, dtype) if case.name == name)
    return golden_of([(case, ours(case))], "refimpl")


def assert_caught(plant, patch, golden: Golden, first: str, rule: str) -> None:
    """The right computation agrees; that with a mistake departs at `first`, and `rule` alone is named."""
    (case,) = golden.cases
    assert not compare(golden, as_theirs({case.name: run(case)})).departures
    plant(patch)
    theirs = as_theirs({case.name: run(case)})
    comparison = compare(golden, theirs)
    assert comparison.departures[0].output == first
    hints = [hint for hint in examine(golden, theirs, comparison).hints if hint.rule != "pattern"]
    assert {hint.rule for hint in hints} == {rule}
    if "mask" not in rule or "soft" in case.name:  # hard masks: the gradients inside a body are not explained
        assert all(hint.explains == hint.departing for hint in hints)


@pytest.mark.parametrize(
    ("plant", "name", "first", "rule"), MISTAKES, ids=[f"{rule}, {name}" for _, name, _, rule in MISTAKES]
)
def test_a_mistake_is_caught_at_its_array_and_named(plant, name, first, rule, monkeypatch):
    assert_caught(plant, monkeypatch, reference(name), first, rule)


@pytest.mark.parametrize(
    ("plant", "name", "first", "rule"),
    [
        (transposed, "ops/conv-square", "y", "transposed weight"),
        (summed_loss, "networks/mlp-hard-dense", "loss", "mean against sum loss"),
        (whole_lambda, "local/hard", "step2.w", "lambda vs lambda/2"),
    ],
)
def test_in_float32_too(plant, name, first, rule, monkeypatch):
    assert_caught(plant, monkeypatch, reference(name, "float32"), first, rule)


def test_sharing_the_gradient_of_equal_maxima_departs_too(monkeypatch):
    """No suspect computes this one: it is still caught where it happens, and none is blamed."""
    golden = reference("ops/max_pool2d")
    shared_maximum(monkeypatch)
    theirs = as_theirs({"ops/max_pool2d": run(golden.cases[0])})
    comparison = compare(golden, theirs)
    assert [row.output for row in comparison.departures] == ["grad.x"]
    assert examine(golden, theirs, comparison).hints == []
