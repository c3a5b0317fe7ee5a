"""A run knows its data again, wherever they lie, and is never continued or judged with others."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from commands import assert_one_line, files

from refimpl import prepare, reopen, resolve, train
from refimpl.data import load
from refimpl.data.dataset import DataSet
from refimpl.errors import DataError, RunError
from refimpl.experiments.record import RunFolder

SMALL = ("--nodes", "3", "--targets", "2", "--node-min", "20", "--node-max", "24", "--support", "5")
TRAIN = ("train", "--method", "metagater", "--model", "mlp", *SMALL, "--local-steps", "1", "-q")
SAMPLES = 300


def write(path: Path, seed: int = 0, samples: int = SAMPLES, features: int = 6, classes: int = 4) -> Path:
    """A user's own arrays, which depend on the seed in one way only: samples and labels."""
    rng, y = np.random.default_rng(seed), np.arange(samples) % classes
    path.parent.mkdir(exist_ok=True)
    np.savez(path, x=rng.standard_normal((samples, features)).astype(np.float32), y=y)
    return path


@pytest.fixture
def run(refimpl, tmp_path, monkeypatch):
    """A run in the folder `run` on a/mine.npz, begun in the folder a; a command line that is in neither."""
    write(tmp_path / "a" / "mine.npz")
    monkeypatch.chdir(tmp_path / "a")
    assert refimpl(*TRAIN, "--dataset", "mine.npz", "--rounds", 2, "--out", "../run")[0] == 0
    monkeypatch.chdir(tmp_path)
    return refimpl


def unfinish(folder: Path) -> None:
    """Make the run one that has rounds left."""
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 3"))
    (folder / "meta_model.npz").unlink()


COMMANDS = {
    "adapt": ("adapt", "run", "-q"),
    "resume": ("train", "--resume", "--out", "run", "-q"),
    "report": ("report", "run", "--quick", "-q"),
    "gap": ("theory", "gap", "run", "--rounds", "1", "--starts", "1"),
    "export": ("export", "run", "--out", "run.onnx"),
}


@pytest.fixture(params=COMMANDS)
def command(request) -> tuple[str, ...]:
    if request.param == "export" and find_spec("onnx") is None:
        pytest.skip("onnx is not installed")
    return COMMANDS[request.param]


def prepared_for(command: tuple[str, ...], folder: Path) -> None:
    if "--resume" in command:
        unfinish(folder)


# --- runs from the command line


def test_the_same_data_serve_every_command_from_any_folder(run, tmp_path, command):
    prepared_for(command, tmp_path / "run")
    assert run(*command)[0] == 0


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 1}, "other samples or labels, though as many (300)"),
        ({"samples": 301}, "301 samples, expected 300"),
        ({"samples": 40}, "40 samples, expected 300"),  # too few for the nodes, which is not the point
        ({"features": 5}, "samples of shape (1, 1, 5), expected (1, 1, 6)"),
        ({"classes": 3}, "3 classes, expected 4"),
    ],
)
def test_other_data_are_refused_and_it_says_how_they_differ(run, tmp_path, command, other, words):
    prepared_for(command, tmp_path / "run")
    write(tmp_path / "a" / "mine.npz", **other)
    before = files(tmp_path)
    err = assert_one_line(*run(*command))
    assert "run: was begun with other data: mine.npz in" in err
    assert words in err
    assert files(tmp_path) == before


def test_a_run_says_where_its_data_were(run, tmp_path):
    with RunFolder.open(tmp_path / "run") as folder:
        assert folder.config["dataset"] == str(tmp_path / "a" / "mine.npz")
        assert folder.data.data.folder == str(tmp_path / "a")


def test_a_file_that_has_moved_is_found_in_the_data_folder(run, tmp_path):
    (tmp_path / "a").rename(tmp_path / "b")
    err = assert_one_line(*run("adapt", "run", "-q"))
    assert "a/mine.npz are not there; name the folder they are in now with --data-dir" in err
    assert run("adapt", "run", "-q", "--data-dir", "b")[0] == 0
    write(tmp_path / "b" / "mine.npz", seed=1)
    err = assert_one_line(*run("adapt", "run", "-q", "--data-dir", "b"))
    assert (
        f"{tmp_path / 'b'} has other samples or labels, though as many (300) (it was in {tmp_path / 'a'})"
        in err
    )


def test_of_two_files_of_one_name_the_digest_decides(run, tmp_path):
    """Whether the right one lies where it was, or in the data folder."""
    write(tmp_path / "b" / "mine.npz", seed=1)
    assert run("adapt", "run", "-q", "--data-dir", "b")[0] == 0
    for folder in ("a", "b"):
        os.rename(tmp_path / folder / "mine.npz", tmp_path / f"from-{folder}.npz")
    os.rename(tmp_path / "from-a.npz", tmp_path / "b" / "mine.npz")
    os.rename(tmp_path / "from-b.npz", tmp_path / "a" / "mine.npz")
    assert run("adapt", "run", "-q", "--data-dir", "b")[0] == 0
    assert_one_line(*run("adapt", "run", "-q"))


def test_nodes_that_are_dealt_differently_are_refused(run, tmp_path, command):
    config = tmp_path / "run" / "config.toml"
    prepared_for(command, tmp_path / "run")
    config.write_text(config.read_text().replace("seed = 0", "seed = 1"))
    err = assert_one_line(*run(*command))
    assert "run: was begun with other nodes: the samples of mine.npz are the same, but dealt" in err


def test_a_run_of_an_older_version_goes_on_with_a_note(run, tmp_path, command):
    (tmp_path / "run" / "data.json").unlink()
    prepared_for(command, tmp_path / "run")
    write(tmp_path / "a" / "mine.npz")
    code, out, err = run(*command)
    assert code == 0
    page = tmp_path / "run" / "report" / "report.html"
    told = out + err + (page.read_text() if page.exists() else "")
    assert "an older version began this and did not write down its data" in told
    assert not (tmp_path / "run" / "data.json").exists()  # what it began with stays unknown


