"""The README's examples run as printed, and its first screen holds the two commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme_commands import README, ROOT, document, readme_commands

import refimpl


def test_first_screen_holds_the_two_commands():
    commands = readme_commands()
    assert commands["demo"].endswith("refimpl demo")
    assert "pytest" in commands["tests"]
    assert all("\n" not in command and "venv" in command for command in commands.values())
    first_screen = README.read_text(encoding="utf-8").split("\n")[:15]
    assert {commands["demo"], commands["tests"]} <= set(first_screen)


def printed_by_examples(path, capsys):
    blocks = re.findall(r"```python\n(.*?)\n```", document(path), flags=re.S)
    assert blocks, path
    for block in blocks:
        if block.startswith("# "):  # a file for the command line, which other tests give to it
            continue
        exec(compile(block, path, "exec"), {})
    return capsys.readouterr().out


def test_examples_of_the_readme_run(capsys):
    assert "(128, 64, 3, 3)" in printed_by_examples("README.md", capsys)


def test_examples_of_the_tour_run(capsys):
    printed = printed_by_examples("refimpl/README.md", capsys)
    accuracy = [float(word) for word in re.search(r"own nodes: \[(.+)\]", printed)[1].split(",")]
    assert min(accuracy) > 0.8  # three classes that are easy to tell apart were learnt


def test_the_example_of_the_theory_finds_the_solution_and_passes_its_checks(capsys):
    assert "[1. 0.]\nTrue\n" in printed_by_examples("refimpl/theory/README.md", capsys)


def test_the_examples_of_cooperative_learning_train_all_depths(capsys):
    printed = printed_by_examples("refimpl/cooperative/README.md", capsys)
    assert re.findall(r"^depth (\d) of Teammate [ab]:", printed, flags=re.M) == ["1", "2", "3"]
    assert "at depths [1, 1, 2, 3]" in printed


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(document("README.md").split()) <= 1500
    pages = [path for room in ("refimpl", "bench") for path in (ROOT / room).rglob("README.md")]
    for page in ("README.md", *(str(path.relative_to(ROOT)) for path in pages)):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", document(page)):
            assert (ROOT / page).parent.joinpath(link).exists(), (page, link)


def test_public_names_exist():
    for name in refimpl.__all__:
        assert getattr(refimpl, name) is not None
    assert set(refimpl.__all__) == {*refimpl._HOME, "__version__", "zoo"}


def test_public_names_have_help_and_types():
    assert (Path(refimpl.__file__).parent / "py.typed").is_file()
    for name in set(refimpl.__all__) - {"__version__"}:
        assert (getattr(refimpl, name).__doc__ or "").strip(), name


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_the_shell_completes_as_documented(shell, words):
    assert f"{shell}_source" in README.read_text(encoding="utf-8")
    if shell == "bash" and not shutil.which("bash"):
        pytest.skip("click asks bash for its version")
    found = completed(f"{shell}_source")
    assert words in found
    assert "_REFIMPL_COMPLETE" in found


def test_completion_knows_commands_and_options():
    assert "report" in completed("bash_complete", "refimpl re", 1)
    assert "--rounds" in completed("bash_complete", "refimpl train --rou", 2)


def completed(instruction: str, line: str = "refimpl", word: int = 0) -> str:
    asked = {"_REFIMPL_COMPLETE": instruction, "COMP_WORDS": line, "COMP_CWORD": str(word)}
    code = "import sys; from refimpl.cli import main; sys.argv = ['refimpl']; main()"
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True).stdout
