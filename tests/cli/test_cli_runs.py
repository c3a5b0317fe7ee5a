"""Runs from the command line: trained and adapted; killed and resumed to the same bytes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forks import Command

from refimpl.cli import app
from refimpl.cli.interrupt import stop_requests
from refimpl.experiments.compare.plan import Plan
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.config import resolve
from refimpl.experiments.record import RunFolder
from refimpl.files.storage import npz_bytes, read_npz
from refimpl.registry import METHODS
from refimpl.threads import in_turn, share

ROUNDS = 60  # of some 10 ms each: enough to be stopped long before the end
RUN = ("--dataset", "digits", "--method", "metagater", "--nodes", "3", "--targets", "2", "--local-steps", "2")
LONG = (*RUN, "--rounds", str(ROUNDS), "--threads", "1")
SHORT = (*RUN, "--rounds", "3", "--threads", "1", "-q")


def rounds_of(run: Path) -> list[dict]:
    """The rounds' records without what a clock says."""
    with RunFolder.open(run, lock=False) as folder:
        return [
            {key: value for key, value in entry.items() if key != "seconds"} for entry in folder.metrics()
        ]


def model_bytes(run: Path) -> bytes:
    return (run / "meta_model.npz").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert app.run(["train", *LONG, "--out", str(run), "-q"]) == 0
    return run


# --- train


def test_training_fills_the_run_folder_and_sums_up(refimpl, tmp_path):
    code, out, err = refimpl("train", *SHORT, "--out", "run")
    assert (code, err) == (0, "")
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        *(
            "config.toml",
            "metrics.jsonl",
            "environment.json",
            "data.json",
            "checkpoint.npz",
            "meta_model.npz",
            "report",
            ".lock",
        ),
    }
    assert [entry["round"] for entry in rounds_of(run)] == [1, 2, 3]
    assert "refimpl adapt run" in out


def test_progress_goes_to_stderr_and_json_to_stdout(refimpl):
    code, out, err = refimpl("train", *SHORT[:-1], "--out", "run", "--json")
    assert code == 0
    assert "round 3/3" in err
    result = json.loads(out)
    assert result["last"]["round"] == 3
    assert result["run"] == "run"
    assert result["config"]["nodes"] == 3


def test_without_out_the_folder_is_named_by_what_is_run(refimpl, tmp_path):
    assert refimpl("train", *SHORT, "--method", "fedavg", "--seed", 4)[0] == 0
    assert (tmp_path / "runs" / "digits-fedavg-4" / "meta_model.npz").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_adapts(refimpl, method):
    assert refimpl("train", *SHORT, "--method", method, "--out", "run")[0] == 0
    code, out, err = refimpl("adapt", "run", "--json", "-q")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["method"] == method
    assert len(result["nodes"]) == 2
    assert all(0 <= node["accuracy_after"] <= 1 for node in result["nodes"])


def test_threads_do_not_change_a_byte(refimpl, tmp_path):
    for threads in (1, 2):
        assert refimpl("train", *SHORT, "--threads", threads, "--out", f"run{threads}")[0] == 0
    assert model_bytes(tmp_path / "run1") == model_bytes(tmp_path / "run2")
    assert rounds_of(tmp_path / "run1") == rounds_of(tmp_path / "run2")


def test_the_seed_changes_the_model(refimpl, tmp_path):
    for seed in (0, 1):
        assert refimpl("train", *SHORT, "--seed", seed, "--out", f"run{seed}")[0] == 0
    assert model_bytes(tmp_path / "run0") != model_bytes(tmp_path / "run1")


