"""What tools and readers look for beside the code says the same as the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from refimpl import __version__
from refimpl.cli.app import COMMANDS

ROOT = Path(__file__).parent.parent


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^([a-z-]+): *(.*)$", text, flags=re.M))
    assert fields["version"] == __version__
    assert {"cff-version", "message", "title", "authors", "preferred-citation"} <= set(fields)
    assert "2011.12511" in text


def test_the_changes_begin_with_this_version_and_name_commands_that_exist():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (\S+?),? ", text, flags=re.M)
    assert versions[0] == __version__
    (listed,) = re.findall(r"Commands ((?:`\w+`,?\s*)+)", text)
    assert set(re.findall(r"\w+", listed)) == set(COMMANDS)


@pytest.mark.parametrize("name", ["PENALTIES", "METHODS", "DATASETS"])
def test_the_recipes_for_contributors_name_what_is_there(name):
    tour = (ROOT / "refimpl" / "README.md").read_text(encoding="utf-8")
    recipes = tour[tour.index("## Contributing") :]
    assert re.search(rf"`@?{name}\b", recipes)
    files = ("registry.py", "experiments/config.py")
    sources = (ROOT / "refimpl" / file for file in files)
    assert any(re.search(rf"^(def )?{name}\b", path.read_text(encoding="utf-8"), re.M) for path in sources)
    for file in re.findall(r"`((?:refimpl|tests)/[\w/]+\.?\w*)`", recipes):
        assert (ROOT / file).exists(), file
