"""Sections that the sources cite are in the document that ships with the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import refimpl

PACKAGE = Path(refimpl.__file__).parent
MATHEMATICS = (PACKAGE / "mathematics.md").read_text(encoding="utf-8")
SECTIONS = set(re.findall(r"^#+ (\d+(?:\.\d+)?[a-z]?) ", MATHEMATICS, flags=re.M))
SOURCES = sorted(PACKAGE.rglob("*.py"))
CHAIN = re.compile(r"mathematics\.md\s+((?:§\s?\d+(?:\.\d+)?[a-z]?[\s,;-]*(?:and )?)+)")


def cited(text: str) -> set[str]:
    """Numbers of the sections cited after the document's name; `§2.1-§2.3` cites its two ends."""
    flat = re.sub(r"\n\s*#?\s*", " ", text)
    return {number for chain in CHAIN.findall(flat) for number in re.findall(r"\d+(?:\.\d+)?[a-z]?", chain)}


def test_every_section_has_an_anchor_of_its_number():
    assert SECTIONS
    assert set(re.findall(r'<a id="([^"]+)"></a>', MATHEMATICS)) == SECTIONS


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_cited_sections_exist(source):
    missing = cited(source.read_text(encoding="utf-8")) - SECTIONS
    assert not missing, f"{source}: mathematics.md has no section {sorted(missing)}"


def test_the_search_for_citations_finds_chains_and_wrong_numbers():
    assert cited("Source: mathematics.md §2.2, §2.3b and\n    §99 (gates).") == {"2.2", "2.3b", "99"}
    assert cited("Parikh & Boyd 2014, §6.1") == set()
