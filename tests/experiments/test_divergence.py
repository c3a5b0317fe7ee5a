"""A model that left the finite numbers is said to have diverged: scored, averaged and recommended nowhere."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from commands import assert_one_line

from refimpl.cli import app
from refimpl.errors import DivergenceError, RefimplError
from refimpl.experiments.compare import layout
from refimpl.experiments.compare.nodes import node_table
from refimpl.experiments.compare.plan import Plan
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.compare.summary import curves, summarise
from refimpl.experiments.compare.work import read_curve
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import adapt_targets, personalise, prepare, train
from refimpl.experiments.tune.search import Search
from refimpl.experiments.tune.trial import Trial, best, jobs, run_trials
from refimpl.federated.adapt import AdaptSettings, NodeReport, divergence, evaluate, report_node
from refimpl.nn import zoo
from refimpl.registry import METHODS
from refimpl.report.canvas import new_figure
from refimpl.report.subject import find
from refimpl.report.theory import THEORY_FIGURES
from refimpl.rng import SeedTree

TINY = {"nodes": 3, "targets": 2, "rounds": 2, "local_steps": 1}
FLAGS = ("--nodes", 3, "--targets", 2, "--rounds", 2, "--local-steps", 1, "--threads", 1, "-q")
NAN = math.nan
GOOD = NodeReport("good", 0.5, 0.8, 1.0, 0.5, 0.25, 0.1, 1000.0, 750.0, 10.0, 5.0, 0.001, 0.002)
BAD = GOOD._replace(node="bad", accuracy_after=NAN, loss_after=NAN, sparsity_mean=NAN, sparsity_spread=NAN)


def problem(dtype="float32"):
    network = zoo.mlp((4, 6, 3), gates=())
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 4)).astype(dtype), rng.integers(0, 3, 8)
    return network, network.layout.initialise(SeedTree(0), dtype), x, y


# --- one model


@pytest.mark.parametrize(
    ("where", "value"), [("fc1.bias", -np.inf), ("fc2.bias", np.inf), ("fc2.bias", np.nan)]
)
def test_a_model_with_a_parameter_that_is_not_finite_has_no_accuracy(where, value):
    """Even where logits are finite, as behind a hidden unit whose bias is -inf: it is always off."""
    network, w, x, y = problem()
    assert math.isfinite(evaluate(network, w, x, y).loss)
    network.layout.views(w)[where][0] = value
    if where == "fc1.bias":
        assert np.isfinite(network.forward(w, x)[0]).all()
    found = evaluate(network, w, x, y)
    assert math.isnan(found.accuracy)
    assert math.isnan(found.loss)
    assert np.isnan(found.closed).all()


def test_a_model_whose_logits_overflow_has_no_accuracy():
    network, w, x, y = problem()
    w *= np.float32(1e25)  # 1e50 in the second layer
    assert np.isfinite(w).all()
    assert math.isnan(evaluate(network, w, x, y).accuracy)


def test_a_model_whose_loss_no_sum_can_hold_has_no_accuracy():
    network, w, x, y = problem("float64")
    w *= 1e60
    assert math.isnan(evaluate(network, w, x, y).accuracy)
    assert not math.isnan(evaluate(network, w * 1e-30, x, y).accuracy)


@pytest.mark.parametrize("eta", [1e25, 1e39])  # logits overflow; the rate itself does
def test_a_node_at_which_adaptation_diverged_says_so(eta):
    network, w, x, y = problem()
    with np.errstate(all="ignore"):
        report = report_node("n", network, w, (x, y), (x, y), AdaptSettings(0.0, eta))
    assert report.diverged
    assert math.isnan(report.accuracy_after)
    assert math.isnan(report.flops_executed)
    assert report.accuracy_before == evaluate(network, w, x, y).accuracy
    assert not report_node("n", network, w, (x, y), (x, y), AdaptSettings(0.0, 0.1)).diverged


def test_a_meta_model_that_is_not_finite_diverged_before_and_after():
    e = prepare(resolve(method="fedavg", **TINY))
    w = np.full(e.network.layout.size, np.nan, "float32")
    reports = adapt_targets(e, w)
    assert all(report.diverged and math.isnan(report.accuracy_before) for report in reports)


@pytest.mark.parametrize("method", [name for name, kind in METHODS.classes().items() if kind.prunes])
def test_sensitivities_that_are_not_finite_choose_nothing(method, recwarn):
    """The gradient overflows at the meta-model, which is finite; any choice by it would be arbitrary."""
    e = prepare(resolve(method=method, **TINY))
    w = e.method.model(e.start()) * np.float32(1e20)
    assert np.isfinite(w).all()
    assert np.isnan(personalise(e, w, e.target_nodes[0]).adapted.w).all()
    assert all(report.diverged for report in adapt_targets(e, w))
    assert list(recwarn) == []


def test_pfedmes_personalised_model_diverges_where_lambda_is_too_large_for_the_rate():
    e = prepare(resolve(method="pfedme", **TINY))
    w = train(e, threads=1).w
    wild = replace(e, config=replace(e.config, lam=1e4, eta_theta=1e4, adapt_steps=30))
    assert all(report.diverged for report in adapt_targets(wild, w))


def test_what_is_told_names_the_count_the_first_node_and_the_remedy():
    told = divergence([GOOD, BAD, BAD._replace(node="worse")])
    assert told.startswith("adaptation diverged at 2 of 3 nodes, first at bad (not finite); try a smaller")
    assert divergence([GOOD]) == ""


# --- training


def test_a_server_step_that_overflows_is_told_of_in_its_round(recwarn):
    """The nodes' answers of the last round are finite; the model made of them is not."""
    e = prepare(resolve(method="reptile", **TINY, mix=1e39))
    with pytest.raises(DivergenceError, match="diverged in round 1 at the server"):
        train(e, threads=1)
    assert list(recwarn) == []


