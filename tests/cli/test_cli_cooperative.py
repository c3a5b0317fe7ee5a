"""`refimpl cooperative`: train, measure, predict within a budget and compare, on the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refimpl.cli import supervised
from refimpl.cooperative import measure
from refimpl.cooperative.experiment import Cooperative
from refimpl.errors import DivergenceError
from refimpl.experiments import dealing
from refimpl.report import canvas

TINY = ("--widths", "2,3,4", "--epochs", 2, "--train-samples", 64, "--batch-size", 32, "--calibration", 32)
RUN = (*TINY, "--threads", 1)


@pytest.fixture
def run(refimpl, monkeypatch):
    """A trained run, whose depths are timed in a few calls."""
    monkeypatch.setattr(measure.rows, "__defaults__", (None, measure.BATCHES, 3))
    assert refimpl("cooperative", "train", *RUN, "--out", "run", "-q")[0] == 0
    return "run"


def test_a_run_is_measured_and_used_within_a_budget(refimpl, run, tmp_path):
    code, out, _ = refimpl("cooperative", "evaluate", run, "-q")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["1", "2", "3"]
    found = json.loads((tmp_path / "run/report/cooperative.json").read_text())
    rows = {row["depth"]: row for row in found["rows"]}
    assert rows[1]["flops"] < rows[2]["flops"] < rows[3]["flops"]
    assert [one["batch"] for one in rows[1]["latencies"]] == [1, 32]

    budget = (rows[2]["flops"] + rows[3]["flops"]) / 2
    code, out, _ = refimpl("cooperative", "predict", run, "--budget-flops", budget, "--json")
    one = json.loads(out)
    assert (code, one["depth"], one["flops"]) == (0, 2, rows[2]["flops"])
    assert one["accuracy"] == rows[2]["test"]
    code, out, _ = refimpl("cooperative", "predict", run, "--budget-ms", 1e6, "--batch", 50)
    assert code == 0
    assert "3 of 3, Teammate " in out
    assert "in 100.0% of 8 calls" in out
    code, _, err = refimpl("cooperative", "predict", run, "--budget-ms", 1e-9)
    assert code == 2
    assert "no depth fits the budget" in err


def test_a_model_that_has_diverged_is_refused(refimpl, run, tmp_path):
    with np.load(tmp_path / "run/meta_model.npz") as found:
        huge = {name: np.full_like(values, 1e38) for name, values in found.items()}
    np.savez(tmp_path / "run/meta_model.npz", **huge)
    for words in (("evaluate", run), ("predict", run, "--out", "found.npz")):
        code, out, err = refimpl("cooperative", *words, "-q")
        assert (code, out) == (2, "")
        assert "has diverged (its outputs are not finite); train at a smaller rate" in err.splitlines()[-1]
    assert not (tmp_path / "found.npz").exists()
    words = ("cooperative", "train", *RUN, "--rate", 1e37, "--train-samples", 32, "--epochs", 1)
    code, out, err = refimpl(*words, "--out", "fast", "-q")
    assert (code, out) == (2, "")
    assert "try a smaller rate" in err.splitlines()[-1]
    assert not (tmp_path / "fast/meta_model.npz").exists()


def test_runs_that_diverge_are_named_and_the_others_compared(refimpl, tmp_path, monkeypatch):
    right = supervised.tested

    def diverging(path, trainer):
        if path.name == "labels-0":
            raise DivergenceError("its outputs are not finite")
        return right(path, trainer)

    monkeypatch.setattr(supervised, "tested", diverging)
    words = ("--schemes", "labels,sandwich", "--seeds", "0", "--train-samples", 32, "--epochs", 1)
    code, out, err = refimpl("cooperative", "compare", *RUN, *words, "--out", "both", "-q")
    assert code == 1
    assert "labels-0: its outputs are not finite" in err
    assert "diverged, and in no mean: labels-0" in out
    content = json.loads((tmp_path / "both" / "cooperative.json").read_text())
    assert (content["diverged"], {line["scheme"] for line in content["lines"]}) == (
        ["labels-0"],
        {"sandwich"},
    )


def test_accuracies_on_validation_samples_are_computed_once_for_a_model(refimpl, run, monkeypatch):
    computed, right = [], Cooperative.accuracies

    def accuracies(self, *given):
        computed.append(given[1])
        return right(self, *given)

    monkeypatch.setattr(Cooperative, "accuracies", accuracies)
    predict = ("cooperative", "predict", run, "--json")
    first, again = (json.loads(refimpl(*predict)[1]) for _ in range(2))
    assert computed == ["validation"]
    assert (again["member"], again["accuracy"]) == (first["member"], first["accuracy"])
    path = Path(run, "report", "validation.json")
    path.write_text(path.read_text().replace('"model": "', '"model": "0'))  # as if of another model
    assert json.loads(refimpl(*predict)[1])["member"] == first["member"]
    assert computed == ["validation", "validation"]


def test_samples_of_a_file_are_predicted(refimpl, run, tmp_path):
    x = np.random.default_rng(0).random((7, 1, 8, 8))
    np.savez(tmp_path / "mine.npz", x=x)
    code, out, _ = refimpl("cooperative", "predict", run, "--input", "mine.npz", "--out", "found.npz")
    assert code == 0
    assert "accuracy" not in out
    found = np.load(tmp_path / "found.npz")
    assert found["logits"].shape == (7, 10)
    assert (found["logits"].argmax(axis=1) == found["classes"]).all()
    code, _, err = refimpl("cooperative", "predict", run, "--input", "mine.npz", "--out", "found.npz")
    assert code == 2
    assert "--force" in err
    np.savez(tmp_path / "wrong.npz", x=x[:, :, :4])
    code, _, err = refimpl("cooperative", "predict", run, "--input", "wrong.npz")
    assert code == 2
    assert "wrong.npz: x: expected at least one sample of shape (1, 8, 8)" in err
    for wrong, what in (
        (x * np.nan, "finite numbers"),
        (x * 1e300, "finite numbers"),
        (x.astype(str), "as numbers"),
        (x + 1j, "as numbers"),
    ):
        np.savez(tmp_path / "wrong.npz", x=wrong)
        code, _, err = refimpl("cooperative", "predict", run, "--input", "wrong.npz")
        assert (code, f"wrong.npz: expected x as {what}" in err) == (2, True) or what in err.splitlines()[-1]
    np.savez(tmp_path / "other.npz", z=x)
    assert "expected an array x" in refimpl("cooperative", "predict", run, "--input", "other.npz")[2]


def test_schemes_are_compared_and_finished_runs_are_kept(refimpl, run, tmp_path):
    words = (
        "cooperative",
        "compare",
        *RUN,
        "--schemes",
        "alone,mutual",
        "--seeds",
        "0-1",
        "--out",
        "all",
        "-q",
    )
    code, out, err = refimpl(*words)
    assert code == 0
    assert sum(line.startswith("data:") for line in err.splitlines()) == 1  # of four runs
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        [scheme, str(depth)] for scheme in ("alone", "mutual") for depth in (1, 2, 3)
    ]
    assert "3 of 3, network alone3" in refimpl("cooperative", "predict", "all/alone-0", "-q")[1]
    model = tmp_path / "all/mutual-1/meta_model.npz"
    before = model.stat().st_mtime_ns
    code, out, _ = refimpl(*words, "--json")
    assert code == 0
    assert model.stat().st_mtime_ns == before
    assert json.loads(out)["lines"][0]["seeds"] == 2
    assert json.loads(out)["margin"] == 0
    if canvas.has_matplotlib():
        code, _, err = refimpl(*words, "--figure", "schemes.png", "--margin", 1)
        assert (code, "schemes.png" in err) == (0, True)
        assert (tmp_path / "schemes.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = refimpl(*words, "--rate", 0.2)
    assert code == 2
    assert "other settings" in err


def test_a_finished_run_resumes_and_an_unfinished_one_is_refused(refimpl, run):
    code, out, _ = refimpl("cooperative", "train", "--resume", "--out", run, "-q")
    assert code == 0
    assert "refimpl cooperative evaluate run" in out
    code, out, _ = refimpl("cooperative", "train", "--preset", "digits", "--dry-run")
    Path("again.toml").write_text(out)
    assert refimpl("cooperative", "train", "--config", "again.toml", "--dry-run")[1] == out
    Path(run, "meta_model.npz").unlink()
    code, out, err = refimpl("cooperative", "evaluate", run, "-q")
    assert (code, out) == (2, "")
    assert f"finish it with train --resume --out {run}" in err.splitlines()[-1]


def test_wrong_settings_are_one_line(refimpl):
    for words, expected in (
        (("--model", "mlp"), "no stages"),
        (("--depths", "4"), "depths 1 to 3"),
        (("--validation", "1.5"), "validation must be"),
    ):
        code, out, err = refimpl("cooperative", "train", *words, "--out", "bad", "-q")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert expected in err
    assert not Path("bad").exists()


def test_the_frontier_is_drawn(refimpl, run, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _ = refimpl("cooperative", "evaluate", run, "--figure", "frontier.png", "-q")
    assert code == 0
    assert "frontier.png" in out
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_shows_every_depth_and_the_frontier(refimpl, run, tmp_path):
    code, out, err = refimpl("report", run, "--json", "-q")
    assert (code, err) == (0, "")
    figures = ["frontier.png"] if canvas.has_matplotlib() else []
    assert [Path(name).name for name in json.loads(out)["figures"]] == figures
    text = (tmp_path / "run/report/report.html").read_text()
    rows = json.loads((tmp_path / "run/report/cooperative.json").read_text())["rows"]
    for row in rows:
        assert f"<tr><td>{row['depth']}</td><td>{row['member']}</td>" in text
        assert f"<td>{100 * row['test']:.2f}</td><td>{row['flops'] / 1e6:.3g}</td>" in text
    assert "reconstruction" in text
    assert ("data:image/png" in text) == bool(figures)


@pytest.mark.onnx
def test_a_depth_is_exported(refimpl, run, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    sizes = []
    for depth in (1, 3):
        code, out, _ = refimpl(
            "cooperative", "export", run, "--depth", depth, "--out", f"{depth}.onnx", "--json"
        )
        assert code == 0
        assert json.loads(out)["difference"] < 1e-5
        sizes.append(json.loads(out)["bytes"])
    assert sizes[0] < sizes[1]
    code, _, err = refimpl("cooperative", "export", run, "--depth", 4, "--out", "4.onnx")
    assert code == 2
    assert "choose one of 1, 2, 3" in err


def test_a_comparison_reads_the_data_once(refimpl, monkeypatch):
    read = []
    right = dealing.load
    monkeypatch.setattr(dealing, "load", lambda *where: read.append(where) or right(*where))
    words = ("--schemes", "alone", "--seeds", "0,1", "--train-samples", 32, "--epochs", 1, "--out", "seeds")
    assert refimpl("cooperative", "compare", *RUN, *words, "-q")[0] == 0
    assert len(read) == 1
    assert refimpl("cooperative", "compare", *RUN, *words, "-q")[0] == 0  # tests the runs again
    assert len(read) == 2
