"""The golden files kept with the tests, which PyTorch computed, judge this package without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refimpl.crosscheck.compare import as_theirs, compare, is_close
from refimpl.crosscheck.golden.case import LEVELS
from refimpl.crosscheck.golden.file import Golden, golden_of, read_golden
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.models import DEEP, NAMES
from refimpl.crosscheck.golden.ours import run

FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_this_package_computes_what_pytorch_computed(path):
    golden = read_golden(path)
    assert golden.made_by.startswith("PyTorch")
    comparison = compare(golden, as_theirs({case.name: run(case) for case in golden.cases}))
    assert comparison.rows
    assert not comparison.departures
    assert not comparison.missing


def assert_signs_matter(golden: Golden) -> None:
    """Every array of numbers that is not zero departs if it is negated, or zero."""
    blind = [
        f"{case}/{name}"
        for case, outputs in golden.expected.items()
        for name, expected in outputs.items()
        if expected.value.dtype != np.bool_ and expected.value.any()
        for wrong in (-expected.value, 0 * expected.value)
        if is_close(wrong, expected)
    ]
    assert not blind


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_gradient_is_so_small_that_its_sign_goes_unseen(path):
    assert_signs_matter(read_golden(path))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_gradient_of_any_case_is_so_small_that_its_sign_goes_unseen(dtype):
    assert_signs_matter(golden_of([(case, run(case)) for case in build_cases("all", 0, dtype)], "refimpl"))


def test_the_files_are_small_and_cover_every_level_architecture_mode_and_dtype():
    cases = [case for path in FILES for case in read_golden(path).cases]
    assert {case.level for case in cases} == set(LEVELS)
    assert {case.dtype for case in cases} == {"float32", "float64"}
    networks = [case.name.removeprefix("networks/").split("-") for case in cases if case.level == "networks"]
    assert {model for model, *_ in networks} == {*NAMES, *DEEP}
    gatings = [case.settings["gating"] for case in cases if "gating" in case.settings]
    assert {gating["mode"] for gating in gatings} == {"hard", "gumbel", "ste", "soft"}
    assert {gating["gate_grad"] for gating in gatings} == {"dense", "active"}
    assert sum(path.stat().st_size for path in FILES) < 1_200_000


def test_algorithm_1_is_checked_over_ten_rounds_within_1e_8():
    golden = read_golden(Path(__file__).parent / "golden" / "algorithm-float64.npz")
    for case in golden.cases:
        assert case.settings["rounds"] == 10
        assert all(expected.relative <= 1e-8 for expected in golden.expected[case.name].values())
