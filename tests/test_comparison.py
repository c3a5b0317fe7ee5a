"""Comparisons: shared meta-training, honest means and spreads, and the table's layout."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from refimpl.comparison import Outcome, Runner, compare, summarise, table, training_key
from refimpl.config import Config, resolve
from refimpl.federated.adapt import NodeReport
from refimpl.federated.rounds import RoundRecord


def report(accuracy, sparsity=0.25):
    return NodeReport("n", 0.5, accuracy, 1.0, 0.5, sparsity, 0.1, 1000.0, 750.0, 10.0, 5.0, 0.001, 0.002)


def record(round_, gap):
    return RoundRecord(round_, (0,), 1.0, gap, 0.1, 1, 1.0, 0.0, 10, 10, 0.1)


def outcome(seed, accuracies, gaps):
    records = tuple(record(k + 1, gap) for k, gap in enumerate(gaps))
    return Outcome(Config(seed=seed), records, tuple(report(a) for a in accuracies), 2.0 + seed)


def test_row_is_mean_over_nodes_then_mean_and_spread_over_seeds():
    row = summarise([outcome(0, (0.8, 1.0), (4.0, 1.0)), outcome(1, (0.6, 0.8), (1.0, 1.0))])
    assert row.accuracy_after == pytest.approx(0.8)
    assert row.accuracy_spread == pytest.approx(math.sqrt(0.02))  # of 0.9 and 0.7
    assert row.gap_first == pytest.approx(2.0)  # geometric mean
    assert row.gap_last == pytest.approx(1.0)
    assert row.adapt_seconds == pytest.approx(0.003)
    assert row.train_seconds == pytest.approx(2.5)
    assert row.sparsity_spread == 0.0


def test_methods_without_a_gap_show_none():
    row = summarise([outcome(0, (0.8,), (math.nan, math.nan))])
    assert math.isnan(row.gap_last)
    assert table([row]).splitlines()[1].split()[-1] == "-"


def test_methods_that_need_it_come_with_a_note():
    plain = summarise([outcome(0, (0.8,), (4.0, 1.0))])
    weights = replace(plain, method="metasnip-weights", flops_executed=plain.flops_dense, weights_off=0.5)
    lines = table([weights, replace(plain, method="pfedme")]).splitlines()
    assert "weights 50.0" in lines[1]
    assert "neither executed FLOPs nor time" in "".join(lines[3:])
    assert any(line.startswith("pfedme: ") and "global model" in line for line in lines[3:])


def test_metasnip_shares_the_training_of_the_ungated_method():
    config = resolve(method="metagater-ungated")
    for method in ("metasnip", "metasnip-weights"):
        pruned = replace(config, method=method, snip_keep=0.3, eta_theta=1.0)
        assert training_key(config) == training_key(pruned)
    assert training_key(config) != training_key(replace(config, rho=0.5))
    assert training_key(config) != training_key(replace(config, method="metagater"))
    assert training_key(config) != training_key(replace(config, seed=1))


def test_runner_trains_shared_methods_once_and_reports_the_last_round():
    rounds = []
    runner = Runner(on_round=lambda config, entry: rounds.append((config.method, entry.round)))
    configs = [resolve(method=method, rounds=2) for method in ("metagater-ungated", "metasnip")]
    (ungated,), (snip,) = compare(configs, [0], runner)
    assert rounds == [("metagater-ungated", 1), ("metagater-ungated", 2)]
    assert ungated.records == snip.records
    assert [r.sparsity_mean for r in ungated.reports] == [0.0] * 10
    assert [r.sparsity_mean for r in snip.reports] == pytest.approx([0.5] * 10)
    assert all(r.flops_executed < r.flops_dense for r in snip.reports)


def test_a_stopped_runner_raises():
    with pytest.raises(KeyboardInterrupt):
        Runner(stop=lambda: True).run(resolve(rounds=3))


def test_columns_line_up():
    lines = table([summarise([outcome(0, (0.8,), (4.0, 1.0))])]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].startswith("method")
