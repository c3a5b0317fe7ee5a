"""What a run writes down about the machine."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import numpy as np

from refimpl.experiments.record import RunFolder


def test_the_environment_says_what_matters_and_nothing_personal(tmp_path):
    with RunFolder.create(tmp_path / "run", {"seed": 0}, threads=2) as run:
        text = (run.path / "environment.json").read_text()
    facts = json.loads(text)
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["threads"] == 2
    assert facts["cpu"]["name"]
    assert facts["cpu"]["features"]
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text)
