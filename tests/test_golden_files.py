"""The golden files kept with the tests, which PyTorch computed, judge this package without PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from refimpl.golden.case import LEVELS
from refimpl.golden.compare import as_theirs, compare
from refimpl.golden.file import read_golden
from refimpl.golden.models import NAMES
from refimpl.golden.ours import run

FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_this_package_computes_what_pytorch_computed(path):
    golden = read_golden(path)
    assert golden.made_by.startswith("PyTorch")
    comparison = compare(golden, as_theirs({case.name: run(case) for case in golden.cases}))
    assert comparison.rows
    assert not comparison.departures
    assert not comparison.missing


def test_the_files_are_small_and_cover_every_level_architecture_mode_and_dtype():
    cases = [case for path in FILES for case in read_golden(path).cases]
    assert {case.level for case in cases} == set(LEVELS)
    assert {case.dtype for case in cases} == {"float32", "float64"}
    networks = [case.name.removeprefix("networks/").split("-") for case in cases if case.level == "networks"]
    assert {model for model, *_ in networks} == set(NAMES)
    gatings = [case.settings["gating"] for case in cases if "gating" in case.settings]
    assert {gating["mode"] for gating in gatings} == {"hard", "gumbel", "ste", "soft"}
    assert {gating["gate_grad"] for gating in gatings} == {"dense", "active"}
    assert sum(path.stat().st_size for path in FILES) < 1_000_000


def test_algorithm_1_is_checked_over_ten_rounds_within_1e_8():
    golden = read_golden(Path(__file__).parent / "golden" / "algorithm-float64.npz")
    for case in golden.cases:
        assert case.settings["rounds"] == 10
        assert all(expected.relative <= 1e-8 for expected in golden.expected[case.name].values())
