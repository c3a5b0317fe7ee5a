"""Cases of golden files, and what is found in arrays that depart from them."""

from __future__ import annotations

from pathlib import Path

from refimpl.crosscheck.compare import as_theirs, compare
from refimpl.crosscheck.golden.case import Arrays
from refimpl.crosscheck.golden.file import Golden, golden_bytes, read_golden
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.hints import Hint, examine

LEVELS = ("ops", "local", "algorithm", "prox")
CASES = {case.name: case for level in LEVELS for case in build_cases(level)}
WHERE = {"network": "networks/mlp-hard-dense"}
CASES |= {case.name: case for case in build_cases("networks", models=["mlp"]) if case.name in WHERE.values()}


def golden_at(path: Path) -> Golden:
    """A file of all cases, written and read again."""
    path.write_bytes(golden_bytes([(case, run(case)) for case in CASES.values()], "refimpl"))
    return read_golden(path)


def departure(golden: Golden, case: str, outputs: Arrays) -> tuple[str, list[Hint]]:
    """First departing output and the hints on one case's outputs."""
    theirs = as_theirs({case: outputs})
    comparison = compare(golden, theirs)
    return comparison.departures[0].output, examine(golden, theirs, comparison).hints


def assert_explained_alone(
    golden: Golden, case: str, outputs: Arrays, output: str, rule: str, words: str
) -> None:
    """Assert that this output departs first, and that one rule alone explains all that departs."""
    first, hints = departure(golden, case, outputs)
    assert first == output
    (hint,) = (hint for hint in hints if hint.rule != "pattern")
    assert hint.rule == rule
    assert words in hint.text
    assert hint.explains == hint.departing
    assert not hint.denied


def agrees(golden: Golden, case: str, outputs: Arrays) -> bool:
    """Whether no array of one case departs."""
    return not compare(golden, as_theirs({case: outputs})).departures
