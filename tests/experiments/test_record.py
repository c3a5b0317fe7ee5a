"""Run folders: whole or absent, locked, byte-reproducible, and clear about damage."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refimpl.errors import ConfigError, DataError, InputError, RunError
from refimpl.experiments import record
from refimpl.experiments.record import RunFolder
from refimpl.files.storage import npz_bytes

CONFIG = {"method": "metagater", "rounds": 3, "eta": 0.05, "weighted": False, "gates": ["conv2"]}
STATE = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "k": np.array(3), "ag": np.ones(4)}


@pytest.fixture
def run(tmp_path: Path):
    with RunFolder.create(tmp_path / "run", CONFIG) as folder:
        yield folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- creating and opening


def test_a_new_run_is_complete(run):
    assert files(run.path) == {"config.toml", "environment.json", "metrics.jsonl", "report", ".lock"}
    assert run.config == CONFIG
    assert [item.name for item in run.path.parent.iterdir()] == ["run"]


def test_an_existing_run_is_refused_and_unchanged(run):
    run.append_metrics({"round": 1})
    run.close()
    before = files(run.path.parent)
    with pytest.raises(RunError, match="--force"):
        RunFolder.create(run.path, CONFIG)
    assert files(run.path.parent) == before
    assert len(run.metrics()) == 1


def test_force_starts_afresh(run):
    run.save_model({"w": np.ones(2)})
    run.close()
    with RunFolder.create(run.path, {**CONFIG, "rounds": 9}, force=True) as fresh:
        assert fresh.config["rounds"] == 9
        assert not fresh.has_model
    assert [item.name for item in run.path.parent.iterdir()] == ["run"]


def test_force_does_not_delete_what_is_not_ours(run):
    (run.path / "notes.txt").write_text("mine")
    run.close()
    with pytest.raises(RunError, match=r"notes\.txt"):
        RunFolder.create(run.path, CONFIG, force=True)
    assert (run.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_run_is_refused(tmp_path, force):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.create(tmp_path / "home", CONFIG, force=force)
    assert files(tmp_path) == {"home", "home/thesis.tex"}


def test_an_empty_folder_will_do_and_parents_are_made(tmp_path):
    (tmp_path / "a").mkdir()
    RunFolder.create(tmp_path / "a", CONFIG).close()
    RunFolder.create(tmp_path / "b" / "c", CONFIG).close()
    assert (tmp_path / "b" / "c" / "config.toml").is_file()


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(RunError, match="found a file"):
        RunFolder.create(tmp_path / "a", CONFIG)
    with pytest.raises(RunError):
        RunFolder.create(tmp_path / "a" / "b", CONFIG)


def test_nothing_is_left_when_creation_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="no space left"):
        RunFolder.create(tmp_path / "run", CONFIG)
    assert files(tmp_path) == set()


def test_a_bad_configuration_writes_nothing(tmp_path):
    with pytest.raises(ConfigError):
        RunFolder.create(tmp_path / "run", {"a": None})
    assert files(tmp_path) == set()


@pytest.mark.parametrize("path", [".", "missing"])
def test_opening_what_is_no_run_is_refused(tmp_path, path):
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.open(tmp_path / path)
    assert files(tmp_path) == set()


# --- locking

OPENER = "import sys; from refimpl.experiments.record import RunFolder; RunFolder.open(sys.argv[1])"


def test_a_second_process_is_refused_until_the_first_is_done(run):
    command = [sys.executable, "-P", "-c", OPENER, str(run.path)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "BusyError" in refused.stderr
    assert "in use by another refimpl process" in refused.stderr
    run.close()
    assert subprocess.run(command, check=False).returncode == 0


def test_a_run_in_use_is_not_replaced_but_can_be_read(run):
    with pytest.raises(RunError, match="in use"):
        RunFolder.create(run.path, CONFIG, force=True)
    with RunFolder.open(run.path, lock=False) as reader:
        assert reader.config == CONFIG
    assert files(run.path.parent) >= {"run/config.toml"}


def test_a_killed_process_leaves_no_lock(run):
    run.close()
    script = (
        OPENER.replace("RunFolder.open", "keep = RunFolder.open")
        + "; print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use"):
            RunFolder.open(run.path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    RunFolder.open(run.path).close()


# --- metrics


def test_metrics_are_plain_json_with_null_for_nan(run):
    run.append_metrics({"round": 1, "loss": np.float32(0.5), "gap": math.nan, "nodes": (np.int64(1), 2)})
    text = (run.path / "metrics.jsonl").read_text()
    assert text == '{"round": 1, "loss": 0.5, "gap": null, "nodes": [1, 2]}\n'
    assert run.metrics() == [{"round": 1, "loss": 0.5, "gap": None, "nodes": [1, 2]}]


def test_metrics_need_a_round(run):
    with pytest.raises(InputError, match="round"):
        run.append_metrics({"loss": 1.0})


def test_resuming_forgets_rounds_after_the_checkpoint_and_a_torn_line(run):
    for round_ in range(1, 6):
        run.append_metrics({"round": round_})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"round": 6, "lo')
    assert [entry["round"] for entry in run.metrics()] == [1, 2, 3, 4, 5]
    run.close()
    with RunFolder.open(run.path) as resumed:
        resumed.append_metrics({"round": 4, "again": True})
        resumed.append_metrics({"round": 5})
        assert [entry["round"] for entry in resumed.metrics()] == [1, 2, 3, 4, 5]
        assert "again" in resumed.metrics()[3]
        resumed.truncate_metrics(0)
        assert (run.path / "metrics.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "text",
    [
        *("nonsense\n", "[1]\n", '{"loss": 1}\n', '{"round": null}\n', '{"round": "2"}\n'),
        *('{"round": 2.0}\n', '{"round": 1e400}\n', '{"round": true}\n', "[" * 100_000 + "\n"),
    ],
)
def test_damaged_metrics_name_the_line(run, text):
    run.append_metrics({"round": 1})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(text)
    with pytest.raises(DataError, match=r"metrics\.jsonl.*line 2"):
        run.metrics()


@pytest.mark.parametrize("rounds", [[1, 3], [1, 1, 2, 3], [2, 3], [1, 2], []])
def test_metrics_that_do_not_lead_to_the_checkpoint_are_refused(run, rounds):
    (run.path / "metrics.jsonl").write_text("".join(f'{{"round": {round_}}}\n' for round_ in rounds))
    with pytest.raises(DataError, match=r"rounds 1\.\.3"):
        run.truncate_metrics(3)
    assert [entry["round"] for entry in run.metrics()] == rounds


# --- checkpoints


def test_a_checkpoint_comes_back(run):
    run.save_checkpoint(1, STATE, {})
    run.save_checkpoint(2, STATE, {"seed": np.int64(7), "first_loss": 0.1})
    round_, arrays, meta = run.load_checkpoint(like=STATE)
    assert (round_, meta) == (2, {"seed": 7, "first_loss": 0.1})
    for name, array in STATE.items():
        assert arrays[name].tobytes() == array.tobytes()
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
    assert not list(run.path.glob("*.tmp"))
    assert not list(run.path.glob(".*.tmp"))


def test_without_a_checkpoint_there_is_advice(run):
    assert not run.has_checkpoint
    with pytest.raises(RunError, match="no checkpoint"):
        run.load_checkpoint()
    with pytest.raises(RunError, match="no meta-model"):
        run.load_model()


def load_or_complain(run: RunFolder) -> record.Checkpoint | None:
    complaint = ""
    try:
        return run.load_checkpoint()
    except DataError as error:
        complaint = str(error)
    assert "checkpoint.npz: " in complaint
    assert "\n" not in complaint
    return None


def test_a_damaged_checkpoint_is_refused_or_the_damage_is_harmless(run):
    run.save_checkpoint(3, STATE, {"seed": 1})
    path = run.path / "checkpoint.npz"
    content = path.read_bytes()
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        assert load_or_complain(run) is None
    harmless = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(bytes(damaged))
        back = load_or_complain(run)
        if back is not None:  # times, attributes and versions carry no values
            harmless += 1
            assert (back.round, back.meta, sorted(back.arrays)) == (3, {"seed": 1}, sorted(STATE))
            assert all(np.array_equal(back.arrays[name], STATE[name]) for name in STATE)
    assert harmless < len(content) / 4


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({**STATE, "x": np.zeros((3, 2), dtype=np.float32)}, ["x", r"\(3, 2\)", r"\(2, 3\)"]),
        ({**STATE, "x": np.zeros((2, 3))}, ["float64", "float32"]),
        ({"x": STATE["x"]}, ["unknown: ag, k"]),
        ({**STATE, "more": np.zeros(1)}, ["missing: more"]),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(run, like, words):
    run.save_checkpoint(1, STATE, {})
    for word in (r"checkpoint\.npz", *words):
        with pytest.raises(DataError, match=word):
            run.load_checkpoint(like=like)


@pytest.mark.parametrize(
    "header", [None, "{}", '{"round": -1, "meta": {}}', '{"round": "x", "meta": {}}', "[]"]
)
def test_an_array_file_that_is_no_checkpoint_is_refused(run, header):
    arrays = dict(STATE) if header is None else {**STATE, record.META: np.array(header)}
    (run.path / "checkpoint.npz").write_bytes(npz_bytes(arrays))
    with pytest.raises(DataError, match=r"checkpoint\.npz: expected a"):
        run.load_checkpoint()


def test_the_reserved_name_is_refused(run):
    with pytest.raises(InputError, match=record.META):
        run.save_checkpoint(1, {record.META: np.zeros(1)}, {})


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_checkpoint(run, monkeypatch, failing):
    run.save_checkpoint(1, STATE, {})
    run.append_metrics({"round": 1})
    before = (run.path / "checkpoint.npz").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(RunError, match=r"checkpoint\.npz: cannot write: no space left on device"):
            run.save_checkpoint(2, STATE, {})
        if failing == "fsync":
            with pytest.raises(RunError, match=r"metrics\.jsonl: cannot write"):
                run.append_metrics({"round": 2})
    assert (run.path / "checkpoint.npz").read_bytes() == before
    assert files(run.path) >= {"checkpoint.npz"}
    assert not list(run.path.glob(".*.tmp"))


KILLED = """
import sys, numpy as np
from refimpl.experiments.record import RunFolder
run = RunFolder.open(sys.argv[1])
print("go", flush=True)
for round_ in range(1, 10**6):
    run.append_metrics({"round": round_})
    run.save_checkpoint(round_, {"w": np.full(20_000, float(round_))}, {"round": round_})
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_instant_leaves_a_checkpoint_that_loads(run, seed):
    run.close()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", KILLED, str(run.path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        delay = np.random.default_rng(seed).uniform(0.05, 0.3)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        process.kill()
    with RunFolder.open(run.path) as back:
        if not back.has_checkpoint:
            back.truncate_metrics(0)
            return
        round_, arrays, meta = back.load_checkpoint()
        assert np.array_equal(arrays["w"], np.full(20_000, float(round_)))
        assert meta == {"round": round_}
        back.truncate_metrics(round_)
        assert len(back.metrics()) == round_


