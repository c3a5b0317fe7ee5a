"""Comparisons: what is compared, shared meta-training, honest means and spreads, and the tables' layout."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

from refimpl.errors import ConfigError, DataError, InputError, RunError
from refimpl.experiments.compare import layout, work
from refimpl.experiments.compare.claims import claims_of
from refimpl.experiments.compare.plan import Claims, Plan, parse_vary, plan_from_text, slug, varied
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.compare.summary import Row, curves, gaps, summarise
from refimpl.experiments.compare.work import Outcome
from refimpl.experiments.config import Config, keys, resolve
from refimpl.experiments.differences import holm
from refimpl.experiments.methods import keys_taken, takes, training_key
from refimpl.experiments.record import RunFolder
from refimpl.federated.adapt import NodeReport
from refimpl.federated.rounds import RoundRecord
from refimpl.registry import METHODS
from refimpl.report.subject import find

TINY = {"nodes": 3, "targets": 2, "rounds": 3, "local_steps": 1}


def report(accuracy, sparsity=0.25):
    return NodeReport("n", 0.5, accuracy, 1.0, 0.5, sparsity, 0.1, 1000.0, 750.0, 10.0, 5.0, 0.001, 0.002)


def record(round_, gap):
    return RoundRecord(round_, (0,), 1.0, gap, 0.1, 3, 7.0, 0.0, 10, 9, 0.25)


def outcome(seed, accuracies, gaps=(4.0, 1.0), sparsities=(0.25, 0.25), **changes):
    records = tuple(record(k + 1, gap) for k, gap in enumerate(gaps))
    reports = tuple(report(*pair) for pair in zip(accuracies, sparsities, strict=False))
    return Outcome("metagater", Config(seed=seed, **changes), records, reports)


def plan(*methods, seeds=(0,), every=0, **options):
    configs = [resolve(method=method, **{**TINY, **options}) for method in methods]
    return Plan(tuple((config.method, config) for config in configs), seeds, every)


# --- rows


def test_row_is_mean_over_nodes_then_mean_and_spread_over_seeds():
    (row,) = summarise([outcome(0, (0.8, 1.0)), outcome(1, (0.6, 0.8), (1.0, 1.0), (0.5, 0.0))])
    assert row.accuracy_adapted_last_mean == pytest.approx(0.8)
    assert row.accuracy_adapted_last_std == pytest.approx(math.sqrt(0.02))  # of 0.9 and 0.7
    assert row.accuracy_unadapted_last_mean == 0.5
    assert row.sparsity_mean == 0.25
    assert row.sparsity_std_over_nodes == pytest.approx(0.125)  # 0 at the first seed, 0.25 at the second
    assert row.gap_first == pytest.approx(2.0)  # geometric mean
    assert row.gap_last == pytest.approx(1.0)
    assert row.adapt_seconds == pytest.approx(0.003)
    assert (row.train_seconds, row.gradients, row.train_flops) == (0.5, 6.0, 14.0)  # of two rounds
    assert (row.floats_sent, row.floats_sent_nonzero) == (20.0, 18.0)
    assert (row.seeds, row.diverged, row.local_steps) == (2, 0, 5)


def test_a_spread_that_is_unknown_at_a_node_is_unknown():
    (row,) = summarise([outcome(0, (0.8, math.nan)), outcome(1, (0.6, 0.8), sparsities=(0.5, math.nan))])
    assert math.isnan(row.accuracy_adapted_last_std)
    assert math.isnan(row.sparsity_std_over_nodes)


def test_a_diverged_seed_is_counted_and_left_out():
    lost = Outcome("metagater", Config(seed=1), failure="training diverged in round 7")
    (row,) = summarise([outcome(0, (0.8, 1.0)), lost])
    assert (row.seeds, row.diverged) == (2, 1)
    assert row.accuracy_adapted_last_mean == pytest.approx(0.9)
    both = Plan((("metagater", Config()),), (0, 1))
    shown = layout.text(both, [outcome(0, (0.8,)), lost])
    assert "metagater, seed 1: training diverged in round 7" in shown
    assert "80.00 (1 of 2 seeds)" in shown
    (none,) = summarise([lost])
    assert math.isnan(none.accuracy_adapted_last_mean)
    assert "diverged" in layout.text(both, [lost])


def test_median_and_worst_node_are_those_of_a_seed_then_the_mean_over_seeds():
    (row,) = summarise([outcome(0, (0.9, 0.5, 0.8), sparsities=(0, 0, 0)), outcome(1, (0.6, 0.7))])
    assert row.accuracy_adapted_last_median == pytest.approx((0.8 + 0.65) / 2)
    assert row.accuracy_adapted_last_worst == pytest.approx((0.5 + 0.6) / 2)
    older = replace(row, accuracy_adapted_last_median=math.nan, accuracy_adapted_last_worst=math.nan)
    for rows, shown in (([row], True), ([older], False), ([older, row], True)):
        header = layout.row_tables(rows)[1][0]
        assert ("median %" in header, "worst %" in header) == (shown, shown)


def test_runs_that_are_left_out_are_counted_in_the_notes_and_in_the_curve():
    lost = replace(outcome(1, ()), reports=(), failure="training diverged in round 7")
    whole = [replace(outcome(0, (0.8,)), accuracy_by_round=((1, 0.5),)), lost]
    text = layout.text(Plan((("metagater", Config()),), (0, 1)), whole)
    assert "left out of every mean, median and worst node: 1 of 2 runs" in text
    assert [curve.left_out for curve in curves(whole)] == [1]
    assert "left out" not in layout.text(Plan((("metagater", Config()),), (0,)), whole[:1])


def test_one_seed_has_no_spread():
    (row,) = summarise([outcome(0, (0.8, 1.0))])
    assert math.isnan(row.accuracy_adapted_last_std)
    assert "90.00 +-" not in layout.text(Plan((("metagater", Config()),), (0,)), [outcome(0, (0.8, 1.0))])


def test_accuracy_by_round_is_of_rounds_all_seeds_have():
    first = replace(outcome(0, (0.8,)), accuracy_by_round=((1, 0.5), (2, 0.7)))
    second = replace(outcome(1, (0.8,)), accuracy_by_round=((2, 0.9),))
    (curve,) = curves([first, second])
    assert (curve.rounds, curve.mean) == ((2,), (pytest.approx(0.8),))
    assert curve.std == (pytest.approx(math.sqrt(0.02)),)
    assert curves([outcome(0, (0.8,))]) == []


def test_gaps_are_those_of_the_first_seed_each_training_once():
    ungated = replace(outcome(3, (0.8,), (4.0, 2.0, 1.0), method="metagater-ungated"), label="ungated")
    snip = replace(ungated, label="snip", config=replace(ungated.config, method="metasnip"))
    fedavg = replace(outcome(3, (0.8,), (math.nan,) * 3, method="fedavg"), label="fedavg")
    labels, rows = gaps([ungated, snip, fedavg, replace(ungated, config=replace(ungated.config, seed=4))])
    assert labels == ["ungated"]
    assert rows == [(1, [4.0]), (2, [2.0]), (3, [1.0])]
    assert gaps([fedavg]) == ([], [])


# --- tables


def written(*outcomes, method="metagater"):
    return layout.text(Plan((("row", Config(method=method)),), (0,)), outcomes)


def test_methods_that_need_it_come_with_a_note():
    reports = tuple(r._replace(weights_off=0.5, flops_executed=1000.0) for r in outcome(0, (0.8,)).reports)
    text = written(replace(outcome(0, (0.8,)), reports=reports), method="metasnip-weights")
    assert "weights 50.0" in text
    assert "they save work in the gradients of convolutions only" in text
    assert "global model" in written(outcome(0, (0.8,)), method="pfedme")


def test_columns_line_up_and_the_caption_says_what_the_numbers_are():
    text = layout.text(Plan((("metagater", Config()),), (0, 1)), [outcome(0, (0.8,)), outcome(1, (0.9,))])
    training, adaptation, gap, notes = text.split("\n\n")
    for block, columns in ((training, layout.TRAINING), (adaptation, layout.ADAPTATION)):
        header, row = block.splitlines()
        assert len(header) == len(row)
        absent = (layout.PRUNED, layout.SAMPLES, layout.CONDITIONAL, layout.FROZEN, layout.INFORMATION)
        assert all((column in header) == (column not in absent) for column in columns)
        assert "85.00 +- 7.07" in row
    assert gap.startswith("stationarity gap, round")
    assert "last round" in notes
    assert "seeds 0, 1" in notes


def test_trained_gates_have_columns_of_their_masks():
    measured = {"conditional_share": 0.25, "class_information": 0.125, "accuracy_frozen": 0.5}
    gated, plain = outcome(0, (0.8, 1.0)), replace(outcome(0, (0.8, 1.0)), label="fedavg")
    gated = replace(gated, reports=tuple(node._replace(**measured) for node in gated.reports))
    header, (first, second) = layout.tables([gated, plain])[1]
    names = [layout.SAMPLES, layout.CONDITIONAL, layout.FROZEN, layout.INFORMATION]
    assert [first[header.index(name)] for name in names] == ["+- 10.0", "25.0", "50.00", "0.125"]
    assert [second[header.index(name)] for name in names] == ["-"] * 4


def test_markdown_has_the_same_cells():
    both = Plan((("metagater", Config()),), (0,)), [outcome(0, (0.8, 1.0))]
    text, lines = layout.text(*both), layout.markdown_text(*both).splitlines()
    row = next(line for line in lines if line.startswith("| metagater "))
    assert [cell.strip() for cell in row.strip("|").split("|")] == text.splitlines()[1].split()
    assert lines[1].startswith("| --- | ---: |")


def test_csv_holds_every_number_in_full():
    rows = summarise([outcome(0, (1 / 3,), (math.nan, math.nan))])
    (read,) = csv.DictReader(io.StringIO(layout.csv_text(rows)))
    assert list(read) == [item.name for item in fields(Row)]
    assert float(read["accuracy_adapted_last_mean"]) == 1 / 3
    assert read["gap_first"] == ""


# --- claims


def accuracies(label, by_seed, **changes):
    """Outcomes of a row: for each seed the accuracies of its nodes, or None where training diverged."""
    found = []
    for seed, own in by_seed.items():
        nodes = tuple(report(value)._replace(node=f"target-{k}") for k, value in enumerate(own or ()))
        failure = "" if own else "training diverged in round 7"
        found.append(replace(outcome(seed, (), **changes), label=label, reports=nodes, failure=failure))
    return found


def compared(*rows, margin=0.0):
    whole = [one for row in rows for one in row]
    return claims_of(whole, Claims(rows[0][0].label, margin))


SEEDS = range(6)
BASE = accuracies("base", dict.fromkeys(SEEDS, (0.8, 0.9)))


def test_a_claim_is_in_points_paired_by_seed_and_node():
    better = accuracies("better", {seed: (0.82 + seed / 1000, 0.93) for seed in SEEDS})
    (one,) = compared(BASE, better)
    assert one.points == pytest.approx(2.625)  # of nodes (2 to 2.5, 3)
    assert one.low < one.points < one.high
    assert (one.label, one.pairs, one.seeds, one.left_out, one.verdict) == ("better", 12, 6, 0, "above")
    (back,) = claims_of([*BASE, *better], Claims("better"))
    assert (back.label, back.points, back.verdict) == ("base", pytest.approx(-2.625), "below")
    assert claims_of(BASE, None) == []


def test_claims_are_adjusted_over_the_rows_that_can_be_paired():
    rows = [
        accuracies(f"row {k}", {s: (0.8 + k * s / 500, 0.9 - k * s / 900) for s in SEEDS}) for k in (1, 2, 3)
    ]
    lost = accuracies("lost", dict.fromkeys(SEEDS))
    *found, none = compared(BASE, *rows, lost)
    assert [one.p_holm for one in found] == pytest.approx(holm([one.p for one in found]))
    assert (none.verdict, none.pairs, none.left_out) == ("nothing to pair", 0, 6)
    assert math.isnan(none.points)
    assert math.isnan(none.p_holm)


@pytest.mark.parametrize(("seeds", "words"), [(1, "one seed"), (2, "only 2 seeds"), (3, "only 3 seeds")])
def test_few_seeds_separate_nothing_and_say_so(seeds, words):
    ours, theirs = (dict.fromkeys(range(seeds), (value,)) for value in (0.9, 0.5))
    (one,) = compared(accuracies("base", theirs), accuracies("row", ours), margin=100.0)
    assert (one.low, one.high) == (-math.inf, math.inf)
    assert one.verdict == f"not separated, {words}"


def test_diverged_runs_are_left_out_of_a_difference_and_counted():
    row = accuracies("row", {seed: (0.8, 0.9) if seed else None for seed in SEEDS})
    (one,) = compared(BASE, row, margin=1.0)
    assert (one.pairs, one.seeds, one.left_out, one.verdict) == (10, 5, 1, "within the margin")
    rows = Plan((("base", Config()), ("row", Config())), tuple(SEEDS), claims=Claims("base", 1.0))
    text = layout.text(rows, [*BASE, *row])
    assert re.search(r"against base +points +95 % interval +p +pairs +seeds +verdict\n", text)
    assert "5 (1 left out)  within the margin" in text
    assert "margin 1 points, stated before the run" in text
    assert "other nodes" not in text


def test_claims_are_in_all_tables():
    row = accuracies("row", {0: (0.75, 0.9)})
    rows = Plan((("base", Config()), ("row", Config(nodes=4))), (0,), claims=Claims("base", afterwards=True))
    text = layout.markdown_text(rows, [BASE[0], *row])
    assert "| row | -2.50 | unbounded | 1.0000 | 2 | 1 | not separated, one seed |" in text
    assert "no margin, stated after the comparison had begun" in text
    assert "other nodes than those of base, so paired by their numbers only: row" in text
    (claim,) = layout.results(rows, [BASE[0], *row], 1)["claims"]
    assert (claim["points"], claim["verdict"]) == (pytest.approx(-2.5), "not separated, one seed")
    whole = [BASE[0], *row]
    base, own = csv.DictReader(layout.csv_text(summarise(whole), claims_of(whole, rows.claims)).splitlines())
    assert (base["difference_points"], base["difference_verdict"]) == ("", "")
    assert float(own["difference_points"]) == pytest.approx(-2.5)
    assert (own["difference_low"], own["difference_p"]) == ("", "1.0")


def test_a_baseline_is_a_row_and_a_margin_a_number():
    with pytest.raises(InputError, match=r"unknown row 'reptil'; did you mean reptile"):
        Plan((("reptile", Config()),), (0,), claims=Claims("reptil"))
    with pytest.raises(InputError, match="margin"):
        Claims("reptile", -1.0)


def test_claims_are_recorded_and_not_changed_afterwards(tmp_path):
    stated = replace(plan("fedavg", "reptile"), claims=Claims("fedavg", 1.0))
    assert plan_from_text("plan.json", json.dumps(stated.table())) == stated
    comparison = Comparison.create(tmp_path / "a", stated)
    assert comparison.claiming(Claims("fedavg", 1.0)).plan == stated
    for other in (Claims("fedavg", 2.0), Claims("reptile", 1.0)):
        with pytest.raises(RunError, match="states the baseline fedavg and the margin 1"):
            comparison.claiming(other)
    later = Comparison.create(tmp_path / "b", replace(stated, claims=None)).claiming(Claims("fedavg", 2.0))
    assert later.plan.claims == Claims("fedavg", 2.0, afterwards=True)
    assert Comparison.open(tmp_path / "b").plan == later.plan
    older = {key: value for key, value in stated.table().items() if key != "claims"}
    assert plan_from_text("plan.json", json.dumps(older)).claims is None


# --- rotation of targets


def fold(number, accuracies, seed=0, **changes):
    reports = tuple(
        report(value)._replace(node=f"target-{2 * number + k}") for k, value in enumerate(accuracies)
    )
    one = outcome(seed, (), nodes=2, targets=2, folds=2, fold=number)
    return replace(one, **{"reports": reports, "accuracy_by_round": ((1, accuracies[0]),), **changes})


def test_the_folds_of_a_seed_count_as_one_seed():
    runs = [fold(0, (0.9, 0.7)), fold(1, (0.5, 0.7)), fold(0, (0.8, 0.8), 1), fold(1, (0.8, 0.8), 1)]
    (row,) = summarise(runs)
    assert (row.seeds, row.diverged) == (2, 0)
    assert row.accuracy_adapted_last_mean == pytest.approx(0.75)
    assert row.accuracy_adapted_last_std == pytest.approx(math.sqrt(0.005))  # of 0.7 and 0.8
    assert row.accuracy_adapted_last_worst == pytest.approx((0.5 + 0.8) / 2)
    assert row.gradients == 6.0  # of one training
    (curve,) = curves(runs)
    assert (curve.mean, curve.std) == ((pytest.approx(0.75),), (pytest.approx(math.sqrt(0.005)),))
    assert [len(values) for _, values in gaps(runs)[1]] == [1, 1]
    others = [replace(run, label="other") for run in runs]
    (claim,) = claims_of([*runs, *others], Claims("metagater"))
    assert (claim.pairs, claim.seeds) == (8, 2)


def test_a_seed_with_a_diverged_fold_is_in_no_mean():
    lost = fold(1, (0.1,), 1, reports=(), failure="training diverged in round 7")
    runs = [fold(0, (0.9, 0.7)), fold(1, (0.5, 0.7)), fold(0, (0.1, 0.1), 1), lost]
    (row,) = summarise(runs)
    assert (row.seeds, row.diverged) == (2, 1)
    assert row.accuracy_adapted_last_mean == pytest.approx(0.7)
    text = layout.text(Plan((("metagater", lost.config),), (0, 1)), runs)
    assert "metagater, seed 1, fold 1: training diverged in round 7" in text
    assert "worst node: 2 of 4 runs" in text
    assert "every node a target once in 2 folds of a seed" in text
    (claim,) = claims_of([*runs, *(replace(run, label="other") for run in runs)], Claims("other"))
    assert (claim.pairs, claim.seeds, claim.left_out) == (4, 1, 1)


def test_a_comparison_runs_every_fold(tmp_path):
    rotated = plan("fedavg", nodes=3, targets=3, folds=2, rounds=1)
    comparison = Comparison.create(tmp_path / "a", rotated, threads=1)
    outcomes = comparison.run()
    assert sorted(path.name for path in (tmp_path / "a" / "runs").iterdir()) == [
        "fedavg-seed0-fold0",
        "fedavg-seed0-fold1",
    ]
    assert [r.node for o in outcomes for r in o.reports] == [f"target-{number}" for number in range(6)]
    runs = layout.results(rotated, outcomes, 1)["runs"]
    assert [(run["seed"], run["fold"]) for run in runs] == [(0, 0), (0, 1)]
    assert [len(one.subjects()) for one in find([tmp_path / "a"], None)[1]] == [1]


# --- plans


def test_metasnip_shares_the_training_of_the_ungated_method():
    config = resolve(method="metagater-ungated")
    for method in ("metasnip", "metasnip-weights"):
        pruned = replace(config, method=method, snip_keep=0.3, eta_theta=1.0, gates=["conv1"])
        assert training_key(config) == training_key(pruned)
    gated = replace(config, method="metagater")
    assert training_key(config) != training_key(gated)
    assert training_key(gated) != training_key(replace(gated, rho=0.5))
    assert training_key(gated) != training_key(replace(gated, gates=["conv1"]))
    assert training_key(config) != training_key(replace(config, seed=1))
    assert training_key(config) != training_key(replace(config, eta=0.5))


def test_a_plan_is_read_back_as_it_was_written():
    whole = plan("metagater", "metasnip", seeds=(3, 1), every=2)
    assert plan_from_text("plan.json", json.dumps(whole.table())) == whole
    for text in ("{", "[]", "{}", json.dumps({**whole.table(), "rows": [{"label": "a", "config": {}}]})):
        with pytest.raises(DataError, match=r"plan\.json: expected a comparison's plan"):
            plan_from_text("plan.json", text)


@pytest.mark.parametrize(
    ("rows", "seeds", "words"),
    [((), (0,), "rows"), (("a", "a"), (0,), "rows"), (("a",), (), "seeds"), (("a",), (1, 1), "seeds")],
)
def test_plans_that_make_no_sense_are_refused(rows, seeds, words):
    with pytest.raises(ConfigError, match=words):
        Plan(tuple((row, Config()) for row in rows), seeds)
    with pytest.raises(ConfigError, match="no target nodes"):
        Plan((("a", Config(targets=0)),), (0,))


def test_varied_keys_multiply_and_apply_to_methods_that_take_them():
    vary = [parse_vary(text) for text in ("rho=0.001,0.01", "snip-keep=0.3,0.5", "rounds=5")]
    rows = dict(varied(("metagater", "metasnip", "fedavg"), vary))
    assert list(rows) == [
        "metagater rho=0.001 rounds=5",
        "metagater rho=0.01 rounds=5",
        "metasnip snip_keep=0.3 rounds=5",
        "metasnip snip_keep=0.5 rounds=5",
        "fedavg rounds=5",
    ]
    assert rows["metagater rho=0.01 rounds=5"] == resolve(method="metagater", rho=0.01, rounds=5)
    with pytest.raises(ConfigError, match="mix plays no part in fedavg"):
        list(varied(["fedavg"], [("mix", [0.5])]))


def test_a_varied_data_set_or_model_brings_the_settings_of_its_own():
    """The same as if it were the only one: rates, sizes and network of its preset, gates of its model."""
    rows = dict(varied(["fedavg"], [parse_vary("dataset=digits,mnist,cifar10")]))
    for name in ("digits", "mnist", "cifar10"):
        assert rows[f"fedavg dataset={name}"] == resolve(method="fedavg", dataset=name)
    assert rows["fedavg dataset=mnist"].eta != rows["fedavg dataset=cifar10"].eta
    gates = [config.gates for _, config in varied(["metagater"], [parse_vary("model=digits,mlp")])]
    assert gates == [["conv2"], ["fc1"]]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("gates=conv1,conv1+conv2,none", [["conv1"], ["conv1", "conv2"], []]),
        ("local-steps=1, 5", [1, 5]),
        ("eta=1e-3", [1e-3]),
        ("weighted=on,off", [True, False]),
        ("gate_mode=hard,ste", ["hard", "ste"]),
    ],
)
def test_values_have_the_type_of_their_key(text, values):
    assert parse_vary(text)[1] == values


@pytest.mark.parametrize(
    "text", ["rho", "rho=", "rhoo=1", "rho=x", "rounds=1.5", "weighted=maybe", "method=maml"]
)
def test_values_of_another_type_are_refused_in_one_line(text):
    with pytest.raises(InputError, match="--vary") as caught:
        parse_vary(text)
    assert "\n" not in str(caught.value)


def test_every_method_has_its_keys_and_they_are_keys():
    names = set(keys())
    assert all(keys_taken(method) <= names for method in METHODS)
    assert takes("fedavg", "rounds")
    assert takes("fedavg", "eta_theta")
    assert not takes("fedavg", "rho")


@pytest.mark.parametrize("method", METHODS)
def test_keys_a_method_does_not_take_do_not_change_its_method(method):
    """What `keys_taken` leaves out must be without effect: the built method stays equal."""
    from refimpl.experiments.experiment import build_network
    from refimpl.experiments.methods import build_method, is_gated

    config = resolve(method=method)
    network = build_network(config, (1, 8, 8), 10, is_gated(config))
    built = repr(build_method(config, network))
    for item in keys().values():
        if item.type == "float" and not takes(method, item.name):
            other = replace(config, **{item.name: getattr(config, item.name) / 2})
            assert repr(build_method(other, network)) == built, item.name


def test_labels_become_file_names():
    assert slug("metagater gates=conv5+conv6 rho=1e-05") == "metagater-gates=conv5+conv6-rho=1e-05"
    assert "/" not in slug("dataset=/a b/c.npz")


# --- running


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of a gated and two ungated rows, with accuracy by round, and what was told of it."""
    path, told = tmp_path_factory.mktemp("comparison") / "whole", []
    comparison = Comparison.create(
        path, plan("metagater", "metagater-ungated", "metasnip", every=2), threads=1
    )
    steps = comparison.steps()
    outcomes = comparison.run(
        lambda cell, record: told.append((cell.label, record.round)),
        lambda cell, accuracy: told.append((cell.label, "adapted")),
    )
    assert steps == len(told)
    return comparison, outcomes, told


