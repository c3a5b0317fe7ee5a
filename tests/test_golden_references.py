"""This package against the golden files that PyTorch computed (`python -m refimpl.bridges.make_golden`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from refimpl.golden.case import LEVELS
from refimpl.golden.compare import as_theirs, compare
from refimpl.golden.file import read_golden
from refimpl.golden.ours import run

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("*.npz"))


def test_there_is_a_reference_for_every_level_and_none_is_large():
    assert {path.name.split("-")[0] for path in FILES} == set(LEVELS)
    assert sum(path.stat().st_size for path in FILES) < 2**20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_array_agrees_with_the_other_implementation(path):
    golden = read_golden(path)
    assert golden.made_by.startswith("PyTorch")
    comparison = compare(golden, as_theirs({case.name: run(case) for case in golden.cases}))
    assert not comparison.missing
    assert not comparison.departures, comparison.departures[0]
    assert len(comparison.rows) > len(golden.cases)