# --- models and reports


def test_a_model_is_byte_reproducible_and_comes_back(tmp_path):
    arrays = {
        "conv.weight": np.ones((2, 1, 3, 3), dtype=np.float32),
        "conv.bias": np.zeros(2, dtype=np.float32),
    }
    contents = []
    for name in ("one", "two"):
        with RunFolder.create(tmp_path / name, CONFIG) as run:
            run.save_model(arrays if name == "one" else dict(reversed(arrays.items())))
            contents.append((run.path / "meta_model.npz").read_bytes())
            assert sorted(run.load_model(like=arrays)) == ["conv.bias", "conv.weight"]
    assert contents[0] == contents[1]


def test_a_model_with_nan_is_refused(run):
    run.save_model({"w": np.array([1.0, math.nan])})
    with pytest.raises(DataError, match=r"meta_model\.npz.*NaN or infinity in w"):
        run.load_model()


def test_reports_are_plain_json(run):
    path = run.save_report("adapt", {"accuracy": np.float64(0.5), "gap": math.nan, "masks": np.eye(2)})
    assert path == run.path / "report" / "adapt.json"
    assert json.loads(path.read_text()) == {"accuracy": 0.5, "gap": None, "masks": [[1.0, 0.0], [0.0, 1.0]]}


def test_a_report_does_not_go_into_the_run_that_took_the_place_of_its_own(tmp_path):
    """Reading takes no lock, so that a training may go on; but --force puts another run there."""
    RunFolder.create(tmp_path / "run", {"seed": 1}).close()
    read = RunFolder.open(tmp_path / "run", lock=False)
    read.save_report("gap", {})
    RunFolder.create(tmp_path / "run", {"seed": 2}, force=True).close()
    with pytest.raises(RunError, match="was replaced by another run meanwhile"):
        read.save_report("gap", {})
    assert list((tmp_path / "run" / "report").iterdir()) == []