def values(outcome):
    """An outcome without what a clock says."""
    reports = [r._replace(seconds_gate=0.0, seconds_backbone=0.0) for r in outcome.reports]
    losses = [(record.round, record.loss, record.nodes) for record in outcome.records]
    return outcome.label, reports, losses, outcome.accuracy_by_round


def test_shared_trainings_run_once_and_the_last_round_is_reported(finished):
    _, (gated, ungated, snip), told = finished
    trained = [(label, r) for label in ("metagater", "metagater-ungated") for r in (1, 2, 3)]
    assert told == [
        *trained,
        *((label, "adapted") for label in ("metagater", "metagater-ungated", "metasnip")),
    ]
    assert ungated.records == snip.records
    assert len(gated.records) == 3
    assert [r.sparsity_mean for r in ungated.reports] == [0.0] * 2
    assert [r.sparsity_mean for r in snip.reports] == pytest.approx([0.5] * 2)
    assert all(r.flops_executed < r.flops_dense for r in snip.reports)
    for outcome in (gated, ungated, snip):
        assert [round_ for round_, _ in outcome.accuracy_by_round] == [2, 3]
        last = sum(r.accuracy_after for r in outcome.reports) / len(outcome.reports)
        assert outcome.accuracy_by_round[-1][1] == pytest.approx(last)


