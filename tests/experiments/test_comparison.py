"""Comparisons that run: shared meta-training, stopping and going on, several processes, and their folders."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from outcomes import TINY, plan, report

from refimpl.errors import DataError, InputError, RunError
from refimpl.experiments.compare import layout, work
from refimpl.experiments.compare.plan import Plan
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.config import resolve
from refimpl.experiments.record import RunFolder
from refimpl.report.subject import find

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
