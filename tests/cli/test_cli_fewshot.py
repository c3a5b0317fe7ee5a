"""`refimpl fewshot`: train, resume, test and show the split, on the embedded digits."""

from __future__ import annotations

import json

import numpy as np
import pytest

TINY = ("--preset", "digits-2way-1shot", "--rounds", 3, "--tasks", 2, "--threads", 1)


def test_train_then_test_two_seeds(refimpl):
    for seed in (0, 1):
        code, out, _ = refimpl("fewshot", "train", *TINY, "--seed", seed, "--out", f"run{seed}", "-q")
        assert code == 0
        assert "next" in out
    code, out, _ = refimpl("fewshot", "test", "run0", "run1", "--test-episodes", 6, "--json", "-q")
    assert code == 0
    found = json.loads(out)
    first, second = found["runs"]
    assert (first["episodes"], first["statistics"], first["shots"]) == (6, "transductive", 1)
    (group,) = found["seeds"]
    assert group["mean"] == pytest.approx((first["accuracy"] + second["accuracy"]) / 2)
    assert group["spread"] == pytest.approx(abs(first["accuracy"] - second["accuracy"]) / 2**0.5)
    code, out, _ = refimpl("fewshot", "test", "run0", "--test-episodes", 6, "--statistics", "support", "-q")
    assert code == 0
    assert "support" in out
    assert "+-" in out


def test_episodes_that_diverge_are_counted_and_end_with_1(refimpl):
    assert refimpl("fewshot", "train", *TINY, "--validate-every", 1, "--out", "run", "-q")[0] == 0
    code, out, err = refimpl("fewshot", "test", "run", "--test-alpha", 1e30, "--test-episodes", 4, "-q")
    assert code == 1
    assert "4 diverged" in out
    assert err.splitlines()[-1].startswith("refimpl: adaptation diverged in 4 of 4 episodes, first of run (")
    words = ("--test-alpha", 1e30, "--validate-every", 1, "--out", "other", "-q")
    code, out, _ = refimpl("fewshot", "train", *TINY, *words)
    assert code == 0
    assert "diverged, best diverged" in out


def test_resume_goes_on_and_takes_no_other_settings(refimpl, tmp_path):
    code, _, _ = refimpl("fewshot", "train", *TINY, "--out", "run", "-q")
    assert code == 0
    assert refimpl("fewshot", "train", "--resume", "--out", "run", "-q")[0] == 0
    code, _, err = refimpl("fewshot", "train", "--resume", "--out", "run", "--ways", 3)
    assert code == 2
    assert "run: was started with ways = 2, not 3" in err
    assert refimpl("fewshot", "train", "--resume", *TINY[:-2], "--out", "run", "-q")[0] == 0
    assert "--resume needs --out RUN" in refimpl("fewshot", "train", "--resume", *TINY[:-2])[2]
    code, _, err = refimpl("fewshot", "train", *TINY, "--out", "run")
    assert code == 2
    assert "--force" in err


def test_own_arrays_and_the_split_of_their_classes(refimpl, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.random((60, 1, 8, 8)), y=np.repeat(np.arange(12), 5))
    code, out, _ = refimpl("fewshot", "classes", "mine.npz")
    assert code == 0
    assert [line.split(" (")[0] for line in out.splitlines()[1:]] == ["train", "validation", "test"]
    sizes = ("--ways", 2, "--queries", 2, "--test-queries", 2, "--rounds", 1)
    code, _, _ = refimpl("fewshot", "train", "--dataset", "mine.npz", *sizes, "--out", "own", "-q")
    assert code == 0
    code, _, err = refimpl("fewshot", "train", "--dataset", "mine.npz", "--ways", 5, "--out", "other", "-q")
    assert code == 2
    assert "5 classes with 16 samples each asked for" in err


def test_dry_run_prints_settings_that_a_file_may_hold(refimpl, tmp_path):
    code, out, _ = refimpl(
        "fewshot", "train", "--preset", "omniglot-5way-1shot", "--method", "anil", "--dry-run"
    )
    assert code == 0
    (tmp_path / "again.toml").write_text(out)
    code, again, _ = refimpl("fewshot", "train", "--config", "again.toml", "--dry-run")
    assert (code, again) == (0, out)


def test_figures_of_a_run(refimpl, tmp_path):
    pytest.importorskip("matplotlib")
    refimpl(
        "fewshot", "train", *TINY, "--validate-every", 1, "--validation-episodes", 2, "--out", "run", "-q"
    )
    refimpl("fewshot", "test", "run", "--test-episodes", 4, "-q")
    code, out, _ = refimpl("fewshot", "report", "run")
    assert code == 0
    assert [line.rpartition("/")[2] for line in out.split()] == ["fewshot-training.png", "fewshot-test.png"]
    assert all((tmp_path / line).read_bytes().startswith(b"\x89PNG") for line in out.split())


def test_figures_without_matplotlib_are_refused_in_one_line(refimpl, monkeypatch):
    from refimpl.report import canvas

    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    code, _, err = refimpl("fewshot", "report", "run")
    assert code == 2
    assert "figures need matplotlib" in err