def test_the_numbers_are_those_of_training_and_adapting_by_hand(finished):
    from refimpl.experiments.experiment import adapt_targets, prepare, train

    experiment = prepare(resolve(method="metagater", **TINY))
    reports = adapt_targets(experiment, train(experiment).w)
    assert values(finished[1][0])[1] == [r._replace(seconds_gate=0.0, seconds_backbone=0.0) for r in reports]


def test_stopped_anywhere_it_goes_on_and_repeats_nothing(finished, tmp_path):
    whole, wanted, all_told = finished
    told = []

    def attempt(stop_after):
        comparison = (Comparison.open if told else Comparison.create)(
            *((tmp_path / "a",) if told else (tmp_path / "a", whole.plan)), threads=1
        )
        already = len(told)
        return comparison.run(
            lambda cell, record: told.append((cell.label, record.round)),
            lambda cell, accuracy: told.append((cell.label, "adapted")),
            lambda: len(told) - already >= stop_after,
        )

    for _ in range(20):
        try:
            outcomes = attempt(2)
            break
        except KeyboardInterrupt:
            continue
    assert sorted(map(str, told)) == sorted(map(str, all_told))
    assert [values(outcome) for outcome in outcomes] == [values(outcome) for outcome in wanted]
    for name in ("metagater-seed0", "metagater-ungated-seed0"):
        model = (tmp_path / "a" / "runs" / name / "meta_model.npz").read_bytes()
        assert model == (whole.path / "runs" / name / "meta_model.npz").read_bytes()


