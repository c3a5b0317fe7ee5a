"""What `python -m pydoc` says of public classes can be read: plain types, and every field explained."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import re
from pathlib import Path

import pytest

import refimpl
from refimpl import contracts
from refimpl.federated.adapt import Evaluation, NodeReport
from refimpl.federated.rounds import RoundRecord
from refimpl.nn.predict import Prediction
from refimpl.optim.accel import Certificate, State
from refimpl.theory.following import FollowedRound
from refimpl.theory.stationarity import GapRow

PUBLIC = {name: getattr(refimpl, name) for name in refimpl.__all__ if not name.startswith("_")}
RESULTS = (Evaluation, NodeReport, RoundRecord, Prediction, Certificate, State, FollowedRound, GapRow)
PROTOCOLS = {
    name: one
    for name, one in vars(contracts).items()
    if inspect.isclass(one) and one.__module__ == contracts.__name__
}
CLASSES = {name: one for name, one in PUBLIC.items() if inspect.isclass(one)} | PROTOCOLS
CLASSES |= {one.__name__: one for one in RESULTS}
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", CLASSES)
def test_signatures_are_plain(name):
    shown = pydoc.plain(pydoc.render_doc(CLASSES[name]))
    assert "ForwardRef" not in shown
    assert (CLASSES[name].__doc__ or "").strip()


FIELDS = {
    name: [field.name for field in dataclasses.fields(one) if field.init and field.name != "_"]
    if dataclasses.is_dataclass(one)
    else getattr(one, "_fields", ())
    for name, one in (PUBLIC | PROTOCOLS).items()
    if inspect.isclass(one) and name != "Config"  # whose keys have a sentence each
}


@pytest.mark.parametrize("name", [name for name in FIELDS if FIELDS[name]])
def test_every_field_is_explained(name):
    """In the class's text, or in a comment beside the field."""
    said, source = CLASSES[name].__doc__ or "", inspect.getsource(CLASSES[name])
    said += " ".join(re.findall(r"^    (\w+): .*# \w+", source, flags=re.M))
    assert not [field for field in FIELDS[name] if not re.search(rf"\b{field}\b", said)]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    """In a block of Python of a README, which other tests run."""
    texts = [ROOT / "README.md", *ROOT.glob("refimpl/**/*.md"), *ROOT.glob("bench/*.md")]
    blocks = [re.findall(r"```py(?:thon)?\n(.*?)```", path.read_text("utf-8"), flags=re.S) for path in texts]
    assert re.search(rf"\b{name}\b", "\n".join(block for own in blocks for block in own))