# --- tables


def test_the_table_of_nodes_leaves_diverged_ones_out_of_its_mean_and_counts_them():
    header, (good, bad, mean, spread) = node_table("metagater", [GOOD, BAD])
    at = {name.split()[0]: place for place, name in enumerate(header)}
    assert good[at["accuracy"]] == "80.00"
    assert (bad[at["accuracy"]], bad[at["before"]], bad[at["off"]]) == ("diverged", "50.00", "-")
    assert (mean[0], mean[at["accuracy"]]) == ("mean of 1 of 2 nodes", "80.00")
    assert spread[0] == "spread over nodes (ddof 0)"
    _, (_, none) = node_table("metagater", [BAD])
    assert none[0] == "mean of 0 of 1 nodes"
    assert set(none[1:]) == {"-"}


def test_only_methods_with_trained_gates_have_columns_of_their_masks():
    measured = GOOD._replace(conditional_share=0.5, accuracy_frozen=0.25, class_information=0.125)
    header, (first, *_, spread) = node_table("metagater", [measured, measured])
    assert first[header.index("conditional %") :][:3] == ("50.0", "25.00", "0.125")
    assert spread[header.index("frozen %")] == "0.00"
    assert "conditional %" not in node_table("metasnip", [GOOD])[0]
    assert node_table("metagater", [GOOD])[1][0][header.index("conditional %")] == "-"  # no layer has a gate


def test_only_methods_that_prune_have_a_column_for_it():
    assert "pruned %" not in node_table("metagater", [GOOD])[0]
    header, (first, *_) = node_table("metasnip", [GOOD._replace(accuracy_pruned=0.125)])
    assert first[header.index("pruned %")] == "12.50"
    assert first[header.index("before %")] == "50.00"


