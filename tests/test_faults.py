"""Faults from outside: kills at random instants, a full disk, a second process, more threads than cores."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import kill
import numpy as np
import pytest
from forks import fork

from refimpl.cli import app
from refimpl.errors import RunError
from refimpl.experiments import record
from refimpl.experiments.compare.plan import Plan
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.config import resolve
from refimpl.experiments.record import RunFolder
from refimpl.federated.warmup import warm_up
from refimpl.files import folders
from refimpl.files.lock import locked, take_lock

resource = pytest.importorskip("resource")

TIMES = 3  # kills of each command here; `python tests/kill.py` makes many
RUN = ("--nodes", "3", "--targets", "1", "--local-steps", "1", "--rounds", "3", "--threads", "1")


@pytest.mark.slow
@pytest.mark.parametrize("work", kill.WORKLOADS, ids=lambda work: work.name)
def test_killed_at_random_instants_nothing_is_lost(tmp_path, work):
    kill.get_ready()
    assert [loss for _, _, loss in kill.torture(work, TIMES, 0, tmp_path) if loss] == []


def test_the_torture_sees_what_is_not_written_whole(tmp_path, monkeypatch):
    """Its second process writes half a file, and is killed there."""
    torn, end, write = tmp_path / "run" / "run" / "report" / "adapt.json", kill.end, record.write_whole

    def halfway(path, content):
        if Path.cwd() / path == torn:
            path.write_bytes(content[: len(content) // 2])
            time.sleep(kill.PATIENCE)
        write(path, content)

    def end_when_torn(process, seconds):
        if seconds == kill.PATIENCE:
            return end(process, seconds)
        deadline = time.monotonic() + kill.PATIENCE
        while not torn.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        return end(process, 0)

    kill.get_ready()
    monkeypatch.setattr(record, "write_whole", halfway)
    monkeypatch.setattr(kill, "end", end_when_torn)
    (work,) = (work for work in kill.WORKLOADS if work.name == "adapt")
    killed, ended, loss = next(kill.torture(work, 1, 0, tmp_path))
    assert (killed, ended) == (1, False)
    assert "JSONDecodeError" in loss


# --- what a killed process leaves


def gone() -> int:
    """The id of a process that has ended."""
    process = os.posix_spawnp("true", ["true"], {})
    os.waitpid(process, 0)
    return process


def test_folders_a_killed_process_was_making_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "host.of-mine")
    dead, mine = gone(), os.getpid()
    swept = {f".run.host-of-mine-{dead}.new", f".run.host-of-mine-{dead}.old", f".run.other-{dead}.old"}
    kept = {
        *(f".run.host-of-mine-{mine}.old", f".run.other-{dead}.new", f".run.other-{mine}.new"),
        *(".run.notes.new", ".run.my-notes.new", f".other.host-of-mine-{dead}.new"),
    }
    for name in swept | kept:
        (tmp_path / name).mkdir()
    os.utime(tmp_path / f".run.other-{dead}.old", (0, 0))  # another host's, but long ago
    RunFolder.create(tmp_path / "run", {"rounds": 1}).close()
    assert {path.name for path in tmp_path.iterdir()} == {"run", *kept}


def test_no_process_is_asked_after_where_asking_would_end_it(tmp_path, monkeypatch):
    left = tmp_path / f".run.{folders._host()}-{gone()}.new"
    left.mkdir()

    def ended(*_):
        raise AssertionError("os.kill ends the process there")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "os", SimpleNamespace(**{**vars(os), "name": "nt", "kill": ended}))
        folders._sweep(tmp_path / "run")
    assert left.exists()
    folders._sweep(tmp_path / "run")
    assert not left.exists()


def tiny_plan(rounds: int) -> Plan:
    config = resolve(method="fedavg", nodes=3, targets=1, local_steps=1, rounds=rounds)
    return Plan((("fedavg", config),), (0,))


@pytest.mark.parametrize("at", ["rename", "rmtree"])
def test_replacing_a_comparison_survives_a_kill(tmp_path, monkeypatch, at):
    """Whenever it happens, the folder holds the old comparison or the new, or is free; the next sweeps."""
    path = tmp_path / "c"
    Comparison.create(path, tiny_plan(1), threads=1).run()
    before = kill.names(path)

    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if not (process := fork()):
        monkeypatch.setattr(*((os, "rename") if at == "rename" else (shutil, "rmtree")), killed)
        Comparison.create(path, tiny_plan(2), force=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    rounds = Comparison.open(path).plan.rows[0][1].rounds
    assert (rounds, kill.names(path)) == ((1, before) if at == "rename" else (2, ["data.json", "plan.json"]))
    Comparison.create(path, tiny_plan(3), force=True)
    assert os.listdir(tmp_path) == ["c"]
    assert Comparison.open(path).plan.rows[0][1].rounds == 3


def test_what_is_deleted_is_locked_until_it_is_gone(tmp_path, monkeypatch):
    Comparison.create(tmp_path / "c", tiny_plan(1), threads=1).run()
    tried = []

    def looked_at(folder, ignore_errors=False):
        for lock in (folder / ".lock", folder / "runs" / "fedavg-seed0" / ".lock"):
            if lock.exists():
                with pytest.raises(RunError, match="in use"):
                    take_lock(lock, folder)
                tried.append(lock)

    monkeypatch.setattr(folders.shutil, "rmtree", looked_at)
    Comparison.create(tmp_path / "c", tiny_plan(2), force=True)
    assert len(tried) == 2


def test_force_replaces_a_run_killed_while_it_wrote(tmp_path):
    RunFolder.create(tmp_path / "run", {"rounds": 1}).close()
    (tmp_path / "run" / ".checkpoint.npz.tmp").write_bytes(b"half")
    RunFolder.create(tmp_path / "run", {"rounds": 2}, force=True).close()
    assert not (tmp_path / "run" / ".checkpoint.npz.tmp").exists()


def test_a_comparison_killed_before_its_plan_was_written_can_be_begun(refimpl, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / ".plan.json.tmp").write_bytes(b"half")
    assert refimpl("compare", *RUN, "--methods", "fedavg", "--seeds", 0, "--out", "c", "-q")[0] == 0
    assert not (tmp_path / "c" / ".plan.json.tmp").exists()


# --- a full disk


@contextlib.contextmanager
def files_of_at_most(size: int):
    """The system refuses to let files grow beyond `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(tmp_path):
    with RunFolder.create(tmp_path / "run", {"rounds": 3}) as run:
        run.append_metrics({"round": 1})
        run.save_checkpoint(1, {"w": np.ones(10)}, {})
        before = sorted(path.name for path in run.path.iterdir())
        with (
            files_of_at_most(2000),
            pytest.raises(RunError, match=r"checkpoint\.npz: cannot write: file too"),
        ):
            run.save_checkpoint(2, {"w": np.ones(10_000)}, {})
        assert run.load_checkpoint().round == 1
        assert sorted(path.name for path in run.path.iterdir()) == before


def test_a_metrics_line_that_does_not_fit_is_forgotten_by_the_resumed_run(tmp_path):
    with RunFolder.create(tmp_path / "run", {"rounds": 3}) as run:
        run.append_metrics({"round": 1})
        with files_of_at_most(20), pytest.raises(RunError, match=r"metrics\.jsonl: cannot write"):
            run.append_metrics({"round": 2})
        size = (run.path / "metrics.jsonl").stat().st_size
        assert size == 20
    with RunFolder.open(tmp_path / "run") as run:
        run.append_metrics({"round": 2})
        assert run.metrics() == [{"round": 1}, {"round": 2}]


@pytest.mark.parametrize("size", [0, 100, 4000])
def test_training_on_a_full_disk_is_one_line_and_goes_on_later(refimpl, tmp_path, size):
    assert refimpl("train", *RUN, "--out", "usual", "-q")[0] == 0
    with files_of_at_most(size):
        code, out, err = refimpl("train", *RUN, "--out", "run", "-q")
    assert (code, out, err.count("\n")) == (app.WRONG_USE, "", 1)
    assert "file too large" in err
    again = ("--resume",) if (tmp_path / "run").exists() else RUN
    assert refimpl("train", *again, "--out", "run", "-q")[0] == 0
    assert kill.run_result(tmp_path / "run") == kill.run_result(tmp_path / "usual")


@pytest.mark.parametrize("command", ["adapt", "compare", "tune"])
def test_other_commands_on_a_full_disk_are_one_line(refimpl, tmp_path, command):
    assert refimpl("train", *RUN, "--out", "run", "-q")[0] == 0
    arguments = {
        "adapt": ("run",),
        "compare": (*RUN, "--methods", "fedavg", "--seeds", 0, "--out", "c", "-q"),
        "tune": (*RUN, "--method", "fedavg", "--budget", 1, "--out", "t.toml", "-q"),
    }[command]
    with files_of_at_most(50):
        code, out, err = refimpl(command, *arguments)
    assert (code, out) == (app.WRONG_USE, "")
    assert "file too large" in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.tmp"))


# --- a second process


def test_a_comparison_in_use_is_refused(refimpl, tmp_path):
    arguments = (*RUN, "--methods", "fedavg", "--seeds", 0, "--out", "c")
    assert refimpl("compare", *arguments, "-q")[0] == 0
    before = kill.names(tmp_path)
    with locked(tmp_path / "c" / ".lock", tmp_path):
        for again in (("--resume", "--out", "c"), (*arguments, "--force")):
            code, out, err = refimpl("compare", *again, "-q")
            assert (code, out, err.count("\n")) == (app.WRONG_USE, "", 1)
            assert "in use by another refimpl process" in err
    assert kill.names(tmp_path) == before


def test_a_search_in_use_is_refused(refimpl, tmp_path):
    arguments = (*RUN, "--method", "fedavg", "--budget", 1, "--out", "t.toml")
    assert refimpl("tune", *arguments, "-q")[0] == 0
    before = (tmp_path / "t.jsonl").read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "t.jsonl").write_bytes(before)  # a search with nothing left to do is only printed
    with locked(tmp_path / "t.jsonl", tmp_path):
        for again in (("--resume", "--out", "t.toml"), (*arguments, "--force")):
            code, out, err = refimpl("tune", *again, "-q")
            assert (code, out, err.count("\n")) == (app.WRONG_USE, "", 1)
            assert "in use by another refimpl process" in err
    assert (tmp_path / "t.jsonl").read_bytes() == before


def test_a_run_in_use_is_not_adapted(refimpl, tmp_path):
    assert refimpl("train", *RUN, "--out", "run", "-q")[0] == 0
    before = kill.names(tmp_path)
    with RunFolder.open("run"):
        code, out, err = refimpl("adapt", "run", "-q")
    assert (code, out, err.count("\n")) == (app.WRONG_USE, "", 1)
    assert "in use by another refimpl process" in err
    assert kill.names(tmp_path) == before


# --- threads


def wait_while_it_grows(process: int, file: Path) -> None:
    """Until the process has ended well; one that stands still, as in a deadlock, is ended, and fails."""
    size, since = -1, time.monotonic()
    while not (found := os.waitpid(process, os.WNOHANG))[0]:
        grown = file.stat().st_size if file.exists() else 0
        if grown != size:
            size, since = grown, time.monotonic()
        elif time.monotonic() - since > kill.PATIENCE:
            kill.end(process, 0)
            pytest.fail(f"no round in {kill.PATIENCE:g} s, after {size} bytes of metrics")
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(found[1]) == 0


@pytest.mark.slow
def test_a_thousand_rounds_on_eight_threads_end_in_the_same_bytes(tmp_path):
    warm_up()
    many = (*RUN, "--nodes", "8", "--node-min", "8", "--node-max", "10", "--support", "5", "--rounds", "1000")
    for threads in ("1", "8"):
        command = ("train", *many, "--checkpoint-every", "1000", "--out", threads, "--threads", threads, "-q")
        wait_while_it_grows(kill.begin(command, tmp_path), tmp_path / threads / "metrics.jsonl")
    one, eight = (kill.run_result(tmp_path / threads) for threads in ("1", "8"))
    assert one == eight
    assert len((tmp_path / "8" / "metrics.jsonl").read_text().splitlines()) == 1000
    assert json.loads((tmp_path / "8" / "environment.json").read_text())["threads"] == 8