def test_a_stored_configuration_without_a_key_is_a_note_and_an_unknown_key_is_not(run, tmp_path, command):
    prepared_for(command, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("mix =")))
    code, _, err = run(*command)
    assert code == 0
    assert err.count("refimpl: note: run: an older version stored no mix = 1.0; these defaults are used") == 1
    config.write_text(config.read_text() + "mixx = 1.0\n")
    assert "run: unknown key 'mixx'; did you mean mix?" in assert_one_line(*run(*command))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"dataset": "mine.npz"}', "3"])
def test_a_damaged_record_of_the_data_is_one_line(run, tmp_path, content):
    (tmp_path / "run" / "data.json").write_text(content)
    assert "data.json: expected" in assert_one_line(*run("adapt", "run", "-q"))


def test_comparisons_and_searches_go_on_with_their_own_data_only(refimpl, tmp_path):
    """Also those of their runs that had not been begun."""
    write(tmp_path / "a" / "mine.npz")
    given = ("--dataset", "a/mine.npz", *SMALL, "--rounds", 1, "--local-steps", 1, "--threads", 1, "-q")
    begin = {
        "compare": ("compare", "--methods", "fedavg,reptile", "--seeds", 0, "--out", "c", *given),
        "tune": ("tune", "--method", "fedavg", "--budget", 2, "--out", "t.toml", *given),
    }
    again = {
        "compare": ("compare", "--resume", "--out", "c"),
        "tune": ("tune", "--resume", "--out", "t.toml"),
    }
    for name in begin:
        assert refimpl(*begin[name])[0] == 0
    shutil.rmtree(tmp_path / "c" / "runs" / "reptile-seed0")
    record = (tmp_path / "t.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "t.jsonl").write_text("".join(record[:-1]))
    right = (tmp_path / "a" / "mine.npz").read_bytes()
    write(tmp_path / "a" / "mine.npz", samples=SAMPLES + 1)
    for name in begin:
        err = assert_one_line(*refimpl(*again[name], "-q", "--threads", 1))
        assert "was begun with other data: mine.npz in" in err
        assert "301 samples, expected 300" in err
    (tmp_path / "a" / "mine.npz").write_bytes(right)
    for name in begin:
        assert refimpl(*again[name], "-q", "--threads", 1)[0] == 0


# --- the library


def test_training_in_a_folder_writes_down_its_data_and_holds_them(tmp_path):
    path = write(tmp_path / "mine.npz")
    small = {"method": "fedavg", "nodes": 3, "targets": 1, "local_steps": 1, "support": 5, "rounds": 2}
    first = prepare(resolve(dataset=str(path), **small))
    with RunFolder.create(tmp_path / "run", first.config.table()) as folder:
        assert folder.data is None
        train(first, folder, threads=1)
        assert folder.data.data == first.data
    write(path, seed=1)
    second = prepare(first.config)
    with RunFolder.open(tmp_path / "run") as folder:
        with pytest.raises(RunError, match="other data"):
            train(second, folder, resume=True, threads=1)
        with pytest.raises(RunError, match="other data"):
            reopen(folder)


def test_the_digest_is_of_values_not_of_how_they_are_kept(tmp_path):
    data = load(str(write(tmp_path / "mine.npz")))
    x, y = data.images.reshape(SAMPLES, 6), data.y
    np.savez(tmp_path / "other.npz", y=y.astype(">i2"), x=np.asfortranarray(x.astype(">f4")))
    assert load(str(tmp_path / "other.npz")).digest == data.digest
    strided = np.repeat(data.images, 2, axis=3)[:, :, :, ::2]
    assert replace(data, images=strided).digest == data.digest


def test_the_digest_changes_with_any_sample_label_or_scale():
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(4, 1, 2, 3)
    data = DataSet("some", images, np.array([0, 1, 0, 1]), ("a", "b"))
    pixel = images.copy()
    pixel[3, 0, 1, 2] += 1
    others = [
        replace(data, images=pixel),
        replace(data, images=images[::-1]),
        replace(data, images=images.reshape(4, 1, 3, 2)),
        replace(data, images=images.astype(np.float32)),
        replace(data, y=np.array([0, 1, 1, 1])),
        replace(data, class_names=("a", "b", "c")),
        replace(data, scale=16.0),
        replace(data, mean=(0.5,)),
    ]
    assert len({one.digest for one in (data, *others)}) == 1 + len(others)
    assert replace(data, note="said", class_names=("c", "d")).digest == data.digest


def test_data_are_the_same_whatever_the_training_computes_in():
    small = {"nodes": 3, "targets": 1}
    first, second = (prepare(resolve(dtype=dtype, **small)).data for dtype in ("float32", "float64"))
    assert first == second
    assert first.folder is None
    assert prepare(resolve(seed=1, **small)).data == replace(
        first, dealt=prepare(resolve(seed=1, **small)).data.dealt
    )
    assert prepare(resolve(seed=1, **small)).data.dealt != first.dealt


def test_a_record_that_is_no_identity_is_refused(tmp_path):
    with RunFolder.create(tmp_path / "run", resolve().table(), data=prepare(resolve()).data) as folder:
        whole = json.loads((tmp_path / "run" / "data.json").read_text())
        for key, value in (("samples", "9"), ("digest", None), ("shape", 3), ("folder", 1), ("more", 1)):
            (tmp_path / "run" / "data.json").write_text(json.dumps({**whole, key: value}))
            with pytest.raises(DataError, match=r"data\.json: expected size and digests of a data set"):
                _ = folder.data