def test_rows_are_over_seeds_without_a_diverged_node_and_captions_name_each_deviation(tmp_path):
    config = resolve(method="fedavg", **TINY)
    rows = (("good", config), ("bad", replace(config, eta_theta=1e30)))
    comparison = Comparison.create(tmp_path / "a", Plan(rows, (0, 1), every=1), threads=1)
    outcomes = comparison.run()
    good, bad = summarise(outcomes)
    assert (good.diverged, bad.diverged) == (0, 2)
    assert not math.isnan(good.accuracy_adapted_last_mean)
    assert math.isnan(bad.accuracy_adapted_last_mean)
    text = layout.text(comparison.plan, outcomes)
    assert "bad, seed 1: adaptation diverged at 2 of 2 nodes, first at target-0" in text
    assert "standard deviation over seeds (ddof 1)" in text
    assert "standard deviation over nodes (ddof 0" in text
    (read,) = csv.DictReader(layout.csv_text([bad]).splitlines())
    assert (read["diverged"], read["accuracy_adapted_last_mean"]) == ("2", "")

    assert [o.failure for o in comparison.read()] == [o.failure for o in outcomes]
    for outcome in outcomes[2:]:
        assert [round_ for round_, _ in outcome.accuracy_by_round] == [1, 2]
        assert all(math.isnan(share) for _, share in outcome.accuracy_by_round)
    assert [curve.label for curve in curves(outcomes)] == ["good"]
    subjects, _ = find([tmp_path / "a"], None)
    assert [subject.label for subject in subjects] == ["good", "bad"]


def test_a_seed_that_diverged_at_one_node_is_in_no_mean(tmp_path):
    config = resolve(method="fedavg", **TINY)
    comparison = Comparison.create(tmp_path / "a", Plan((("row", config),), (0, 1)), threads=1)
    comparison.run()
    path = tmp_path / "a" / "runs" / "row-seed1" / "report" / "row.json"
    content = json.loads(path.read_text())
    content["nodes"][1]["accuracy_after"] = content["nodes"][1]["loss_after"] = None
    path.write_text(json.dumps(content))
    outcomes = comparison.read()
    (row,) = summarise(outcomes)
    first = [report.accuracy_after for report in outcomes[0].reports]
    assert (row.seeds, row.diverged) == (2, 1)
    assert row.accuracy_adapted_last_mean == pytest.approx(sum(first) / len(first))
    assert "(1 of 2 seeds)" in layout.text(comparison.plan, outcomes)


def test_a_curve_has_a_gap_where_adaptation_diverged(tmp_path):
    path = tmp_path / "accuracy-by-round.json"
    path.write_text('{"row": {"1": null, "2": 0.5}}')
    curve = read_curve(path)["row"]
    assert math.isnan(curve["1"])
    assert curve["2"] == 0.5


# --- tuning


def trial(number, score, loss=1.0):
    return Trial("fedavg", number, {"eta": 0.1}, score, loss, [], 1.0)


def test_a_setting_whose_adaptation_diverges_is_never_recommended():
    search = Search(
        resolve(method="fedavg", **TINY), {"eta_theta": (1e30, 1e31)}, 1, seeds=(0, 1), validation=1
    )
    ((found,),) = [run_trials(job, lambda told: None, lambda: False) for job in jobs([(search, 0)], None, 1)]
    assert (found.score, found.loss, found.scores) == (None, None, [])
    assert found.failure.startswith("seed 0: adaptation diverged at 1 of 1 nodes")
    assert best([found, trial(1, 0.1)]).trial == 1
    with pytest.raises(RefimplError, match="all trials of fedavg diverged"):
        best([found])


def test_a_record_of_an_earlier_version_with_a_score_of_a_diverged_model_recommends_it_neither():
    assert best([trial(0, 0.9, None), trial(1, 0.8, NAN), trial(2, 0.2)]).trial == 2


def test_tuning_counts_what_diverged(refimpl, tmp_path):
    ranges = ("--keys", "eta_theta", "--range", "eta_theta=0.01:1e30", "--grid", "--budget", 2)
    code, out, _ = refimpl("tune", "--method", "fedavg", *FLAGS, *ranges, "--out", "t.toml")
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["fedavg", "2", "1"]
    assert "eta_theta = 0.01" in (tmp_path / "t.toml").read_text()


