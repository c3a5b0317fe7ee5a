"""A slice of the fuzzing on every run: good files are read, hostile and mutated ones are clean errors."""

from __future__ import annotations

import itertools
import time
import warnings
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzz_loaders import LOADERS, Loader

from refimpl.errors import DataError

EACH = 40  # mutated inputs of each loader


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.name)
def loader(request) -> Loader:
    return request.param


def test_whole_files_are_read(loader, tmp_path):
    path = fuzz.place_for(loader, tmp_path)
    with fuzz.tracing():
        assert {fuzz.judge(loader, path, loader.dress(data)) for data in loader.seeds} == {"accepted"}


def test_hostile_files_are_refused_without_taking_memory(loader, tmp_path):
    path = fuzz.place_for(loader, tmp_path)
    with fuzz.tracing():
        assert {fuzz.judge(loader, path, loader.dress(data)) for data in loader.hostile} <= {"refused"}


def test_mutated_files_are_read_or_refused_cleanly(loader, tmp_path):
    _, losses = fuzz.run(loader, EACH, 1, tmp_path)
    assert losses == []


FOUND = [  # seed 0: an error that was no line, an AttributeError, an IndexError
    ("checkpoint header", 2589),
    ("report of nodes", 884),
    ("record of trials", 92),
]


@pytest.mark.parametrize(("name", "number"), FOUND)
def test_inputs_that_once_went_wrong_do_not_any_more(tmp_path, name, number):
    (loader,) = (loader for loader in LOADERS if loader.name == name)
    path = fuzz.place_for(loader, tmp_path)
    with fuzz.tracing():
        assert fuzz.judge(loader, path, fuzz.nth_input(loader, 0, number)) in ("accepted", "refused")


def test_inputs_depend_on_the_seed_alone():
    first, again, other = (list(fuzz.inputs(LOADERS[0], 30, seed)) for seed in (0, 0, 1))
    assert first == again != other


# --- the judge


def takes_memory(path: Path) -> object:
    return np.empty(fuzz.MEMORY + 1, np.uint8)


def hides_memory(path: Path) -> object:
    np.empty(fuzz.MEMORY + 1, np.uint8)
    raise DataError("one line")


def raises(error: Exception):
    def read(path: Path) -> object:
        raise error

    return read


def warns(path: Path) -> object:
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    return None


def hangs(path: Path) -> object:
    try:
        for _ in itertools.count():
            time.process_time()
    except Exception:
        return None


@pytest.mark.parametrize(
    ("read", "verdict"),
    [
        (takes_memory, "MiB allocated (accepted)"),
        (hides_memory, "MiB allocated (refused)"),
        (raises(KeyError("x")), "KeyError"),
        (raises(ValueError("x")), "ValueError"),
        (raises(MemoryError()), "MemoryError"),
        (raises(RecursionError("x")), "RecursionError"),
        (raises(DataError("two\nlines")), "message"),
        (raises(DataError("")), "message"),
        (raises(DataError("x" * 2000)), "message"),
        (warns, "DeprecationWarning"),
        (hangs, "more than"),
    ],
)
def test_the_judge_sees_what_is_wrong(monkeypatch, tmp_path, read, verdict):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    loader = Loader("bad", read, (b"seed",))
    _, losses = fuzz.run(loader, 2, 0, tmp_path)
    assert len(losses) == 2
    assert all(verdict in loss for loss in losses)