def test_two_processes_find_the_same(finished, tmp_path):
    whole, wanted, _ = finished
    comparison = Comparison.create(tmp_path / "a", whole.plan, threads=2)
    assert [values(outcome) for outcome in comparison.run()] == [values(outcome) for outcome in wanted]


def test_a_diverging_run_does_not_stop_the_others(tmp_path):
    good, bad = (resolve(method="fedavg", **{**TINY, "rounds": 8, "eta": eta}) for eta in (0.1, 1e6))
    comparison = Comparison.create(tmp_path / "a", Plan((("bad", bad), ("good", good)), (0,)), threads=1)
    first, second = comparison.run()
    assert "diverged in round" in first.failure
    assert first.reports == ()
    assert not second.failure
    assert len(second.reports) == 2


def test_seconds_are_the_median_of_repeats(monkeypatch):
    seconds = iter((9.0, 1.0, 2.0))

    def adapted(*_):
        gate = next(seconds)
        return SimpleNamespace(adapted=SimpleNamespace(seconds_gate=gate, seconds_backbone=10 * gate))

    monkeypatch.setattr(work, "REPEATS", 3)
    monkeypatch.setattr(work, "personalise", adapted)
    timed = work._timed(None, None, None, report(0.5))
    assert (timed.seconds_gate, timed.seconds_backbone) == (2.0, 20.0)


