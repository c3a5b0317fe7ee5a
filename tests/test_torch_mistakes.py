"""Each usual mistake, planted in the PyTorch implementation, is caught at the right array, and named."""

from __future__ import annotations

import pytest

from refimpl.golden.compare import as_theirs, compare
from refimpl.golden.file import Expected, Golden
from refimpl.golden.hints import find_hints
from refimpl.golden.levels import build_cases
from refimpl.golden.ours import run as ours
from refimpl.golden.tolerance import relative

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from refimpl.bridges.torch.rules import OURS, Rules  # noqa: E402
from refimpl.bridges.torch.run import run  # noqa: E402

# The mistake: case, first array that departs, rule the hint names.
MISTAKES = [
    (Rules(transposed=True), "ops/linear-square", "y", "transposed weight"),
    (Rules(transposed=True), "ops/conv-square", "y", "transposed weight"),
    (Rules(relu_slope_at_zero=1.0), "ops/relu", "grad.x", "ReLU'(0)"),
    (Rules(pool_tie="last"), "ops/max_pool2d", "grad.x", "tie rule"),
    (Rules(gate_tie="on"), "ops/gated-hard-dense", "forward.conv.gate.mask", "tie rule"),
    (Rules(loss="sum"), "ops/cross_entropy", "loss", "mean against sum loss"),
    (Rules(loss="sum"), "networks/mlp-hard-dense", "loss", "mean against sum loss"),
    (Rules(mask="before"), "ops/gated-hard-dense", "forward.conv", "mask before/after ReLU"),
    (Rules(logits="on-off"), "ops/gated-soft-dense", "forward.conv.gate.mask", "two-logit order"),
    (Rules(logits="on-off"), "networks/cnn3-hard-dense", "forward.conv3.gate.mask", "two-logit order"),
    (Rules(prox="weight"), "prox/l1", "prox", "prox step vs weight"),
    (Rules(prox="weight"), "prox/group_lasso", "prox", "prox step vs weight"),
    (Rules(prox="weight"), "algorithm/hard", "round1.x", "prox step vs weight"),
    (Rules(half_lambda=False), "local/hard", "step2.w", "lambda vs lambda/2"),
    (Rules(half_lambda=False), "algorithm/hard", "round1.g", "lambda vs lambda/2"),
    (Rules(variance="unbiased"), "ops/batch_norm2d", "y", "biased BatchNorm variance"),
    (Rules(variance="unbiased"), "networks/residual-soft-dense", "forward.norm", "biased BatchNorm variance"),
]


def golden_of(name: str) -> Golden:
    """This package's golden file of one case, in memory."""
    (case,) = (case for case in build_cases(name.split("/")[0], 0, "float64") if case.name == name)
    outputs = {
        key: Expected(value, relative(case.level, case.dtype, value)) for key, value in ours(case).items()
    }
    return Golden("refimpl", (case,), {name: outputs})


@pytest.mark.parametrize(
    ("rules", "name", "first", "rule"), MISTAKES, ids=[f"{rule}, {name}" for _, name, _, rule in MISTAKES]
)
def test_a_mistake_is_caught_at_its_array_and_named(rules, name, first, rule):
    golden = golden_of(name)
    (case,) = golden.cases
    assert not compare(golden, as_theirs({name: run(case, OURS)})).departures
    theirs = as_theirs({name: run(case, rules)})
    comparison = compare(golden, theirs)
    assert comparison.departures[0].output == first
    assert find_hints(golden, theirs, comparison)[0].rule == rule


def test_sharing_the_gradient_of_equal_maxima_departs_too():
    """No suspect computes this one: it is still caught where it happens."""
    golden = golden_of("ops/max_pool2d")
    theirs = as_theirs({"ops/max_pool2d": run(golden.cases[0], Rules(pool_tie="shared"))})
    assert [row.output for row in compare(golden, theirs).departures] == ["grad.x"]
