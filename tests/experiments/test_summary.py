"""Comparisons in numbers: honest means and spreads over seeds and folds, and the tables that show them."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import fields, replace

import pytest
from outcomes import outcome, report

from refimpl.experiments.compare import layout
from refimpl.experiments.compare.claims import claims_of
from refimpl.experiments.compare.plan import Claims, Plan
from refimpl.experiments.compare.summary import Row, curves, gaps, summarise
from refimpl.experiments.compare.work import Outcome
from refimpl.experiments.config import Config

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