# --- folders


def test_an_existing_comparison_needs_force_and_foreign_files_stay(tmp_path, finished):
    some = finished[0].plan
    Comparison.create(tmp_path / "a", some)
    with pytest.raises(RunError, match=r"--resume or replace it with --force"):
        Comparison.create(tmp_path / "a", some)
    Comparison.create(tmp_path / "a", some, force=True)
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match=r"would delete mine\.txt"):
        Comparison.create(tmp_path / "a", some, force=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="not a comparison"):
        Comparison.create(tmp_path / "b", some, force=True)
    with pytest.raises(RunError, match="not a comparison"):
        Comparison.open(tmp_path / "b")


def test_a_comparison_in_use_is_not_replaced(tmp_path):
    comparison = Comparison.create(tmp_path / "a", plan("fedavg", rounds=1), threads=1)
    comparison.run()
    with RunFolder.open(tmp_path / "a" / "runs" / "fedavg-seed0"), pytest.raises(RunError, match="in use"):
        Comparison.create(tmp_path / "a", comparison.plan, force=True)
    assert len(comparison.run()) == 1  # all of it is still there


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    for options, words in (({"gates": ["conv9"]}, "conv9"), ({"nodes": 1000}, "missing")):
        with pytest.raises(InputError, match=words):
            Comparison.create(tmp_path / "a", plan("fedavg", "metagater", **options))
        assert not (tmp_path / "a").exists()


