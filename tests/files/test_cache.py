"""Compiled code on disk: whatever is wrong with its files or its folder costs time and a line, no result."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from refimpl.kernels import jit
from refimpl.kernels.compiling import watch
from refimpl.kernels.jit import kernel

USED, KEPT = "cannot be used", "cannot be kept"


def twice(x):
    return 2 * x


def thrice(x):
    return 3 * x


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder, in a process that has said nothing yet."""
    jit._log.cache_clear()
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    return tmp_path


def started(*functions, argument=4):
    """What the functions give for the argument in a process that has just begun, and which were compiled."""
    compiled = []
    with watch(compiled.append):
        results = [kernel(function)(argument) for function in functions]
    return results, compiled


def files(folder: Path, ending: str) -> list[Path]:
    found = sorted(folder.rglob(f"*{ending}"))
    assert found
    return found


def cut(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def change_a_bit(path: Path) -> None:
    """In the middle of the machine code, where a pickle does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("ending", "damage"),
    [
        *((".nbi", damage) for damage in (empty, cut, overwrite)),
        *((".nbc", damage) for damage in (empty, cut, overwrite, change_a_bit)),
    ],
)
def test_damaged_code_is_compiled_again_once_with_a_line(folder, caplog, ending, damage):
    assert started(twice, thrice) == ([8, 12], ["twice", "thrice"])
    assert started(twice, thrice) == ([8, 12], [])
    for path in files(folder, ending):
        damage(path)
    assert started(twice, thrice) == ([8, 12], ["twice", "thrice"])
    (line,) = caplog.messages
    assert line.startswith(f"refimpl: compiled code {USED} in {folder} (its files are damaged)")
    assert started(twice, thrice) == ([8, 12], [])


def test_code_for_other_types_is_not_run(folder, caplog):
    """Numba gives the same name to what two processes compile for different types at the same time."""
    started(twice, argument=4)
    (whole,) = files(folder, ".nbc")
    content = whole.read_bytes()
    started(twice, argument=4.5)
    for path in files(folder, ".nbc"):
        path.write_bytes(content)
    assert started(twice, argument=4.5) == ([9.0], ["twice"])
    assert USED in caplog.text


@contextmanager
def full_disk():
    """The system refuses to let files grow beyond 100 bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_on_a_full_disk_code_is_not_kept_and_one_line_says_so(folder, caplog):
    with full_disk():
        assert started(twice, thrice) == ([8, 12], ["twice", "thrice"])
    (line,) = caplog.messages
    assert line.startswith(f"refimpl: compiled code {KEPT} in {folder} (file too large)")
    assert "NUMBA_CACHE_DIR" in line
    assert started(twice) == ([8], ["twice"])
    assert started(twice) == ([8], [])


def test_damage_on_a_full_disk_is_no_error_either(folder, caplog):
    started(twice)
    for path in files(folder, ".nbi"):
        empty(path)
    with full_disk():
        assert started(twice) == ([8], ["twice"])
    assert [USED in caplog.messages[0], KEPT in caplog.messages[1]] == [True, True]


def test_a_file_where_a_folder_should_be(folder, caplog):
    started(twice)
    (inner,) = folder.iterdir()
    for path in inner.iterdir():
        path.unlink()
    inner.rmdir()
    inner.write_text("")
    assert started(twice, thrice) == ([8, 12], ["twice", "thrice"])
    assert len([line for line in caplog.messages if KEPT in line]) == 1


def test_files_that_cannot_be_read_are_replaced(folder, caplog):
    started(twice)
    for path in files(folder, ".nbi"):
        make_a_folder(path)
    assert started(twice) == ([8], ["twice"])
    assert "(is a directory)" in caplog.messages[0]


# --- where it is kept


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user whom the system does not know, with a temporary folder."""
    pwd = pytest.importorskip("pwd")

    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jit.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(jit.settings, "CACHE_DIR", "")
    return tmp_path


def test_a_user_without_name_and_home_gets_the_folder_of_choice(nobody, monkeypatch):
    monkeypatch.setattr(jit.settings, "CACHE_DIR", str(nobody / "chosen"))
    assert jit.cache_folder.__wrapped__().parent == nobody / "chosen"
    assert not (nobody / "tmp").exists()


def test_a_user_without_name_and_home_gets_a_temporary_folder_alone(nobody):
    found = jit.cache_folder.__wrapped__()
    assert found.parent == nobody / "tmp" / f"refimpl-{os.getuid()}"
    assert found.parent.stat().st_mode & 0o077 == 0


def test_a_temporary_folder_of_another_user_is_not_trusted(nobody, monkeypatch):
    (nobody / "tmp" / f"refimpl-{os.getuid()}").mkdir(parents=True)
    (nobody / "tmp" / "refimpl-4711").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert not jit.cache_folder.__wrapped__().is_relative_to(nobody)


def test_where_nothing_can_be_written_the_first_choice_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(jit.settings, "CACHE_DIR", str(tmp_path / "chosen"))
    monkeypatch.setattr(jit, "_writable", lambda folder: False)
    assert jit.cache_folder.__wrapped__().parent == tmp_path / "chosen"
    assert list(tmp_path.iterdir()) == []


def test_an_empty_variable_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jit.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert jit._user_cache() == Path.home() / ".cache"
