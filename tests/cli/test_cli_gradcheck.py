"""`refimpl gradcheck`: covers what it says, shows it, and fails when a gradient is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refimpl.cli import app, gradcheck
from refimpl.nn import gradcases, zoo
from refimpl.nn.gradcases import SETTINGS, UNGATED, Case, Checked, network_cases
from refimpl.nn.gradcheck import SlotError
from refimpl.nn.layers import Conv2d
from refimpl.nn.zoo import checked_names


def test_all_means_every_model_mode_and_gate_gradient():
    assert len(SETTINGS) == 1 + 4 * 2
    cases = network_cases(checked_names(), SETTINGS, 0, 2, 1, narrow=True)
    assert len({(case.name, case.setting) for case in cases}) == len(checked_names()) * len(SETTINGS)


@pytest.mark.slow
def test_everything_passes(refimpl):
    code, out, _ = refimpl("gradcheck", "--all", "--json", "-q")
    result = json.loads(out)
    assert (code, result["passed"]) == (0, True)
    assert result["worst"] <= gradcheck.TOLERANCE
    gated = [case["off_share"] for case in result["cases"] if case["off_share"] is not None]
    assert len(gated) == len(checked_names()) * 8
    assert np.mean([0 < share < 1 for share in gated]) > 0.9  # some channels are off, some on


def test_one_model_shows_every_parameter_and_setting(refimpl):
    code, out, err = refimpl("gradcheck", "--model", "mlp", "-q")
    assert (code, err) == (0, "")
    for slot in gradcases.build("mlp", True, False).layout.slots:
        assert f"\n{slot.name} " in out
    for setting in SETTINGS:
        assert setting.label in out
    assert "channels off" in out
    assert out.rstrip().endswith("passed")


def test_one_setting_of_one_model(refimpl):
    _, out, _ = refimpl(
        "gradcheck", "--model", "mlp", "--mode", "ste", "--gate-grad", "active", "--json", "-q"
    )
    assert [case["setting"] for case in json.loads(out)["cases"]] == ["ste/active"]


def test_the_same_seed_gives_the_same_bytes(refimpl):
    first = refimpl("gradcheck", "--mode", "gumbel", "--json", "-q")
    assert refimpl("gradcheck", "--mode", "gumbel", "--json", "-q") == first
    assert refimpl("gradcheck", "--mode", "gumbel", "--json", "-q", "--seed", "1")[1] != first[1]


def test_narrow_models_are_announced(monkeypatch, refimpl):
    monkeypatch.setattr(zoo, "checked_names", lambda: ("cnn3",))
    _, out, _ = refimpl("gradcheck", "--all", "--mode", "ungated", "-q")
    assert "cnn3 (channels 8-16-32, images 8x8)" in out
    assert gradcases.build("cnn3", True, False).layout.size > gradcases.build("cnn3", True, True).layout.size


def test_a_wrong_gradient_fails(monkeypatch, refimpl):
    right = Conv2d.backward

    def wrong(self, dy, cache, params, grads, back):
        dx = right(self, dy, cache, params, grads, back)
        if self.name == "conv2" and back.need_dw:
            grads["conv2.weight"] *= 1.001
        return dx

    monkeypatch.setattr(Conv2d, "backward", wrong)
    code, out, _ = refimpl("gradcheck", "--model", "digits", "--mode", "hard", "--gate-grad", "dense", "-q")
    assert code == app.CHECK_FAILED
    assert out.rstrip().endswith("FAILED")


def fake(errors: list[float]) -> Case:
    """A case whose error at point i is errors[i]."""

    def check(point: int) -> Checked:
        return Checked("fake", "ungated", None, [SlotError("w", errors[point])])

    return Case("fake", UNGATED.label, check)


@pytest.mark.parametrize(
    ("errors", "good"),
    [
        ([1e-9], True),
        ([1e-3, 1e-9, 1e-8], True),  # a kink near one point
        ([1e-3, 1e-3, 1e-9], False),
        ([1e-3, 1e-9, 1e-3], False),
        ([float("nan"), float("nan"), float("nan")], False),
    ],
)
def test_a_case_above_the_limit_must_pass_at_two_other_points(monkeypatch, refimpl, errors, good):
    monkeypatch.setattr(gradcases, "network_cases", lambda *_, **__: [fake(errors)])
    code, out, _ = refimpl("gradcheck", "-q")
    assert code == (0 if good else app.CHECK_FAILED)
    assert ("two others" in out) == (good and len(errors) > 1)
