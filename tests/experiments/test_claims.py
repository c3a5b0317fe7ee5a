"""Claims of a comparison: paired differences to a baseline, what may be said of them, and where."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace

import pytest
from outcomes import accuracies, plan

from refimpl.errors import InputError, RunError
from refimpl.experiments.compare import layout
from refimpl.experiments.compare.claims import claims_of
from refimpl.experiments.compare.plan import Claims, Plan, plan_from_text
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.compare.summary import summarise
from refimpl.experiments.config import Config
from refimpl.experiments.differences import holm


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
