"""`refimpl bench`: measures in a process of its own, shows tables or JSON, fails when a result is wrong."""

from __future__ import annotations

import json

import pytest

from refimpl.bench import process, session
from refimpl.bench.candidates import OURS
from refimpl.cli import app


@pytest.fixture(scope="module")
def measured():
    """The events of one real smoke run, in a process of its own."""
    return list(process.listen("refimpl.bench", ["--smallest"], 1))


def replay(monkeypatch, events):
    asked = []

    def listen(module, arguments, threads):
        asked.append((module, list(arguments), threads))
        yield from events

    monkeypatch.setattr(process, "listen", listen)
    return asked


def test_the_smoke_test_measures_everything_there_is(measured):
    results = session.gather(measured)
    assert session.refused(results) == []
    assert {row["pass"] for row in results["kernels"]} == {"forward", "input_grad", "weight_grad"}
    assert {row["candidate"] for row in results["kernels"]} == {OURS, "numpy + BLAS"}
    assert {row["kind"] for row in results["end_to_end"]} == {"round", "adaptation", "inference"}
    assert {row["name"] for row in results["peaks"]} == {"numpy matmul", "tile on registers"}
    for row in (*results["kernels"], *results["end_to_end"]):
        assert row["low"] <= row["seconds"] <= row["high"]
        assert row["gflops"] == pytest.approx(1e-9 * row["executed_flops"] / row["seconds"])
    assert results["machine"]["threads"] == 1
    (total,) = (value for kind, value in measured if kind == "total")
    assert sum(kind == "done" for kind, _ in measured) == total


def test_json_and_file_hold_the_results(measured, monkeypatch, refimpl, tmp_path):
    asked = replay(monkeypatch, measured)
    code, out, err = refimpl("bench", "--smallest", "--json", "--out", tmp_path / "bench.json", "-q")
    assert (code, err) == (0, "")
    assert asked == [("refimpl.bench", ["--smallest", "--clock", "wall"], 1)]
    assert json.loads(out) == session.gather(measured) == json.loads((tmp_path / "bench.json").read_text())


def test_tables_for_people_and_progress_on_stderr(measured, monkeypatch, refimpl):
    replay(monkeypatch, measured)
    code, out, err = refimpl("bench", "--smallest")
    assert code == 0
    for text in ("peak of one core", "of dense", "program", "numpy + BLAS", "largest spread"):
        assert text in out
    assert "compiles" in err
    total = next(value for kind, value in measured if kind == "total")
    assert f"{total}/{total}" in err


def test_a_wrong_result_fails(measured, monkeypatch, refimpl):
    wrong = next(value for kind, value in measured if kind == "kernels")
    why = {key: wrong[key] for key in ("layer", "pass", "batch", "off", "dtype")}
    replay(monkeypatch, [*measured, ("kernels", why | {"candidate": "x", "refused": "x differs"})])
    code, out, _ = refimpl("bench", "--smallest", "-q")
    assert code == app.CHECK_FAILED
    assert "REFUSED: x differs" in out


def test_options_reach_the_measuring_process(measured, monkeypatch, refimpl):
    asked = replay(monkeypatch, measured)
    refimpl("bench", "--only", "end-to-end", "--threads", "2", "-q")
    refimpl("bench", "--only", "kernels", "--clock", "cpu", "-q")
    assert asked == [
        ("refimpl.bench", ["--only", "end-to-end", "--clock", "wall"], 2),
        ("refimpl.bench", ["--only", "kernels", "--clock", "cpu"], 1),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        ("--only", "kernels", "--threads", "2"),
        ("--only", "all"),
        ("--threads", "4096", "--smallest"),
        ("--threads", "2", "--clock", "cpu"),
    ],
)
def test_wrong_use_is_one_line(refimpl, wrong):
    code, out, err = refimpl("bench", *wrong, "-q")
    assert (code, out) == (app.WRONG_USE, "")
    assert len(err.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_one_line(measured, monkeypatch, refimpl, tmp_path):
    asked = replay(monkeypatch, measured)
    code, out, err = refimpl("bench", "--smallest", "--out", "nowhere/bench.json", "-q")
    assert (code, out, err.count("\n"), asked) == (app.WRONG_USE, "", 1, [])  # before it measures
    assert "nowhere/bench.json: expected a file in an existing folder" in err

    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "bench.json").write_text("before")
    monkeypatch.setattr("os.replace", full)
    code, out, err = refimpl("bench", "--smallest", "--out", "bench.json", "-q")
    assert (code, out, err.count("\n")) == (app.WRONG_USE, "", 1)
    assert "bench.json: cannot write: no space left" in err
    assert (tmp_path / "bench.json").read_text() == "before"
