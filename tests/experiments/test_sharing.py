"""Comparisons and searches in a folder that several processes share, of which one is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from forks import Command
from kill import run_result, search_result, timeless

from refimpl.cli import app
from refimpl.errors import RunError
from refimpl.experiments.compare.plan import Plan
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.config import resolve
from refimpl.experiments.tune.record import Tuning
from refimpl.experiments.tune.search import Search
from refimpl.files import claims

SMALL = ("--nodes", "4", "--targets", "1", "--rounds", "8", "--local-steps", "1", "--threads", "1", "-q")
WORDS = {
    "compare": ("compare", "--methods", "fedavg,perfedavg", "--seeds", "0,1", *SMALL),
    "tune": ("tune", "--method", "fedavg,perfedavg", "--budget", "2", *SMALL),
}
OUT = {"compare": "folder", "tune": "folder/t.toml"}
CLAIMS = {"compare": "folder/claims", "tune": "folder/t.parts"}
PATIENCE = 200.0  # seconds


def result(place: Path, what: str) -> object:
    """What must be the same whoever did it: everything but seconds, and what tells who did it."""
    folder = place / "folder"
    if what == "tune":
        trials, best, _ = search_result(folder / "t.jsonl")
        return sorted(trials, key=str), best
    runs = [run_result(run) for run in sorted(folder.glob("runs/[!.]*"))]
    return runs, timeless(json.loads((folder / "results.json").read_text())["rows"])


def held(folder: Path) -> list[str]:
    """The claims that are not given back."""
    return [path.name for path in folder.glob("*.[0-9]*") if path.read_bytes() != claims.FREE]


def until(true, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.002)


@pytest.mark.parametrize("what", list(WORDS))
def test_two_processes_divide_the_jobs_and_one_does_those_of_the_other_that_was_killed(
    tmp_path, monkeypatch, what
):
    monkeypatch.setattr(claims, "STALE", 3.0)
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    assert app.run([*WORDS[what], "--out", OUT[what]]) == 0
    monkeypatch.chdir(tmp_path / "shared")
    folder, words = Path(CLAIMS[what]), (*WORDS[what], "--out", OUT[what], "--share")
    with Command(words) as victim:
        while not held(folder):
            until(lambda: held(folder), "a first claim")
            os.kill(victim.pid, signal.SIGSTOP)
            if not held(folder):  # the job was done already
                os.kill(victim.pid, signal.SIGCONT)
        (first,) = held(folder)
        with Command(words) as other:
            until(lambda: len(held(folder)) == 2, "a claim of the other")
            assert not (folder / f"{first[:-1]}{int(first[-1]) + 1}").exists()
            victim.send_signal(signal.SIGKILL)
            out, err = other.communicate()
    assert other.returncode == 0, out + err
    assert (folder / f"{first[:-1]}{int(first[-1]) + 1}").exists()
    assert held(folder) == [first]  # of the dead
    assert result(tmp_path / "shared", what) == result(tmp_path / "alone", what)


def test_others_join_only_the_same_plan_or_search(tmp_path):
    config = resolve(dataset="digits", nodes=4, targets=1, rounds=1)
    Comparison.join(tmp_path / "c", Plan((("a", config),), (0,)))
    assert Comparison.join(tmp_path / "c", Plan((("a", config),), (0,))).shared
    with pytest.raises(RunError, match="the same options"):
        Comparison.join(tmp_path / "c", Plan((("a", config),), (1,)))
    one, other = (Search(config, {"eta": (0.01, 1.0)}, budget) for budget in (1, 2))
    Tuning.join(tmp_path / "t.jsonl", [one])
    assert Tuning.join(tmp_path / "t.jsonl", [one]).shared
    with pytest.raises(RunError, match="the same options"):
        Tuning.join(tmp_path / "t.jsonl", [other])


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "--share"),
        ("compare", "--share", "--out", "c", "--force"),
        (*WORDS["tune"], "--share", "--force"),
    ],
)
def test_what_cannot_be_shared_is_one_line(refimpl, words):
    code, _, err = refimpl(*words, *(["--out", "t.toml"] if words[0] == "tune" else []))
    assert code == 2
    assert "--share" in err