def test_a_diverging_run_stops_with_one_line_and_keeps_its_checkpoint(refimpl, tmp_path):
    wild = (*SHORT, "--eta", 1, "--rounds", 30, "--out", "run")
    for command in (("train", *wild), ("train", "--resume", "--out", "run", "-q")):
        with np.errstate(all="ignore"):
            code, out, err = refimpl(*command)
        assert (code, out, err.count("\n")) == (2, "", 1)
        told = re.search(r"diverged in round (\d+) at node \d+.*; try a smaller eta", err)
        good = int(told[1]) - 1
        assert good > 1
        with RunFolder.open(tmp_path / "run") as folder:
            assert not folder.has_model
            assert [entry["round"] for entry in folder.metrics()] == list(range(1, good + 1))
            checkpoint = folder.load_checkpoint()
        assert checkpoint.round == good
        assert all(np.isfinite(array).all() for array in checkpoint.arrays.values())


# --- resume


def kill_when(process: Command, run: Path, rounds: int, number: int, delay: float = 0.0) -> None:
    """Send signal `number` once `rounds` rounds are recorded, `delay` seconds later."""
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= rounds):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(number)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_rounds_it_resumes_to_the_same_bytes(refimpl, tmp_path, uninterrupted, seed):
    rng = np.random.default_rng(seed)
    run = tmp_path / "run"
    stops = sorted(rng.choice(np.arange(1, ROUNDS // 2), size=2, replace=False))
    for number, rounds in enumerate(stops):
        arguments = ("--resume",) if number else LONG
        with Command(("train", *arguments, "--out", str(run), "--threads", "1", "-q")) as process:
            kill_when(process, run, rounds, signal.SIGKILL, rng.uniform(0, 0.03))
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (run / "meta_model.npz").exists()
    assert refimpl("train", "--resume", "--out", run, "-q")[0] == 0
    assert model_bytes(run) == model_bytes(uninterrupted)
    assert rounds_of(run) == rounds_of(uninterrupted)
    assert (run / "config.toml").read_bytes() == (uninterrupted / "config.toml").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_at_a_round_boundary_and_says_how_to_go_on(
    refimpl, tmp_path, uninterrupted, number
):
    run = tmp_path / "my run"
    with Command(("train", *LONG, "--out", str(run), "-q")) as process:
        kill_when(process, run, 2, number)
        out, err = process.communicate()
    assert process.returncode == app.INTERRUPTED
    assert out == ""
    assert f"refimpl train --resume --out '{run}'" in err
    with RunFolder.open(run) as folder:
        assert folder.load_checkpoint().round == len(folder.metrics())  # nothing of the last round is lost
        assert len(folder.metrics()) < ROUNDS
    assert refimpl("train", "--resume", "--out", run, "-q")[0] == 0
    assert model_bytes(run) == model_bytes(uninterrupted)
    assert rounds_of(run) == rounds_of(uninterrupted)


def test_checkpoints_may_be_rarer_than_rounds(refimpl, tmp_path, monkeypatch):
    """Stopped between two checkpoints without saving, rounds are repeated, not recorded twice."""
    arguments = (*SHORT, "--rounds", 5, "--checkpoint-every", 2)
    assert refimpl("train", *arguments, "--out", "whole")[0] == 0
    save, saved = RunFolder.append_metrics, []

    def dies_in_round_four(self, record):
        save(self, record)
        saved.append(record["round"])
        if record["round"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", dies_in_round_four)
        code, _, err = refimpl("train", *arguments, "--out", "run")
    assert (code, saved) == (app.INTERRUPTED, [1, 2, 3, 4])
    assert "stopped with 2 rounds saved" in err
    assert refimpl("train", "--resume", "--out", "run", "-q")[0] == 0
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")
    assert rounds_of(tmp_path / "run") == rounds_of(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(refimpl, tmp_path):
    assert refimpl("train", *SHORT, "--out", "run")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*") if path.is_file()}
    assert refimpl("train", "--resume", "--out", "run", "-q")[0] == 0
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*") if path.is_file()
    } == before


def test_a_run_killed_before_its_model_was_written_gets_it(refimpl, tmp_path):
    assert refimpl("train", *SHORT, "--out", "run")[0] == 0
    wanted = model_bytes(tmp_path / "run")
    (tmp_path / "run" / "meta_model.npz").unlink()
    assert refimpl("train", "--resume", "--out", "run", "-q")[0] == 0
    assert model_bytes(tmp_path / "run") == wanted


def test_a_run_killed_before_its_first_checkpoint_starts_again(refimpl, tmp_path):
    assert refimpl("train", *SHORT, "--out", "run")[0] == 0
    wanted = model_bytes(tmp_path / "run")
    for name in ("meta_model.npz", "checkpoint.npz"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"round": 1, "lo')
    assert refimpl("train", "--resume", "--out", "run", "-q")[0] == 0
    assert model_bytes(tmp_path / "run") == wanted
    assert [entry["round"] for entry in rounds_of(tmp_path / "run")] == [1, 2, 3]


def test_a_run_in_use_is_refused(refimpl, tmp_path):
    assert refimpl("train", *SHORT, "--out", "run")[0] == 0
    with RunFolder.open(tmp_path / "run"):
        for arguments in (("--resume", "--out", "run"), (*SHORT, "--out", "run", "--force")):
            code, _, err = refimpl("train", *arguments)
            assert code == app.WRONG_USE
            assert "in use" in err


# --- stop requests


@pytest.fixture
def restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.usefixtures("restored")
def test_the_first_interrupt_asks_the_second_insists(capfd):
    seen = []

    def interrupted_twice() -> None:
        with stop_requests() as stop:
            for _ in range(2):
                seen.append(stop())
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert seen == [False, True]
    assert "Ctrl-C again" in capfd.readouterr().err


# --- threads


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """Among how many threads this process has shared nodes out; a warm-up's single thread is left out."""
    threads = []

    def spy(shares):
        def spied(work, pieces, given, *then):
            threads.extend([given] if given > 1 else [])
            return shares(work, pieces, given, *then)

        return spied

    monkeypatch.setattr("refimpl.experiments.experiment.share", spy(share))
    monkeypatch.setattr("refimpl.federated.rounds.in_turn", spy(in_turn))
    return threads


def test_training_and_adaptation_use_the_threads_they_are_given(refimpl, asked):
    assert refimpl("train", *SHORT, "--threads", 3, "--out", "run")[0] == 0
    assert asked == [3, 3, 3]  # in each round
    assert refimpl("adapt", "run", "--threads", 2, "-q")[0] == 0
    assert asked == [3, 3, 3, 2]
    assert refimpl("adapt", "run", "--threads", 1, "-q")[0] == 0
    assert asked == [3, 3, 3, 2]


def test_a_single_job_of_a_comparison_or_search_gets_all_threads(refimpl, asked):
    alone = (*RUN[:2], *RUN[4:], "--rounds", 1, "--threads", 2, "-q")
    assert refimpl("compare", "--methods", "fedavg", "--seeds", 0, *alone, "--out", "c")[0] == 0
    assert asked == [2, 2]  # a round and an adaptation
    assert refimpl("tune", "--method", "fedavg", "--budget", 1, *alone, "--out", "t.toml")[0] == 0
    assert asked == [2, 2, 2, 2]


def test_jobs_in_processes_share_the_threads_out(tmp_path):
    base = resolve(dataset="digits", method="fedavg", nodes=4, targets=1, rounds=1)
    for seeds, threads, each in (((0, 1, 2), 2, 1), ((0, 1), 5, 2), ((0,), 3, 3)):
        plan = Plan((("fedavg", base),), seeds)
        jobs = Comparison(tmp_path, plan, threads=threads).jobs()
        assert [job.threads for job in jobs] == [each] * len(seeds)


# --- adapt


def test_adapting_prints_a_table_and_writes_the_numbers(refimpl, tmp_path):
    assert refimpl("train", *SHORT, "--out", "run")[0] == 0
    before = model_bytes(tmp_path / "run")
    code, out, _ = refimpl("adapt", "run")
    assert code == 0
    written = json.loads((tmp_path / "run" / "report" / "adapt.json").read_text())
    lines = out.splitlines()
    assert len(lines) == 1 + len(written["nodes"]) + 2
    for line, node in zip(lines[1:], written["nodes"], strict=False):
        assert line.startswith(node["node"])
        assert f"{100 * node['accuracy_after']:.2f}" in line
    mean = sum(node["accuracy_after"] for node in written["nodes"]) / len(written["nodes"])
    assert f"{100 * mean:.2f}" in lines[-2]
    assert model_bytes(tmp_path / "run") == before


def test_it_is_said_what_weight_masks_save_and_channels_stand_beside_them(refimpl):
    assert refimpl("train", *SHORT, "--method", "metasnip-weights", "--out", "run")[0] == 0
    out, err = refimpl("adapt", "run", "-v")[1:]
    assert "weights off %" in out
    lines = [line for line in err.splitlines() if line.startswith("adapted at ")]
    assert lines[-1].endswith("  0:00 left")  # of both
    assert "save work in the gradients of convolutions only" in out
    assert "metasnip, from the same meta-model:" in out
    result = json.loads(refimpl("adapt", "run", "--json")[1])
    pairs = list(zip(result["nodes"], result["channel_variant"], strict=True))
    assert pairs
    assert len(lines) == 2 * len(pairs)
    for weights, channels in pairs:
        assert weights["flops_executed"] == weights["flops_dense"] > channels["flops_executed"]
        assert weights["weights_off"] > 0


def test_pfedme_shows_both_models(refimpl):
    assert refimpl("train", *SHORT, "--method", "pfedme", "--out", "run")[0] == 0
    header, *_, note = refimpl("adapt", "run")[1].splitlines()
    assert "personal %" in header
    assert "global %" in header
    assert note.startswith("pfedme: ")


def test_adaptation_settings_can_be_replaced(refimpl, tmp_path):
    assert refimpl("train", *SHORT, "--out", "run")[0] == 0
    result = json.loads(refimpl("adapt", "run", "--adapt-steps", 0, "--json")[1])
    assert result["settings"]["adapt_steps"] == 0
    assert all(node["accuracy_before"] == node["accuracy_after"] for node in result["nodes"])
    assert refimpl("adapt", "run", "--eta-phi", "-1")[0] == app.WRONG_USE


def test_a_model_of_another_shape_is_refused_by_the_name_of_its_file(refimpl, tmp_path):
    refimpl("train", *SHORT, "--out", "run")
    file = tmp_path / "run" / "meta_model.npz"
    arrays = read_npz(file)
    arrays["conv1.bias"] = np.zeros(7, arrays["conv1.bias"].dtype)
    file.write_bytes(npz_bytes(arrays))
    code, out, err = refimpl("adapt", "run")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "meta_model.npz: expected conv1.bias as float32 of shape (16,)" in err
    assert list((tmp_path / "run" / "report").iterdir()) == []


def test_a_checkpoint_without_the_first_loss_is_refused(refimpl, tmp_path):
    refimpl("train", *SHORT, "--out", "run")
    with RunFolder.open(tmp_path / "run") as run:
        saved = run.load_checkpoint()
        run.save_checkpoint(saved.round, saved.arrays, {})
    code, _, err = refimpl("train", "--out", "run", "--resume", "-q")
    assert code == 2
    assert err == "refimpl: run: expected a checkpoint with round 1's loss, found None\n"


def test_what_to_do_next_says_where_the_data_are(refimpl, tmp_path):
    (tmp_path / "my data").mkdir()
    assert (
        "refimpl adapt run --data-dir 'my data'"
        in refimpl("train", *SHORT, "--out", "run", "--data-dir", "my data")[1]
    )


def test_a_run_without_targets_cannot_be_adapted(refimpl):
    assert refimpl("train", *SHORT, "--targets", 0, "--out", "run")[0] == 0
    code, _, err = refimpl("adapt", "run")
    assert code == app.WRONG_USE
    assert "target" in err
