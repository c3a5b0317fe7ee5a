"""Slips of the keyboard: the nearest name is suggested, and Ctrl-C comes before anything is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import assert_one_line

from refimpl.cli import app

SUGGESTED = [
    (("train", "--method", "metagatr"), "did you mean metagater? 'metagatr' is not one of 'fedavg',"),
    (("train", "--preset", "mnst"), "did you mean mnist? 'mnst' is not one of "),
    (("train", "--dataset", "mnst"), "unknown dataset 'mnst'; did you mean mnist? choose one of cifar10,"),
    (("train", "--model", "cnn33"), "did you mean cnn3? 'cnn33' is not one of "),
    (("compare", "--methods", "fedavgg"), "unknown method 'fedavgg'; did you mean fedavg? choose one of "),
    (("golden", "make", "--level", "op"), "did you mean ops? 'op' is not one of "),
    (("data", "fetch", "mnst"), "did you mean mnist? 'mnst' is not one of "),
    (("data", "verify", "mnst"), "unknown data set 'mnst'; did you mean mnist? choose one of "),
    (("report", "a", "--ful"), "Did you mean --full"),
    (("train", "--outt", "a"), "Did you mean --out"),
    (("doctor",), "no command 'doctor'; did you mean info --check?"),
    (("help",), "no command 'help'; did you mean --help?"),
    (("data", "help"), "no command 'help'; did you mean --help?"),
]


@pytest.mark.parametrize(("args", "expected"), SUGGESTED, ids=[" ".join(args) for args, _ in SUGGESTED])
def test_the_nearest_is_suggested(refimpl, args, expected):
    assert expected in assert_one_line(*refimpl(*args))


def test_what_is_near_nothing_is_only_told_the_choices(refimpl):
    _, _, err = refimpl("train", "--method", "xyzzy")
    assert "'xyzzy' is not one of 'fedavg', " in err
    assert "did you mean" not in err


def test_options_are_suggested_nearest_first_two_at_most(refimpl):
    _, _, err = refimpl("golden", "make", "--levl", "ops")
    assert err.count("--") <= 4  # what was typed, two, and the help
    assert "Did you mean --level or --" in err


IMPORTED = "refimpl.cli.app", "click", "numpy", "numba"  # first to last


@pytest.mark.parametrize("module", IMPORTED)
def test_an_interrupt_while_modules_are_imported_is_one_line_and_130(module):
    script = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from refimpl.cli import main\n"
        "main(['info'])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (app.INTERRUPTED, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("refimpl: stopped")
