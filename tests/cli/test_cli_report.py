"""`refimpl report`: what is in the folder and on the page, what is repeated, what without matplotlib."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from refimpl.cli import app
from refimpl.errors import DataError
from refimpl.experiments.experiment import reopen
from refimpl.experiments.record import RunFolder
from refimpl.report import canvas, gather, measure
from refimpl.report.subject import find

RUN = ("--dataset", "digits", "--nodes", 2, "--targets", 2, "--rounds", 3, "--local-steps", 1)
SMALL = (*RUN, "--threads", 1, "-q")
EMPTY = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Refuses tags that do not nest, and collects addresses and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in EMPTY:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "gated"
    assert app.run([str(word) for word in ("train", *SMALL, "--out", run)]) == 0
    return run


@pytest.fixture
def gated(refimpl, tmp_path, trained):
    """The trained run in the folder of the test."""
    return Path(shutil.copytree(trained, tmp_path / "gated"))


def test_a_report_is_one_page_that_needs_no_network(refimpl, gated):
    pytest.importorskip("matplotlib")
    code, out, err = refimpl("report", "gated", "--quick", "-q")
    assert (code, err) == (0, "")
    figures = ["training.png", "stationarity.png", "gates-metagater.png", "sparsity.png", "work.png"]
    assert out.splitlines() == [
        str(os.path.join("gated", "report", name)) for name in ["report.html", *figures]
    ]
    page = page_of(gated / "report" / "report.html")
    assert len(page.addresses) == len(figures)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    text = " ".join(page.text)
    assert "target-1" in text  # a row of the nodes' table
    assert "local_steps" in text  # of the configuration
    assert "packages.numba" in text  # of the environment
    assert "accuracy by round needs --full" in text
    assert "the true gap needs --full" in text
    assert sorted(p.name for p in (gated / "report").iterdir()) == sorted(["report.html", *figures])


def test_without_matplotlib_the_page_has_tables_and_says_why(refimpl, gated, monkeypatch):
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    code, out, err = refimpl("report", "gated", "--quick", "-q", "--json")
    assert code == 0
    assert "pip install 'refimpl[plot]'" in err
    assert json.loads(out)["figures"] == []
    page = page_of(gated / "report" / "report.html")
    assert page.addresses == []
    assert "pip install 'refimpl[plot]'" in " ".join(page.text)


def test_a_report_has_nothing_that_is_not_of_its_run(refimpl, gated, tmp_path):
    """Vectors without gates after gated digits, in the same folder: of the first run nothing is left."""
    labels = np.arange(240) % 3
    np.savez("mine.npz", x=np.random.default_rng(0).random((240, 5)) + labels[:, None], y=labels)
    options = ("--method", "fedavg", "--nodes", 1, "--targets", 2, "--rounds", 2, "--classes-per-node", 1)
    assert refimpl("train", "--dataset", "mine.npz", *options, "--out", "mine", "-q")[0] == 0
    pages = []
    for run in ("gated", "mine"):
        assert refimpl("report", run, "--quick", "-q", "--out", "page")[0] == 0
        pages.append(" ".join(page_of(tmp_path / "page" / "report.html").text))
    words = ("metagater", "digits", "rho", "gate_mode", "penalty", "conditional %")
    assert [all(word in page for word in words) for page in pages] == [True, False]
    assert not [word for word in (*words, "snip_keep", "alpha", "concentration") if word in pages[1]]
    assert "snip_keep" not in pages[0]
    assert "(chance)" in pages[1]
    left = {path.name for path in (tmp_path / "page").glob("*.png")}
    assert left == ({"training.png", "work.png"} if canvas.has_matplotlib() else set())


def test_in_full_accuracy_and_true_gap_are_those_of_the_commands_and_computed_once(
    refimpl, gated, monkeypatch
):
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)  # the numbers are looked at
    assert refimpl("report", "gated", "--full", "-q")[0] == 0
    assert not Path("gated/report/theorem.png").exists()  # it would be about other problems
    accuracy = json.loads((gated / "report" / "accuracy-by-round.json").read_text())["metagater"]
    assert list(accuracy) == ["1", "2", "3"]
    adapted = json.loads(refimpl("adapt", "gated", "--json")[1])["nodes"]
    assert accuracy["3"] == np.mean([node["accuracy_after"] for node in adapted])
    found = (gated / "report" / "gap.json").read_text()
    assert refimpl("theory", "gap", "gated", "-q")[0] == 0
    assert (gated / "report" / "gap.json").read_text() == found

    def again(*_, **__):
        raise AssertionError("training was repeated though its results were kept")

    monkeypatch.setattr(gather, "replay", again)
    monkeypatch.setattr(gather.Inspection, "replay", again)
    assert refimpl("report", "gated", "--full", "-q")[0] == 0


def test_unasked_it_does_what_is_quick_and_says_what_is_not(refimpl, gated, monkeypatch):
    """Training is repeated if it was short; the true gap, on all data, is often the longer by far."""
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    gradients = gather.GRADIENTS
    monkeypatch.setattr(gather, "GRADIENTS", 10**9)
    assert refimpl("report", "gated", "-q")[0] == 0
    assert (gated / "report" / "accuracy-by-round.json").is_file()
    assert not (gated / "report" / "gap.json").exists()
    text = " ".join(page_of(gated / "report" / "report.html").text)
    assert "accuracy by round needs" not in text
    assert re.search(r"the true gap needs --full, which solves local problems for about \d{4,} s", text)
    monkeypatch.setattr(gather, "CHEAP_SECONDS", 0.0)
    (gated / "report" / "accuracy-by-round.json").unlink()
    assert refimpl("report", "gated", "-q")[0] == 0
    assert not (gated / "report" / "accuracy-by-round.json").exists()
    monkeypatch.setattr(gather, "GRADIENTS", gradients)
    monkeypatch.setattr(gather, "CHEAP_SECONDS", 60.0)
    assert refimpl("report", "gated", "-q")[0] == 0
    assert (gated / "report" / "accuracy-by-round.json").is_file()
    assert (gated / "report" / "gap.json").is_file()


def test_shares_of_open_channels_are_counted_by_class(gated):
    with RunFolder.open(gated) as folder:
        experiment, w = reopen(folder)
    measures = [measure.measure_node(experiment, w, index) for index in range(2)]
    (found,) = measure.openings(measures)
    y = np.concatenate([node.test.y for node in experiment.target_nodes])
    opened = np.concatenate([one.after["conv2.gate"] for one in measures])
    assert found.layer == "conv2.gate"
    for row, label in zip(found.after, found.classes, strict=True):
        np.testing.assert_allclose(row, opened[y == label].mean(axis=0))
    for row, one in zip(found.varied, measures, strict=True):
        ons = one.after["conv2.gate"].sum(axis=0)
        np.testing.assert_allclose(row * len(one.y), np.minimum(ons, len(one.y) - ons))
    assert measures[0].forward.flops_dense > measures[0].forward.flops * 0.5
    assert measures[0].forward.seconds > 0


def test_the_dense_twin_is_the_same_backbone(refimpl, gated, monkeypatch):
    """With every gate open, the gated network and the one timed beside it give the same logits."""
    with RunFolder.open(gated) as folder:
        experiment, w = reopen(folder)
    seen = []

    def kept(network, w, x, gating):
        seen.append(measure.Predictor(network, w, gating)(x).logits)
        return 1.0, 1.0

    bias = experiment.network.layout.views(w)["conv2.gate.fc2.bias"]
    bias[1::2] = 1e6
    monkeypatch.setattr(measure, "_timed", kept)
    measure.measure_node(experiment, w, 0)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_several_runs_overlay_under_labels_that_tell_them_apart(refimpl, gated, tmp_path):
    pytest.importorskip("matplotlib")
    assert refimpl("train", *SMALL, "--out", "other", "--seed", 1, "--rho", 0.5)[0] == 0
    assert refimpl("train", *SMALL, "--out", "plain", "--method", "fedavg")[0] == 0
    code, _, _ = refimpl("report", "gated", "other", "plain", "--quick", "-q", "--out", "both")
    assert code == 0
    text = " ".join(page_of(tmp_path / "both" / "report.html").text)
    for label in ("metagater seed=0 rho=", "metagater seed=1 rho=0.5", "fedavg"):
        assert label in text
    assert (tmp_path / "both" / "gates-metagater-seed=1-rho=0.5.png").is_file()
    assert not (tmp_path / "gated" / "report" / "report.html").exists()


def test_runs_that_differ_in_much_are_told_apart_by_their_folders(refimpl, gated):
    other = ("--eta", 0.01, "--lam", 1.5, "--beta", 0.3, "--rho", 0.5, "--seed", 1)
    assert refimpl("train", *SMALL, "--out", "other", *other)[0] == 0
    subjects, _ = find([gated, gated.parent / "other"], None)
    assert [subject.label for subject in subjects] == [f"metagater ({one.folder})" for one in subjects]


def test_a_comparison_is_shown_with_its_tables_and_its_rows(refimpl, tmp_path):
    pytest.importorskip("matplotlib")
    plan = ("--methods", "metagater-ungated,metasnip,metagater", "--seeds", "3-4")
    assert refimpl("compare", *plan, *SMALL, "--out", "c")[0] == 0
    table = (tmp_path / "c" / "table.md").read_text()
    assert refimpl("report", "c", "--quick", "-q")[0] == 0
    text = " ".join(page_of(tmp_path / "c" / "report" / "report.html").text)
    for number in re.findall(r"\d+\.\d\d \+- \d+\.\d\d", table):
        assert number.replace("+-", "±") in text
    assert text.count("environment of the training") == 3  # rows of the first seed
    assert "show its rows at the first seed" in text
    assert refimpl("compare", *plan, *SMALL, "--out", "c", "--force")[0] == 0  # its report is its own


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "{", '{"a": 3, "points": 4}', '{"a": {"x": 1}, "points": [{}]}'),
        '{"a": {"1": 1' + "0" * 400 + '}, "points": [{"round": 1, "point": []}]}',
    ],
)
def test_damaged_numbers_that_were_kept_are_one_line(tmp_path, text):
    (tmp_path / "kept.json").write_text(text)
    with pytest.raises(DataError, match=r"kept\.json: expected"):
        gather.stored_accuracy(tmp_path / "kept.json", "a")
    with pytest.raises(DataError, match=r"kept\.json: expected"):
        gather.stored_gaps(tmp_path / "kept.json")
    assert gather.stored_accuracy(tmp_path / "none.json", "a") == {}
    assert gather.stored_gaps(tmp_path / "none.json") == ()


def test_rows_that_share_a_training_share_its_line():
    views = [
        gather.View(label, None, folder=folder, environment={})
        for label, folder in (("a", "one"), ("b", "two"), ("c", "one"))
    ]
    assert [one[:2] for one in gather.trainings(views)] == [(0, "a, c"), (1, "b")]


def test_an_unfinished_run_is_reported_as_far_as_it_goes(refimpl, gated):
    (gated / "meta_model.npz").unlink()
    assert refimpl("report", "gated", "--quick", "-q")[0] == 0
    text = " ".join(page_of(gated / "report" / "report.html").text)
    assert "its training is not finished: refimpl train --resume --out gated" in text


def test_a_run_without_a_finished_round_is_reported(refimpl, gated):
    pytest.importorskip("matplotlib")
    for name in ("meta_model.npz", "checkpoint.npz"):
        (gated / name).unlink()
    (gated / "metrics.jsonl").write_bytes(b"")
    assert refimpl("report", "gated", "-q")[::2] == (0, "")
    assert [path.name for path in (gated / "report").iterdir()] == ["report.html"]


ROUNDS = [
    *('{"round": 1}', '{"round": 1, "loss": "low"}', '{"round": 1, "unknown": 1}'),
    *("", '{"round": 2, "loss": 1}'),
]


@pytest.mark.parametrize("line", ROUNDS)
def test_damaged_rounds_are_one_line(refimpl, gated, line):
    path = gated / "metrics.jsonl"
    whole = path.read_text().splitlines()
    path.write_text("\n".join([line or whole[0], *whole[2:]]) + "\n")
    code, out, err = refimpl("report", "gated", "-q")
    assert (code, out) == (app.WRONG_USE, "")
    assert "metrics.jsonl: expected" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"a": {"b": {"c": {}}}}', '{"a":' + "[" * 900 + "]" * 900 + "}"]
)
def test_a_damaged_environment_is_one_line(refimpl, gated, text):
    (gated / "environment.json").write_text(text)
    code, out, err = refimpl("report", "gated", "--quick", "-q")
    assert (code, out) == (app.WRONG_USE, "")
    assert "environment.json: expected" in err.splitlines()[-1]


def test_a_true_gap_of_a_run_that_has_gone_on_is_solved_for_again(refimpl, gated, monkeypatch):
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    assert refimpl("theory", "gap", "gated", "--rounds", "1", "-q")[0] == 0

    def rounds():
        points = json.loads((gated / "report" / "gap.json").read_text())["points"]
        return [point["round"] for point in points]

    assert rounds() == [1]
    assert refimpl("report", "gated", "--quick", "-q")[0] == 0
    assert rounds() == [1]
    said = []
    (subject,), _ = find([gated], None)
    gathering = gather.Gathering.begin(subject, None, True, 1, said.append)
    steps = gathering.steps()
    gathering.view()
    assert rounds() == [1, 2, 3]  # fewer than GAP_POINTS
    assert len(said) == steps


def test_rows_not_finished_at_the_first_seed_are_not_shown(refimpl, tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    plan = ("--methods", "fedavg,perfedavg", "--seeds", "0-1")
    assert refimpl("compare", *plan, *SMALL, "--out", "c")[0] == 0
    runs, page = tmp_path / "c" / "runs", tmp_path / "c" / "report" / "report.html"
    (runs / "fedavg-seed0" / "report" / "fedavg.json").unlink()
    (subject,), _ = find([tmp_path / "c"], None)
    assert subject.label == "perfedavg"
    (runs / "perfedavg-seed0" / "report" / "perfedavg.json").unlink()
    assert refimpl("report", "c", "--quick", "-q")[0] == 0  # its tables are of the second seed
    assert "environment of the training" not in page.read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ["RUN", "refimpl report --help"]),
        (("nowhere",), ["nowhere", "refimpl train"]),
        (("gated", "gated"), ["twice"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(refimpl, gated, args, words):
    code, out, err = refimpl("report", *args)
    assert (code, out) == (app.WRONG_USE, "")
    assert err.startswith("refimpl: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words)
    assert list((gated / "report").iterdir()) == []


def test_stopped_it_leaves_the_old_report_and_says_how_to_begin_again(refimpl, tmp_path, gated, monkeypatch):
    monkeypatch.setattr(canvas, "find_spec", lambda name: None)
    gated.rename(tmp_path / "my run")
    assert refimpl("report", "my run", "--quick", "-q")[0] == 0
    page = tmp_path / "my run" / "report" / "report.html"
    before = page.read_bytes()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gather, "measure_node", interrupted)
    code, out, err = refimpl("report", "my run", "--quick", "-q")
    assert (code, out) == (app.INTERRUPTED, "")
    assert "to start over: refimpl report 'my run' --quick -q" in err
    assert page.read_bytes() == before