# --- commands


@pytest.fixture
def run(refimpl):
    assert refimpl("train", "--method", "fedavg", *FLAGS, "--out", "run")[0] == 0
    return "run"


def test_adapt_says_it_in_a_line_and_exits_with_one(refimpl, run, tmp_path):
    code, out, err = refimpl("adapt", run, "--eta-theta", "1e30", "-q")
    assert code == app.CHECK_FAILED
    (told,) = [line for line in err.splitlines() if not line.startswith("data: ")]
    assert told.startswith("refimpl: adaptation diverged at 2 of 2 nodes, first at target-0")
    assert [line.split()[1] for line in out.splitlines()[1:3]] == ["diverged", "diverged"]
    written = json.loads((tmp_path / "run" / "report" / "adapt.json").read_text())
    assert written["diverged"] == ["target-0", "target-1"]
    assert [node["accuracy_after"] for node in written["nodes"]] == [None, None]
    assert all(node["accuracy_before"] is not None for node in written["nodes"])
    code, out, _ = refimpl("adapt", run, "--json", "-q")
    assert (code, json.loads(out)["diverged"]) == (0, [])


def wild_run(refimpl, method="fedavg"):
    """A run whose configured adaptation diverges."""
    wild = ("--eta-theta", "1e30", "--eta-phi", "0.05")
    assert refimpl("train", "--method", method, *FLAGS, *wild, "--out", "run")[0] == 0


@pytest.mark.parametrize("method", ["fedavg", "metagater"])
def test_a_report_shows_the_training_and_says_what_is_missing(refimpl, tmp_path, monkeypatch, method):
    blank = lambda seed: new_figure(1)[0]  # noqa: E731
    monkeypatch.setitem(THEORY_FIGURES, "gap-by-round", blank)  # it solves for long, and is not looked at
    wild_run(refimpl, method)
    assert refimpl("report", "run", "-q")[0] == 0
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "adaptation diverged at 2 of 2 nodes" in page
    assert "<td>diverged</td>" in page
    assert not re.search(r"\bnan\b", re.sub('src="data:[^"]*"', "", page))


def test_export_refuses_a_diverged_model(refimpl, tmp_path):
    pytest.importorskip("onnx")
    wild_run(refimpl)
    err = assert_one_line(*refimpl("export", "run", "--node", "target-0", "--out", "m.onnx"))
    assert "target-0 has diverged" in err
    assert not (tmp_path / "m.onnx").exists()
    assert refimpl("export", "run", "--out", "m.onnx")[0] == 0  # the meta-model itself is sound


def test_the_onnx_bridge_refuses_parameters_that_are_not_finite():
    pytest.importorskip("onnx")
    from refimpl.crosscheck.bridges.onnx import export

    network, w, *_ = problem("float64")
    w[0] = 1e39  # finite here, infinite in float32
    with pytest.raises(RefimplError, match=r"NaN or infinity in fc1\.weight"):
        export(network, w)


# --- what adaptation would refuse is refused before training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--method", "metasnip", "--gates", "none"),
            "prunes channels of the layers named by gates",
        ),
        (("--method", "metasnip", "--gates", "conv9"), "conv9"),
        (("--method", "metasnip-weights", "--gates", "conv9"), "conv9"),
        (("--method", "fedavg", "--eta-theta", "inf"), "eta_theta must be a finite number"),
    ],
)
def test_a_configuration_that_could_not_be_adapted_is_not_trained(refimpl, tmp_path, options, words):
    err = assert_one_line(*refimpl("train", *FLAGS, *options, "--out", "run"))
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_pruned_weights_need_no_layer_with_gates(refimpl):
    options = ("--method", "metasnip-weights", "--gates", "none")
    assert refimpl("train", *FLAGS, *options, "--out", "run")[0] == 0
    code, out, _ = refimpl("adapt", "run", "--json", "-q")
    assert (code, json.loads(out)["channel_variant"]) == (0, [])
