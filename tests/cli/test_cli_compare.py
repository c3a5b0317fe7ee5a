"""`refimpl compare` and `refimpl demo`: folders, tables, resuming, JSON, and one line for every mistake."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import assert_refused

from refimpl.cli import app, compare
from refimpl.experiments.compare import run as begun
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.record import RunFolder
from refimpl.report import canvas

TINY = ("--nodes", "3", "--targets", "2", "--rounds", "3", "--local-steps", "1", "--threads", "1")
FEW = (*TINY, "--methods", "fedavg,metagater", "--seeds", "0,2", "--out", "a")


def test_a_comparison_prints_and_writes_its_tables(refimpl, tmp_path):
    code, out, err = refimpl("compare", *FEW, "--every", 2)
    assert code == 0
    assert "2 rows at 2 seeds each: 4 trainings" in err
    assert "metagater, seed 2  round 3/3" in err or "metagater, seed 2  adapted" in err
    assert re.match(r"method +local updates +rounds +accuracy % +train s ", out)
    assert "stationarity gap, round" in out
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [row["label"] for row in found["rows"]] == ["fedavg", "metagater"]
    assert [(run["label"], run["seed"]) for run in found["runs"]] == [
        (label, seed) for label in ("fedavg", "metagater") for seed in (0, 2)
    ]
    assert [curve["rounds"] for curve in found["accuracy_by_round"]] == [[2, 3], [2, 3]]
    (row,) = (row for row in found["rows"] if row["label"] == "fedavg")
    assert f"{100 * row['accuracy_adapted_last_mean']:.2f} +- " in out
    with open(tmp_path / "a" / "table.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["train_flops"]) == row["train_flops"]
    assert (tmp_path / "a" / "table.md").read_text().startswith("| method | local updates |")
    with RunFolder.open(tmp_path / "a" / "runs" / "metagater-seed2") as folder:
        assert len(folder.metrics()) == 3
    assert refimpl("adapt", "a/runs/metagater-seed2")[0] == 0


def test_json_is_what_is_written(refimpl, tmp_path):
    code, out, err = refimpl("compare", *FEW, "--json", "-q")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed.pop("folder") == "a"
    assert printed == json.loads((tmp_path / "a" / "results.json").read_text())


def test_interrupted_it_says_how_to_go_on_and_ends_the_same(refimpl, tmp_path, monkeypatch):
    assert refimpl("compare", *FEW, "-q")[0] == 0
    ran, run = [], Comparison.run

    def interrupted(self, on_round, on_adapted, stop):
        return run(self, lambda *told: ran.append(told), on_adapted, lambda: len(ran) >= 5)

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "run", interrupted)
        code, out, err = refimpl("compare", *FEW[:-1], "my b", "-q")
    assert (code, out) == (app.INTERRUPTED, "")
    assert "go on with: refimpl compare --resume --out 'my b'" in err
    assert not (tmp_path / "my b" / "results.json").exists()
    assert len(ran) < 12
    assert refimpl("compare", "--resume", "--out", "my b", "--threads", 1, "-q")[0] == 0
    assert numbers(tmp_path / "my b") == numbers(tmp_path / "a")


def numbers(folder):
    """The rows without what a clock says."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


