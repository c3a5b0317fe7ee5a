"""Ctrl-C, sent to a process of its own: exit code 130, no traceback, and the line it prints does the rest."""

from __future__ import annotations

import os
import re
import shlex
import signal

import pytest
from forks import Command

from refimpl.cli import app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="sends SIGINT"),
]
FEW = ("--dataset", "digits", "--nodes", "2", "--targets", "1")
MANY_ROUNDS = ("--rounds", "2000", "--local-steps", "1", "--threads", "1")
RESUMES = {  # stopped in the middle; what they print goes on where they were
    "train": ("train", *FEW, *MANY_ROUNDS, "--out", "a"),
    "compare": ("compare", *FEW, *MANY_ROUNDS, "--methods", "fedavg", "--seeds", "0", "--out", "a"),
    "tune": ("tune", *FEW, *MANY_ROUNDS, "--method", "fedavg", "--budget", "2", "--out", "a.toml"),
    "demo": ("demo", "--seeds", "1", "--rounds", "2000", "--threads", "1", "--out", "a"),
}
BEGINS_AGAIN = {  # they keep nothing, or only what is whole
    "theory": ("theory", "all"),
    "theory gap": ("theory", "gap", "run", "--rounds", "60"),
    "report": ("report", "run", "--full"),
    "gradcheck": ("gradcheck", "--all"),
}


def interrupted(args: tuple[str, ...], after: str) -> str:
    """Run, send SIGINT once `after` is among what it says, and return all it said."""
    words = list(args) if args[0] == "theory" else [*args, "-v"]
    said = []
    with Command(words) as process:
        for line in process.stderr:
            said.append(line)
            if re.search(after, line):
                process.send_signal(signal.SIGINT)
                break
        said.append(process.communicate()[1])
    text = "".join(said)
    assert process.returncode == app.INTERRUPTED, text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("name", RESUMES)
def test_what_it_prints_goes_on(refimpl, name):
    said = interrupted(RESUMES[name], after="round 2/")
    found = re.search(r"go on with: refimpl (.+)$", said, re.MULTILINE)
    assert found, said
    assert "--resume" in found[1]
    assert "--threads 1" in found[1]  # two trainings side by side would show a first round of the second
    said = interrupted(tuple(shlex.split(found[1])), after=r"round \d+/")
    first = re.search(r"round (\d+)/", said)
    assert first
    assert int(first[1]) > 2 or "trial" in said  # it did not begin again


@pytest.mark.parametrize("name", BEGINS_AGAIN)
def test_what_it_prints_begins_again(refimpl, tmp_path, name):
    assert refimpl("train", *FEW, "--rounds", 60, "--local-steps", 1, "--out", "run", "-q")[0] == 0
    args = BEGINS_AGAIN[name]
    said = interrupted(args, after=".")
    assert f"to start over: refimpl {' '.join(args)}" in said
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".tmp")]
