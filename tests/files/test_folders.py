"""Folders that are links, mount points, the current folder, or stand where nothing may be made."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from forks import fork

from refimpl.errors import RunError, TakenError
from refimpl.experiments.record import RunFolder
from refimpl.files import folders

FILES = [".lock", "config.toml", "environment.json", "metrics.jsonl", "report"]


def make(path: Path | str, rounds: int, force: bool = False) -> None:
    RunFolder.create(path, {"rounds": rounds}, force=force).close()


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def rounds(folder: Path) -> int:
    with RunFolder.open(folder) as run:
        return run.config["rounds"]


# --- links and modes


def test_force_on_a_link_replaces_what_it_names(tmp_path):
    (tmp_path / "scratch").mkdir()
    make(tmp_path / "scratch" / "run", 1)
    (tmp_path / "run").symlink_to("scratch/run")
    make(tmp_path / "run", 2, force=True)
    assert os.readlink(tmp_path / "run") == "scratch/run"
    assert rounds(tmp_path / "scratch" / "run") == 2
    assert [names(tmp_path), names(tmp_path / "scratch")] == [["run", "scratch"], ["run"]]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_an_empty_folder_or_to_none_is_followed(tmp_path, there):
    if there:
        (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    make(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "empty") == FILES
    assert names(tmp_path) == ["empty", "link"]


@pytest.mark.parametrize("force", [False, True])
def test_a_replaced_folder_keeps_its_mode(tmp_path, force):
    if force:
        make(tmp_path / "run", 1)
    else:
        (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o2770)
    make(tmp_path / "run", 2, force)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o2770


# --- filled in place


@pytest.fixture
def fixed(tmp_path, monkeypatch):
    """A folder in one where nothing may be made, renamed or deleted."""
    (tmp_path / "around" / "run").mkdir(parents=True)
    around, rename, mkdir = tmp_path / "around", os.rename, os.mkdir

    def guarded(function, *where):
        def call(*paths, **options):
            touched = [Path(path) for path in paths if isinstance(path, (str, os.PathLike))]
            assert around not in [path.parent for path in touched]
            return function(*paths, **options)

        return call

    monkeypatch.setattr(folders.os, "access", lambda path, mode: Path(path) != around)
    monkeypatch.setattr(os, "rename", guarded(rename))
    monkeypatch.setattr(os, "mkdir", guarded(mkdir))
    return around / "run"


def test_a_folder_where_nothing_may_be_made_around_is_filled_in_place(fixed):
    number = fixed.stat().st_ino
    make(fixed, 1)
    assert (names(fixed), rounds(fixed)) == (FILES, 1)
    (fixed / "report" / "adapt.json").write_text("{}")
    make(fixed, 2, force=True)
    assert (names(fixed), rounds(fixed), names(fixed / "report")) == (FILES, 2, [])
    assert fixed.stat().st_ino == number
    assert names(fixed.parent) == ["run"]


def test_a_run_in_use_is_not_replaced_in_place(fixed):
    with RunFolder.create(fixed, {"rounds": 1}):
        with pytest.raises(RunError, match="in use"):
            make(fixed, 2, force=True)
        assert names(fixed) == FILES
    assert rounds(fixed) == 1


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("moves", range(len(FILES)))
def test_a_kill_in_between_leaves_what_the_same_command_fills_again(fixed, monkeypatch, force, moves):
    """Never a run that is half the old and half the new: the configuration goes first and comes last."""
    if force:
        make(fixed, 1)
    if not (process := fork()):
        left, rename = moves, os.rename

        def killed(*paths):
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            rename(*paths)

        monkeypatch.setattr(os, "rename", killed)
        make(fixed, 2, force)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(fixed)
    make(fixed, 2, force)
    assert (names(fixed), rounds(fixed)) == (FILES, 2)


def test_two_processes_do_not_fill_the_same_folder(fixed):
    other = fixed / f".run.elsewhere-{os.getpid()}.new"
    other.mkdir()
    with pytest.raises(TakenError, match="another process"):
        make(fixed, 1)
    assert names(fixed) == [other.name]


def test_a_folder_taken_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    move = folders.move_into_place

    def late(folder, path, *more):
        monkeypatch.undo()
        if not (process := fork()):
            make(path, 1)
            os._exit(0)
        os.waitpid(process, 0)
        move(folder, path, *more)

    monkeypatch.setattr("refimpl.experiments.record.move_into_place", late)
    with pytest.raises(TakenError, match="another process"):
        make(tmp_path / "run", 2)
    assert rounds(tmp_path / "run") == 1
    assert names(tmp_path) == ["run"]


def test_a_folder_that_another_thread_is_making_is_taken(tmp_path):
    with folders.building(tmp_path / "run"), pytest.raises(TakenError, match="another process"):
        make(tmp_path / "run", 1)
    assert names(tmp_path) == []


def test_the_current_folder_is_filled_in_place(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    make(".", 1)
    make(".", 2, force=True)
    assert (os.listdir(tmp_path), names(Path()), rounds(Path())) == (["run"], FILES, 2)


MOUNTED = """
from pathlib import Path
from refimpl.experiments.record import RunFolder
RunFolder.create(Path("mount"), {"rounds": 1}).close()
RunFolder.create(Path("mount"), {"rounds": 2}, force=True).close()
with RunFolder.open("mount") as run:
    print(run.config["rounds"], *sorted(item.name for item in Path("mount").iterdir()))
"""


@pytest.mark.skipif(platform.system() != "Linux" or os.geteuid() != 0, reason="only root may mount, on Linux")
@pytest.mark.parametrize("mount", ["mount -t tmpfs none mount", "mount --bind 'other place' mount"])
def test_a_mount_point_is_filled_in_place(tmp_path, mount):
    for name in ("mount", "other place"):
        (tmp_path / name).mkdir()
    script = f"{mount} || exit 77; {shlex.join([sys.executable, '-c', MOUNTED])}"
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    command = [shutil.which("unshare") or pytest.skip("no unshare"), "-m", "bash", "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip("the system does not let us mount")
    assert done.stderr == ""
    assert done.stdout.split() == ["2", *FILES]
    assert names(tmp_path) == ["mount", "other place"]
