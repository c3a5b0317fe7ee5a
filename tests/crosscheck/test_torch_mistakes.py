"""Each usual mistake, planted in the PyTorch implementation, is caught at the right array, and named."""

from __future__ import annotations

import pytest

from refimpl.crosscheck.compare import as_theirs, compare
from refimpl.crosscheck.golden.file import Golden, golden_of
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import run as ours
from refimpl.crosscheck.hints import find_hints

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from refimpl.crosscheck.bridges.torch.rules import OURS, Rules  # noqa: E402
from refimpl.crosscheck.bridges.torch.run import run  # noqa: E402

# The mistake: case, first array that departs, rule the hint names.
MISTAKES = [
    (Rules(transposed=True), "ops/linear-square", "y", "transposed weight"),
    (Rules(transposed=True), "ops/conv-square", "y", "transposed weight"),
    (Rules(transposed=True), "networks/cnn7-ungated", "forward.conv1", "transposed weight"),
    (Rules(relu_slope_at_zero=1.0), "ops/relu", "grad.x", "ReLU'(0)"),
    (Rules(relu_slope_at_zero=0.5), "ops/relu", "grad.x", "ReLU'(0)"),
    (Rules(relu_slope_at_zero=0.5), "networks/mlp-soft-dense", "backward.fc1", "ReLU'(0)"),
    (Rules(pool_tie="last"), "ops/max_pool2d", "grad.x", "tie rule"),
    (Rules(gate_tie="on"), "ops/gated-hard-dense", "forward.conv.gate.mask", "tie rule"),
    (Rules(pool_tie="last"), "networks/cnn3-ungated", "backward.conv3.relu", "tie rule"),
    (Rules(pool_tie="last"), "networks/cnn3-hard-dense", "backward.conv2.relu", "tie rule"),
    (Rules(pool_tie="last"), "ops/max_pool2d-overlap", "grad.x", "tie rule"),
    (Rules(gate_tie="on"), "algorithm/hard", "round1.g", "tie rule"),
    (Rules(loss="sum"), "ops/cross_entropy", "loss", "mean against sum loss"),
    (Rules(loss="sum"), "networks/mlp-hard-dense", "loss", "mean against sum loss"),
    (Rules(mask="before"), "ops/gated-hard-dense", "forward.conv", "mask before/after ReLU"),
    (Rules(mask="before"), "ops/gated-soft-dense", "forward.conv", "mask before/after ReLU"),
    (Rules(mask="before"), "networks/cnn7-soft-dense", "forward.conv5", "mask before/after ReLU"),
    (Rules(logits="on-off"), "ops/gated-soft-dense", "forward.conv.gate.mask", "two-logit order"),
    (Rules(logits="on-off"), "networks/cnn3-hard-dense", "forward.conv3.gate.mask", "two-logit order"),
    (Rules(logits="on-off"), "local/soft", "step1.loss", "two-logit order"),
    (Rules(logits="on-off"), "algorithm/hard", "round1.g", "two-logit order"),
    (Rules(logits="on-off"), "algorithm/ste-l1", "round1.g", "two-logit order"),
    (Rules(logits="on-off"), "baselines/maml-soft", "node0.w", "two-logit order"),
    (Rules(logits="on-off"), "adapt/hard", "before.logits", "two-logit order"),
    (Rules(prox="weight"), "prox/l1", "prox", "prox step vs weight"),
    (Rules(prox="weight"), "prox/group_lasso", "prox", "prox step vs weight"),
    (Rules(prox="weight"), "algorithm/hard", "round1.x", "prox step vs weight"),
    (Rules(prox="weight"), "algorithm/soft-bounded", "round1.x", "prox step vs weight"),
    (Rules(half_lambda=False), "local/hard", "step2.w", "lambda vs lambda/2"),
    (Rules(half_lambda=False), "algorithm/hard", "round1.g", "lambda vs lambda/2"),
    (Rules(variance="unbiased"), "ops/batch_norm2d", "y", "biased BatchNorm variance"),
    (Rules(variance="unbiased"), "networks/residual-soft-dense", "forward.norm", "biased BatchNorm variance"),
]


def reference(name: str, dtype: str = "float64") -> Golden:
    """This package's golden file of one case, in memory."""
    (case,) = (case for case in build_cases(name.split("/")[0], 0, dtype) if case.name == name)
    return golden_of([(case, ours(case))], "refimpl")


def assert_caught(rules: Rules, golden: Golden, first: str, rule: str) -> None:
    """The right computation agrees; that by other rules departs at `first`, and `rule` alone is named."""
    (case,) = golden.cases
    assert not compare(golden, as_theirs({case.name: run(case, OURS)})).departures
    theirs = as_theirs({case.name: run(case, rules)})
    comparison = compare(golden, theirs)
    assert comparison.departures[0].output == first
    hints = [hint for hint in find_hints(golden, theirs, comparison) if hint.rule != "pattern"]
    assert {hint.rule for hint in hints} == {rule}
    if "mask" not in rule or "soft" in case.name:  # hard masks: the gradients inside a body are not explained
        assert all(hint.explains == hint.departing for hint in hints)


@pytest.mark.parametrize(
    ("rules", "name", "first", "rule"), MISTAKES, ids=[f"{rule}, {name}" for _, name, _, rule in MISTAKES]
)
def test_a_mistake_is_caught_at_its_array_and_named(rules, name, first, rule):
    assert_caught(rules, reference(name), first, rule)


@pytest.mark.parametrize(
    ("rules", "name", "first", "rule"),
    [
        (Rules(transposed=True), "ops/conv-square", "y", "transposed weight"),
        (Rules(loss="sum"), "networks/mlp-hard-dense", "loss", "mean against sum loss"),
        (Rules(half_lambda=False), "local/hard", "step2.w", "lambda vs lambda/2"),
    ],
)
def test_in_float32_too(rules, name, first, rule):
    assert_caught(rules, reference(name, "float32"), first, rule)


def test_sharing_the_gradient_of_equal_maxima_departs_too():
    """No suspect computes this one: it is still caught where it happens, and none is blamed."""
    golden = reference("ops/max_pool2d")
    theirs = as_theirs({"ops/max_pool2d": run(golden.cases[0], Rules(pool_tie="shared"))})
    comparison = compare(golden, theirs)
    assert [row.output for row in comparison.departures] == ["grad.x"]
    assert find_hints(golden, theirs, comparison) == []
