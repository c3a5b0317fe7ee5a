"""Standard output as shells leave it: full, closed, without a reader, of a narrow encoding."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a shell and /dev/full")

TRAIN = ("train", "--method", "fedavg", "--rounds", "1", "--nodes", "2", "--targets", "1", "--out", "r")
PRINTING = (("--help",), ("--version",), ("info",), ("train", "--dry-run"), ("data", "list"), ())


def shell(words: tuple[str, ...], redirection: str, folder: Path, **variables: str) -> tuple[int, str]:
    """Exit code of the command and what it says on stderr."""
    command = shlex.join([sys.executable, "-m", "refimpl", *words])
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    line = f"{command} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_full_stdout_is_one_line(tmp_path, words):
    code, err = shell(words, ">/dev/full", tmp_path)
    assert code == 2
    assert err == "refimpl: standard output: cannot write: no space left on device; everything else is done\n"


def test_the_work_is_done_all_the_same(tmp_path):
    code, err = shell((*TRAIN, "-q"), ">/dev/full", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert (tmp_path / "r" / "meta_model.npz").is_file()


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_and_a_full_stderr_stop_nothing(tmp_path, redirection):
    """Nor does what is printed go into a file that would have got the closed stream's number."""
    code, err = shell(TRAIN, redirection, tmp_path)
    assert (code, bool(err)) == (0, redirection == ">&-")
    if err:
        assert shell(TRAIN, "--force", tmp_path) == (0, err)
    assert (tmp_path / "r" / "meta_model.npz").is_file()


@pytest.mark.parametrize("words", [("--help",), ("info",)])
def test_a_reader_that_has_had_enough_is_no_error(tmp_path, words):
    assert shell(words, "| true", tmp_path) == (0, "")


NAME = "пример-\N{GREEK SMALL LETTER LAMDA}-\N{MINUS SIGN}"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])
def test_characters_that_an_encoding_lacks_are_replaced(tmp_path, encoding):
    words = ("train", "--dry-run", "--dataset", f"{NAME}.npz")
    assert shell(words, ">o", tmp_path, PYTHONIOENCODING=encoding) == (0, "")
    written = (
        "utf-8" if encoding == "ascii" else encoding
    )  # click takes ASCII for a setting that was forgotten
    assert NAME.encode(written, "replace") in (tmp_path / "o").read_bytes()


def test_a_run_is_made_though_its_name_cannot_be_printed(tmp_path):
    assert shell((*TRAIN[:-1], NAME, "-q"), ">o", tmp_path, PYTHONIOENCODING="ascii") == (0, "")
    assert (tmp_path / "o").read_bytes().startswith(b"run ")
    assert (tmp_path / NAME / "meta_model.npz").is_file()


def test_a_name_that_is_no_text_is_printed_all_the_same(tmp_path):
    assert shell((*TRAIN[:-1], "run-\udcff", "-q"), ">o", tmp_path) == (0, "")
    assert b"run-?" in (tmp_path / "o").read_bytes()


def test_errors_survive_a_full_stderr(tmp_path):
    assert shell(("train", "--out", "/proc/nowhere/r"), "2>/dev/full", tmp_path)[0] == 2
