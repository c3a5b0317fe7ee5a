"""Run folders that are not as they should be: one line, nothing written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from commands import assert_one_line, files

from refimpl.experiments.config import resolve
from refimpl.experiments.record import RunFolder
from refimpl.files.storage import npz_bytes

SMALL = ("--dataset", "digits", "--nodes", "2", "--targets", "1", "--rounds", "2", "--local-steps", "1", "-q")


@pytest.fixture
def trained(refimpl, tmp_path):
    code, _, err = refimpl("train", *SMALL, "--out", "run")
    assert (code, err) == (0, "")
    return tmp_path / "run"


def damage_checkpoint_cut(run: Path) -> None:
    path = run / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-100])


def damage_checkpoint_text(run: Path) -> None:
    (run / "checkpoint.npz").write_text("hello")


def damage_checkpoint_shape(run: Path) -> None:
    with RunFolder.open(run) as folder:
        round_, arrays, meta = folder.load_checkpoint()
        folder.save_checkpoint(round_, {name: array[:-1] for name, array in arrays.items()}, meta)


def damage_checkpoint_dtype(run: Path) -> None:
    with RunFolder.open(run) as folder:
        round_, arrays, meta = folder.load_checkpoint()
        folder.save_checkpoint(round_, {k: a.astype(np.float64) for k, a in arrays.items()}, meta)


def damage_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text("not json\n")


def lose_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")


def damage_config_key(run: Path) -> None:
    with open(run / "config.toml", "a") as file:
        file.write("surprise = 1\n")


def damage_config_text(run: Path) -> None:
    (run / "config.toml").write_text("rounds = = 3")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_checkpoint_cut, ["checkpoint.npz"]),
        (damage_checkpoint_text, ["checkpoint.npz"]),
        (damage_checkpoint_shape, ["checkpoint.npz", "expected", "found"]),
        (damage_checkpoint_dtype, ["checkpoint.npz", "float32", "float64"]),
        (damage_metrics, ["metrics.jsonl", "line 1"]),
        (lose_metrics, ["metrics.jsonl", "1..2"]),
        (damage_config_key, ["surprise"]),
        (damage_config_text, ["config.toml"]),
    ],
)
def test_a_damaged_run_is_not_resumed(refimpl, trained, damage, words):
    damage(trained)
    before = files(trained)
    err = assert_one_line(*refimpl("train", "--resume", "--out", "run", "-q"))
    for word in words:
        assert word in err
    assert files(trained) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["meta_model.npz"]),
        (npz_bytes({"conv1.weight": np.zeros((1, 1, 3, 3), dtype=np.float32)}), ["conv1.bias"]),
    ],
)
def test_a_damaged_model_is_not_adapted(refimpl, trained, content, words):
    (trained / "meta_model.npz").write_bytes(content)
    before = files(trained)
    err = assert_one_line(*refimpl("adapt", "run"))
    for word in words:
        assert word in err
    assert files(trained) == before


@pytest.mark.parametrize("poison", ["shape", "nan"])
def test_a_model_of_the_wrong_shape_or_with_nan_is_not_adapted(refimpl, trained, poison):
    with RunFolder.open(trained) as folder:
        arrays = folder.load_model()
        if poison == "shape":
            arrays["conv1.weight"] = arrays["conv1.weight"][1:]
        else:
            arrays["conv1.weight"][0, 0, 0, 0] = np.nan
        folder.save_model(arrays)
    assert "conv1.weight" in assert_one_line(*refimpl("adapt", "run"))
    assert not (trained / "report" / "adapt.json").exists()


def test_an_existing_run_needs_force_or_resume(refimpl, trained):
    before = files(trained)
    err = assert_one_line(*refimpl("train", *SMALL, "--out", "run"))
    assert "--force" in err
    assert "--resume" in err
    assert files(trained) == before
    assert refimpl("train", *SMALL, "--out", "run", "--force", "--seed", 1)[0] == 0
    assert tomllib.loads((trained / "config.toml").read_text())["seed"] == 1


def test_resuming_with_another_setting_is_refused(refimpl, trained):
    err = assert_one_line(*refimpl("train", "--resume", "--out", "run", "--eta", "0.5"))
    assert "eta" in err
    assert "0.5" in err
    assert refimpl("train", "--resume", "--out", "run", "--nodes", "2", "-q")[0] == 0


def test_an_unfinished_run_is_not_adapted(refimpl, tmp_path):
    RunFolder.create("run", resolve(None).table()).close()
    assert "--resume" in assert_one_line(*refimpl("adapt", "run"))
