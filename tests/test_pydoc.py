"""What `python -m pydoc` says of public classes can be read: plain types, and every field explained."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pydoc
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import refimpl
from refimpl import contracts
from refimpl.cooperative.compare import Line
from refimpl.cooperative.measure import Deployed, Latency, Row
from refimpl.experiments.compare.summary import Row as ComparedRow
from refimpl.optim.accel import Certificate, State
from refimpl.theory.stationarity import GapRow

PUBLIC = {name: getattr(refimpl, name) for name in refimpl.__all__ if not name.startswith("_")}
PROTOCOLS = [
    one for one in vars(contracts).values() if inspect.isclass(one) and one.__module__ == contracts.__name__
]
RESULTS = (Certificate, Deployed, GapRow, Latency, Line, Row, State)  # of what the command line calls
MACHINERY = (
    "refimpl.kernels",
    "refimpl.nn.lowering",
    "refimpl.nn.plan",
    "refimpl.nn.program",
    "refimpl.nn.run",
)  # compiled programs
KEYED = {refimpl.Config, ComparedRow}  # keys have a sentence each; columns of a table have patterns of names
ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", *ROOT.glob("refimpl/**/*.md"), *ROOT.glob("bench/*.md")]
EXAMPLES = "\n".join(
    block
    for path in TEXTS
    for block in re.findall(r"```py(?:thon)?\n(.*?)```", path.read_text("utf-8"), flags=re.S)
)


def imported() -> Iterator[object]:
    """What the examples import from the package, apart from what needs PyTorch."""
    for line in re.finditer(
        r"^ *from (refimpl[\w.]*) import (?:\(([^)]*)\)|([^\n#]*))", EXAMPLES, flags=re.M
    ):
        if "torch" not in line[1]:
            module = importlib.import_module(line[1])
            for name in re.findall(r"\w+", line[2] or line[3]):
                yield (
                    getattr(module, name)
                    if hasattr(module, name)
                    else importlib.import_module(f"{line[1]}.{name}")
                )


def classes(hint: object) -> Iterator[type]:
    """The classes of this package that a type hint names."""
    parts = typing.get_args(hint)
    for part in parts:
        yield from classes(part)
    if inspect.isclass(hint) and not parts and hint.__module__.startswith("refimpl"):
        yield from () if hint.__module__.startswith(MACHINERY) else (hint,)


def hints(of: object) -> dict[str, object]:
    """Its type hints, as far as they can be read without what only type checkers import."""
    try:
        return typing.get_type_hints(of)
    except NameError:
        return {}


def met(one: object) -> Iterator[object]:
    """What its user meets: classes of fields and of what functions and methods return; a module's names."""
    if inspect.isclass(one):
        for hint in hints(one).values():
            yield from classes(hint)
        for name, value in vars(one).items():
            function = getattr(value, "__func__", getattr(value, "fget", getattr(value, "func", value)))
            if (name == "__call__" or not name.startswith("_")) and inspect.isfunction(function):
                yield from met(function)
    elif inspect.ismodule(one):
        yield from (getattr(one, name) for name in getattr(one, "__all__", ()))
    elif inspect.isfunction(one):
        yield from classes(hints(one).get("return"))


def public_classes() -> dict[str, type]:
    """The classes of the public interface by module and name, with all that is met on the way from there."""
    waiting, seen = [*PUBLIC.values(), *PROTOCOLS, *RESULTS, *imported()], []
    while waiting:
        one = waiting.pop()
        if not any(one is other for other in seen):
            seen.append(one)
            waiting += met(one)
    found = {f"{one.__module__}.{one.__name__}": one for one in seen if inspect.isclass(one)}
    return dict(sorted(found.items()))


CLASSES = public_classes()


def fields(one: type) -> list[str]:
    """What its constructor takes, if it is a dataclass or a named tuple, without keys of a configuration."""
    if dataclasses.is_dataclass(one):
        return [
            item.name
            for item in dataclasses.fields(one)
            if item.init and not item.metadata and item.name != "_"
        ]
    return list(getattr(one, "_fields", ()))


def test_the_results_of_public_functions_are_among_them():
    names = {name.rpartition(".")[2] for name in CLASSES}
    assert {
        "NodeReport",
        "Evaluation",
        "RoundRecord",
        "Prediction",
        "FollowedRound",
        "GapRow",
        "Timings",
    } <= names


@pytest.mark.parametrize("name", CLASSES)
def test_signatures_are_plain(name):
    shown = pydoc.plain(pydoc.render_doc(CLASSES[name]))
    assert not re.search(r"ForwardRef|<function|<lambda|object at 0x", shown.split("Data descriptors")[0])
    assert (CLASSES[name].__doc__ or "").strip()


@pytest.mark.parametrize("name", [name for name, one in CLASSES.items() if fields(one) and one not in KEYED])
def test_every_field_is_explained(name):
    """In the text of the class, which is what pydoc shows."""
    one = CLASSES[name]
    assert not [field for field in fields(one) if not re.search(rf"\b{field}\b", one.__doc__ or "")]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    """In a block of Python of a README, which other tests run."""
    assert re.search(rf"\b{name}\b", EXAMPLES)
