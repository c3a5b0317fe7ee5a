"""The README's examples run as printed, and its first screen holds the two commands."""

from __future__ import annotations

import re

from readme_commands import README, readme_commands

import refimpl


def test_first_screen_holds_the_two_commands():
    commands = readme_commands()
    assert commands["demo"].endswith("refimpl demo")
    assert "pytest" in commands["tests"]
    assert all("\n" not in command and "venv" in command for command in commands.values())
    first_screen = README.read_text(encoding="utf-8").split("\n")[:15]
    assert {commands["demo"], commands["tests"]} <= set(first_screen)


def test_python_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)\n```", README.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "(128, 64, 3, 3)" in printed
    assert "[1. 0.]\nTrue\n" in printed  # the solution of one's own problem, and its checks


def test_public_names_exist():
    for name in refimpl.__all__:
        assert getattr(refimpl, name) is not None