def test_a_run_that_is_not_the_plans_is_refused(finished, tmp_path):
    Comparison.create(tmp_path / "a", plan("fedavg", rounds=1), threads=1).run()
    other = Comparison(tmp_path / "a", plan("fedavg", rounds=2), threads=1)
    with pytest.raises(RunError, match="another run"):
        other.run()


def test_rounds_that_are_missing_are_one_line(tmp_path):
    comparison = Comparison.create(tmp_path / "a", plan("fedavg", rounds=2), threads=1)
    comparison.run()
    path = tmp_path / "a" / "runs" / "fedavg-seed0" / "metrics.jsonl"
    for text in (b"", path.read_bytes().splitlines(keepends=True)[0]):
        path.write_bytes(text)
        with pytest.raises(DataError, match=r"metrics\.jsonl: expected rounds 1\.\.2"):
            comparison.read()


def test_damaged_reports_are_one_line(tmp_path):
    comparison = Comparison.create(tmp_path / "a", plan("fedavg", rounds=1), threads=1)
    comparison.run()
    path = tmp_path / "a" / "runs" / "fedavg-seed0" / "report" / "fedavg.json"
    for text in ("{", "{}", '{"nodes": [{}], "data": ""}'):
        path.write_text(text)
        with pytest.raises(DataError, match=r"fedavg\.json: expected"):
            comparison.run()
