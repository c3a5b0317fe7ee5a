"""`refimpl golden`: files are made and checked; departures exit with 1, bad input with 2, in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from readme_commands import document

from refimpl._version import __version__
from refimpl.cli import golden as golden_command
from refimpl.crosscheck.golden import levels

SECTION = document("refimpl/crosscheck/README.md")


@pytest.fixture
def made(refimpl):
    """A folder with prox.npz, and outputs.npz as another program would write it."""
    assert refimpl("golden", "make", "--level", "prox", "--out", "prox.npz", "-q") == (0, "", "")
    with np.load("prox.npz") as file:
        outputs = {name: file[name] for name in file if name != "manifest" and "/in/" not in name}
    np.savez("outputs.npz", **outputs)
    return outputs


def test_choices_are_those_of_the_library():
    assert set(golden_command.LEVELS) == {*levels.LEVELS, "all"}


def test_make_says_what_it_wrote_and_the_same_options_give_the_same_bytes(refimpl):
    code, out, _ = refimpl("golden", "make", "--level", "prox", "--out", "a.npz")
    assert (code, out.split(",")[0]) == (0, "a.npz: 13 cases")
    for name, options in (("b", ()), ("c", ("--seed", "1")), ("d", ("--dtype", "float32"))):
        assert refimpl("golden", "make", "--level", "prox", "--out", f"{name}.npz", "-q", *options)[0] == 0
    a, b, c, d = (Path(f"{name}.npz").read_bytes() for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def test_one_model_of_the_networks(refimpl):
    options = ("--level", "networks", "--model", "mlp", "--out", "mlp.npz")
    assert refimpl("golden", "make", *options, "-q")[0] == 0
    result = json.loads(refimpl("golden", "check", "mlp.npz", "--json", "-q")[1])
    assert result["conforms"]
    assert {array["name"].split("/")[1].split("-")[0] for array in result["arrays"]} == {"mlp"}


def test_the_right_outputs_conform_and_so_does_this_installation(refimpl, made):
    for theirs in (("outputs.npz",), ("prox.npz",), ()):
        code, out, err = refimpl("golden", "check", "prox.npz", *theirs, "-q")
        assert (code, err) == (0, "")
        assert out.rstrip().endswith(f"26 of 26 arrays agree with refimpl {__version__}: conforms")


def test_a_departure_exits_with_1_and_is_reported_in_every_form(refimpl, made):
    made["prox/l1/prox"] = made["prox/l1/prox"] + 1e-6
    np.savez("wrong.npz", **made)
    for report in ("report.md", "report.html"):
        code, out, _ = refimpl("golden", "check", "prox.npz", "wrong.npz", "-q", "--report", report)
        assert code == 1
        assert "first departure: prox/l1/prox" in out
        assert "prox/l1/prox" in Path(report).read_text(encoding="utf-8")
    code, out, _ = refimpl("golden", "check", "prox.npz", "wrong.npz", "-q", "--json")
    result = json.loads(out)
    assert (code, result["conforms"], result["first_departure"]) == (1, False, "prox/l1/prox")
    by_name = {array["name"]: array for array in result["arrays"]}
    assert by_name["prox/l1/prox"]["max_abs"] == pytest.approx(1e-6)
    assert by_name["prox/zero/prox"]["status"] == "ok"


def test_a_report_is_not_replaced_unasked(refimpl, made):
    Path("report.md").write_text("mine")
    check = ("golden", "check", "prox.npz", "outputs.npz", "-q", "--report", "report.md")
    code, _, err = refimpl(*check)
    assert (code, err.count("\n"), "--force" in err) == (2, 1, True)
    assert Path("report.md").read_text() == "mine"
    assert refimpl(*check, "--force")[0] == 0
    report = Path("report.md").read_text(encoding="utf-8")
    for word in ("prox.npz, sha256 ", "outputs.npz, sha256 ", "| seed of the inputs | 0 |"):
        assert word in report


def test_the_case_that_is_examined_is_shown(refimpl, made):
    np.savez("wrong.npz", **{name: array + 1 for name, array in made.items()})
    _, _, err = refimpl("golden", "check", "prox.npz", "wrong.npz")
    assert "looking for causes  1/13  prox/" in err
    assert "looking for causes  13/13  prox/" in err


def test_missing_arrays_exit_with_1_unless_they_may_be(refimpl, made):
    np.savez("some.npz", **{"prox/l1/prox": made["prox/l1/prox"], "extra": np.zeros(2)})
    code, out, _ = refimpl("golden", "check", "prox.npz", "some.npz", "-q")
    assert code == 1
    assert "missing: prox/zero/prox" in out
    assert "not expected, left out: extra" in out
    assert refimpl("golden", "check", "prox.npz", "some.npz", "-q", "--partial")[0] == 0


def damaged(name, made):
    """A file that is not what it should be."""
    if name == "none.npz":
        return
    content = Path("outputs.npz").read_bytes()
    if name == "cut.npz":
        content = content[: len(content) // 2]
    if name == "text.npz":
        content = b"prox/l1/prox: 1 2 3"
    if name == "empty.npz":
        content = b""
    Path(name).write_bytes(content)
    if name == "version.npz":
        manifest = json.dumps({"format": "refimpl-golden", "version": 99}).encode()
        np.savez(name, **made, manifest=np.frombuffer(manifest, np.uint8))
    if name == "names.npz":
        np.savez(name, y=np.zeros(3))


@pytest.mark.parametrize("name", ["none.npz", "cut.npz", "text.npz", "empty.npz", "version.npz", "names.npz"])
def test_a_file_that_cannot_be_compared_is_one_line_and_exit_code_2(refimpl, made, name):
    damaged(name, made)
    code, out, err = refimpl("golden", "check", "prox.npz", name, "-q")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert name in err
    assert refimpl("golden", "check", name, "-q")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("make", "--level", "opps", "--out", "x.npz"), "opps"),
        (("make", "--level", "ops"), "--out"),
        (("make", "--level", "prox", "--out", "prox.npz"), "--force"),
        (("make", "--level", "prox", "--model", "mlp", "--out", "x.npz"), "--model"),
        (("make", "--level", "prox", "--out", "no/such/folder/x.npz", "-q"), "cannot write"),
        (("check", "prox.npz", "outputs.npz", "--report", "x.pdf"), ".html"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(refimpl, made, arguments, word):
    code, _, err = refimpl("golden", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert word in err


def test_the_readme_example_runs_and_its_broken_form_says_what_is_printed_there(refimpl):
    """The block is tagged `py`, as it needs the file that the command before it makes."""
    command, _ = re.findall(r"^\$ refimpl (golden make .*)$", SECTION, flags=re.M)
    script, _own, _bridge = re.findall(r"```py\n(.*?)\n```", SECTION, flags=re.S)
    printed, _own_printed = re.findall(r"```text\n(.*?)\n```", SECTION, flags=re.S)
    assert len(script.splitlines()) <= 20
    assert refimpl(*command.split(), "-q")[0] == 0
    check = ("golden", "check", "ops.npz", "theirs.npz", "--partial", "-q")
    exec(compile(script, "README.md", "exec"), {})
    code, out, _ = refimpl(*check)
    assert (code, "10 of 10 arrays agree" in out) == (0, True)
    exec(compile(script.replace("x > 0", "x >= 0"), "README.md", "exec"), {})
    code, out, _ = refimpl(*check)
    assert (code, out.strip()) == (1, re.sub(r"refimpl [\d.]+", f"refimpl {__version__}", printed))
