"""Programs written for the earlier layout find the same modules under their old names."""

from __future__ import annotations

import importlib
import sys

import pytest

from refimpl.moved import MOVED, new_name


@pytest.fixture(autouse=True)
def forget_old_names():
    """Old names are imported anew in each test."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if new_name(name):
            del sys.modules[name]


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_is_the_module_at_its_new_place(old, new):
    with pytest.warns(DeprecationWarning, match=r"^refimpl\..* is now refimpl\.") as told:
        found = importlib.import_module(f"refimpl.{old}")
    assert f"refimpl.{old} is now refimpl.{new}" in [str(warning.message) for warning in told]
    assert found is importlib.import_module(f"refimpl.{new}")


def test_modules_inside_a_moved_package_exist_once():
    from refimpl.federated.pruning import snip

    with pytest.warns(DeprecationWarning, match="is now refimpl.federated.pruning"):
        found = importlib.import_module("refimpl.pruning.snip")
    assert found is snip
    assert snip.__spec__.name == "refimpl.federated.pruning.snip"


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"refimpl\.nowhere"):
        importlib.import_module("refimpl.nowhere")