LONGER = (*FEW[:-2], "--rounds", "40", "-q")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The numbers of a longer comparison that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "a"
    assert app.run(["compare", *LONGER, "--out", str(folder)]) == 0
    return numbers(folder)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals to a group of processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_all_processes_loses_nothing(refimpl, whole, tmp_path, number):
    command = [sys.executable, "-m", "refimpl", "compare", *LONGER, "--threads", "2", "--out", "a"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 300  # on a machine that does other things as well
        while not any(path.read_bytes().count(b"\n") > 2 for path in tmp_path.glob("a/runs/*/metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, number)
        _, err = process.communicate()
    assert process.returncode == (app.INTERRUPTED if number == signal.SIGINT else -number)
    assert "Traceback" not in err
    assert refimpl("compare", "--resume", "--out", "a", "--threads", 1, "-q")[0] == 0
    assert numbers(tmp_path / "a") == whole


def test_a_finished_comparison_is_only_printed_again(refimpl, tmp_path):
    first = refimpl("compare", *FEW, "-q")[1]
    before = (tmp_path / "a" / "table.md").read_bytes()
    assert refimpl("compare", "--resume", "--out", "a", "--threads", 1, "-q") == (0, first, "")
    assert (tmp_path / "a" / "table.md").read_bytes() == before


def test_a_baseline_adds_differences_to_everything_that_is_written(refimpl, tmp_path):
    code, out, _ = refimpl("compare", *FEW, "--baseline", "fedavg", "--margin", 1, "-q")
    assert code == 0
    assert "against fedavg" in out
    folder = tmp_path / "a"
    (claim,) = json.loads((folder / "results.json").read_text())["claims"]
    assert (claim["label"], claim["seeds"]) == ("metagater", 2)
    assert claim["low"] < claim["points"] < claim["high"]
    for shown in (out, (folder / "table.md").read_text()):
        assert f"[{claim['low']:.2f}, {claim['high']:.2f}]" in shown
        assert claim["verdict"] in shown
    with open(folder / "table.csv", newline="") as file:
        assert [row["difference_seeds"] for row in csv.DictReader(file)] == ["", "2"]
    again = ("compare", "--resume", "--out", "a", "--threads", 1, "-q")
    assert refimpl(*again, "--baseline", "fedavg", "--margin", 1) == (0, out, "")
    refused = refimpl(*again, "--baseline", "fedavg", "--margin", 5)
    assert refused[0] == app.WRONG_USE
    assert "states the baseline fedavg and the margin 1" in refused[2]
    assert refimpl("report", "a", "--quick", "--out", "page", "-q")[0] == 0
    assert "against fedavg" in (tmp_path / "page" / "report.html").read_text()


def test_one_method_under_a_varied_key(refimpl, tmp_path):
    arguments = (
        "--methods",
        "metagater",
        "--seeds",
        0,
        "--vary",
        "gates=conv1,conv1+conv2",
        "--out",
        "a",
        "-q",
    )
    code, out, _ = refimpl("compare", *TINY, *arguments)
    assert code == 0
    assert "\nmetagater gates=conv1  " in out
    assert "\nmetagater gates=conv1+conv2  " in out
    runs = {path.name for path in (tmp_path / "a" / "runs").iterdir()}
    assert runs == {"metagater-gates=conv1-seed0", "metagater-gates=conv1+conv2-seed0"}


def test_a_varied_data_set_contradicts_a_preset_of_one(refimpl, tmp_path):
    given = ("--preset", "cifar10", "--vary", "dataset=cifar10,cifar100", "--methods", "fedavg")
    words = ["preset cifar10 is for the data set cifar10, not cifar100", "leave one of them out"]
    assert_refused(refimpl("compare", *given, "--out", "a"), words, tmp_path)


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ("support=20,5000", ["metagater support=5000, seed 0", "5000 support samples asked for"]),
        ("nodes=3,400", ["metagater nodes=400, seed 0", "are missing"]),
        ("gates=conv2,conv9", ["metagater gates=conv9, seed 0", "conv9"]),
        ("per-round=1,4", ["per_round 4 exceeds nodes 3"]),
        ("sizes=none,20+60", ["each of 3 + 2 nodes, got 2 numbers"]),
    ],
)
def test_every_row_is_tried_out_before_anything_is_written(refimpl, tmp_path, vary, words):
    given = ("--methods", "metagater", "--seeds", "0", "--vary", vary, "--out", "a")
    assert_refused(refimpl("compare", *TINY, *given), words, tmp_path)


def test_a_file_with_sections_for_methods(refimpl, tmp_path):
    (tmp_path / "my.toml").write_text("nodes = 3\ntargets = 2\nrounds = 2\n[fedavg]\neta = 0.25\n")
    methods = ("--methods", "fedavg,reptile", "--seeds", 0, "--threads", 1, "--out", "a", "-q")
    assert refimpl("compare", "--config", "my.toml", *methods)[0] == 0
    rows = json.loads((tmp_path / "a" / "plan.json").read_text())["rows"]
    assert [row["config"]["eta"] for row in rows] == [0.25, 0.1]
    assert all(row["config"]["rounds"] == 2 for row in rows)


def test_the_demo_is_the_preset_demo():
    named = compare.make_plan(from_preset="demo")
    assert [config.method for _, config in named.rows] == list(compare.METHODS)
    assert {config.dataset for _, config in named.rows} == {"digits"}
    assert named.seeds == (0, 1, 2)


def test_the_demo_compares_five_methods(refimpl, tmp_path):
    code, out, _ = refimpl("demo", "--seeds", 1, "--seed", 4, "--rounds", 2, "--threads", 1, "-q")
    assert code == 0
    for method in compare.METHODS:
        assert f"\n{method} " in "\n" + out
    assert "stationarity gap" in out
    demo = tmp_path / "runs" / "demo"
    assert [row["method"] for row in json.loads((demo / "results.json").read_text())["rows"]] == list(
        compare.METHODS
    )
    assert json.loads((demo / "plan.json").read_text())["seeds"] == [4]
    assert refimpl("adapt", demo / "runs" / "metagater-seed4")[0] == 0


def test_the_demo_never_overwrites(refimpl, tmp_path):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "mine.txt").write_text("mine")
    code, _, err = refimpl("demo", "--out", "runs/demo", "-q")
    assert code == app.WRONG_USE
    assert "not a comparison" in err
    plan = compare.make_plan(from_preset="demo")
    assert compare.begin(None, "demo", plan, force=False).path == Path("runs/demo-2")


