"""What a command says of a mistake, and what it leaves on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from refimpl.cli import app


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_one_line(code: int, out: str, err: str) -> str:
    assert code == app.WRONG_USE
    assert out == ""
    assert err.startswith("refimpl: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


def assert_refused(result: tuple[int, str, str], words: Iterable[str], folder: Path) -> None:
    """One line with these words, and nothing written."""
    err = assert_one_line(*result)
    for word in words:
        assert word in err
    assert list(folder.iterdir()) == []
