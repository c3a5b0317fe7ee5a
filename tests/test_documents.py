"""Documents and sections that the sources cite are in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from readme_commands import ROOT

import refimpl

PACKAGE = Path(refimpl.__file__).parent
MATHEMATICS = (PACKAGE / "mathematics.md").read_text(encoding="utf-8")
SECTIONS = set(re.findall(r"^#+ (\d+(?:\.\d+)?[a-z]?) ", MATHEMATICS, flags=re.M))
SOURCES = sorted(PACKAGE.rglob("*.py"))
CHAIN = re.compile(r"mathematics\.md\s+((?:§\s?\d+(?:\.\d+)?[a-z]?[\s,;-]*(?:and )?)+)")
ROOMS = (PACKAGE, ROOT / "tests", ROOT / "bench")
TEXTS = sorted(path for room in ROOMS for kind in ("*.py", "*.md") for path in room.rglob(kind))
DOCUMENTS = [*ROOT.glob("*.md"), *(path for path in TEXTS if path.suffix == ".md")]
# A document's name is a citation after "Source:", and before a section or a title.
CITATION = re.compile(r"Source: ([\w/-]+\.md)|([\w/-]+\.md)[,;]? (?:[§(]|\"\w)")


def flat(text: str) -> str:
    """The text with the lines of a docstring or comment joined."""
    return re.sub(r"\n\s*#?\s*", " ", text)


def cited(text: str) -> set[str]:
    """Numbers of the sections cited after the document's name; `§2.1-§2.3` cites its two ends."""
    return {
        number for chain in CHAIN.findall(flat(text)) for number in re.findall(r"\d+(?:\.\d+)?[a-z]?", chain)
    }


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


def missing_documents(text: str) -> list[str]:
    """Names of the Markdown documents that the text cites and the repository does not hold."""
    present = [f"/{path.relative_to(ROOT).as_posix()}" for path in DOCUMENTS]
    names = {first or second for first, second in CITATION.findall(flat(text))}
    return sorted(name for name in names if not any(path.endswith(f"/{name}") for path in present))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_cited_documents_are_in_the_repository(path):
    assert not missing_documents(path.read_text(encoding="utf-8")), path


def test_the_search_for_documents_tells_citations_from_names_of_files():
    absent = "elsewhere" + ".md"  # put together, so that this file does not cite it
    assert missing_documents(f"as proven ({absent} §4)") == [absent]
    assert missing_documents(f"Source: {absent}.") == missing_documents(f'{absent}, "Title"') == [absent]
    assert not missing_documents("Source: mathematics.md §2, refimpl/README.md (tour); writes a.md")