def test_comparisons_begun_at_once_get_a_folder_each(tmp_path, monkeypatch):
    """The second is begun while the first tries its plan out, when no folder says so yet."""
    monkeypatch.chdir(tmp_path)
    plan, check = compare.make_plan(from_preset="demo", seeds=(0,)), begun.check_plan
    left, others = iter(range(2)), []

    def slow(*arguments):
        if next(left, None) is not None:
            others.append(compare.begin(None, "c", plan, force=False))
        return check(*arguments)

    monkeypatch.setattr(begun, "check_plan", slow)
    paths = [compare.begin(None, "c", plan, force=False).path, *(other.path for other in others)]
    assert sorted(path.name for path in paths) == ["c", "c-2", "c-3"]
    assert sorted(os.listdir("runs")) == ["c", "c-2", "c-3"]


WRONG = [
    (("--methods", "fedavg,maml2"), ["maml2", "metagater"]),
    (("--methods", "fedavg,fedavg"), ["rows", "differ"]),
    (("--seeds", "4-0"), ["--seeds", "0-4"]),
    (("--seeds", "one"), ["--seeds"]),
    (("--seeds", "1,1"), ["seeds", "differ"]),
    (("--vary", "rho"), ["--vary", "KEY=VALUE"]),
    (("--vary", "eta=0"), ["eta must be positive"]),
    (("--methods", "fedavg", "--vary", "rho=1"), ["rho", "fedavg"]),
    (("--every", "0"), ["--every"]),
    (("--preset", "nothing"), ["nothing", "demo"]),
    (("--preset", "mnist"), ["--data-dir"]),
    (("--preset", "demo", "--dataset", "mnist"), ["digits", "mnist"]),
    (("--targets", "0"), ["target"]),
    (("--gates", "conv9"), ["conv9"]),
    (("--margin", "1"), ["--margin", "--baseline"]),
    (("--methods", "fedavg", "--baseline", "fedvg"), ["unknown row 'fedvg'", "fedavg"]),
    (("--baseline", "fedavg", "--margin", "-1"), ["--margin"]),
    (("--resume",), ["--out"]),
    (("--resume", "--out", "a", "--seeds", "0"), ["--resume"]),
    (("--resume", "--out", "a", "--rounds", "5"), ["--resume"]),
    (("--resume", "--out", "nowhere"), ["nowhere", "not a comparison"]),
]


@pytest.mark.parametrize(("args", "words"), WRONG, ids=[" ".join(args) for args, _ in WRONG])
def test_a_mistake_is_one_line_and_writes_nothing(refimpl, tmp_path, args, words):
    assert_refused(refimpl("compare", "--threads", 1, *args), words, tmp_path)


def test_figures_are_drawn_where_matplotlib_is(refimpl, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ("--methods", "metasnip", "--vary", "snip_keep=0.3,0.6", "--seeds", "0-1", "--every", 1)
    code, out, _ = refimpl("compare", *TINY, *arguments, "--out", "a", "-q")
    assert code == 0
    assert "accuracy.png, frontier.png" in out
    for name in ("accuracy.png", "frontier.png"):
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_numbers_are_there_all_the_same(refimpl, tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    code, out, _ = refimpl("compare", *FEW, "--every", 2, "-q")
    assert code == 0
    assert "png" not in out
    assert json.loads((tmp_path / "a" / "results.json").read_text())["accuracy_by_round"]
