"""`refimpl tickets`: find, train, test, patterns and the demo, on the embedded digits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refimpl.errors import DivergenceError
from refimpl.fewshot.tickets import comparison

TINY = ("--preset", "digits-2way-1shot", "--rounds", 3, "--tasks", 2, "--validate-every", 0, "--threads", 1)


def test_find_train_and_test_a_ticket(refimpl, tmp_path):
    pmt = ("--finder", "pmt", "--length", 2, "--delta", 0.0)
    code, out, _ = refimpl("tickets", "find", *TINY, *pmt, "--out", "pmt", "-q")
    assert code == 0
    assert "iteration 3 of 3 (rule min, delta 0)" in out
    assert "conv1 81/144, conv2 869/4608" in out  # 950 in all; 950*6*144/(6*144 + 2*4608) = 81.4
    assert refimpl("tickets", "train", "pmt", "-q")[0] == 0
    code, out, _ = refimpl("fewshot", "test", "pmt/trained", "--test-episodes", 4, "--json", "-q")
    assert code == 0
    with (
        np.load(tmp_path / "pmt/trained/meta_model.npz") as model,
        np.load(tmp_path / "pmt/mask.npz") as mask,
    ):
        for name in ("conv1.weight", "conv2.weight"):
            assert not model[name][~mask[name]].any()
    code, _, err = refimpl("tickets", "find", *TINY, *pmt, "--out", "pmt")
    assert code == 2
    assert "--force" in err
    assert refimpl("tickets", "find", "--resume", "--out", "pmt", "-q")[0] == 0
    code, _, err = refimpl("tickets", "find", "--resume", "--pruned", 0.5, "--out", "pmt")
    assert code == 2
    assert "--resume takes no settings" in err


def test_tickets_share_a_dense_run_and_are_compared(refimpl, tmp_path):
    code, _, _ = refimpl("tickets", "find", *TINY, "--finder", "mwt", "--every", 1, "--out", "mwt", "-q")
    assert code == 0
    code, _, _ = refimpl("tickets", "find", "--finder", "omt", "--dense", "mwt/dense", "--out", "omt", "-q")
    assert code == 0
    code, _, err = refimpl("tickets", "find", *TINY, "--dense", "mwt/dense", "--out", "other")
    assert code == 2
    assert "are those of that run" in err
    code, out, _ = refimpl("tickets", "patterns", "mwt", "omt", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["overlap"]["conv2.weight"] == [1.0, 1.0]  # only their first layers differ
    assert 0 < found["overlap"]["conv1.weight"][1] < 1
    assert found["hamming"]["conv2.weight"] == [[0, 0], [0, 0]]
    assert found["pruned"]["conv1.weight"][0] == found["pruned"]["conv1.weight"][1]
    (trace,) = found["training"]
    assert trace["iterations"] == [1, 2, 3]
    assert trace["occurrence"]["conv1.weight"][-1] == 1.0
    code, out, _ = refimpl("tickets", "patterns", "mwt", "omt")
    assert code == 0
    assert "dense training of mwt" in out


def samples(path, seed):
    """Twelve classes of five samples each."""
    x = np.random.default_rng(seed).random((60, 1, 8, 8))
    np.savez(path, x=x, y=np.repeat(np.arange(12), 5))


def test_a_ticket_is_found_and_trained_on_the_data_that_it_was_begun_with(refimpl, tmp_path):
    samples(tmp_path / "mine.npz", 0)
    sizes = ("--ways", 2, "--queries", 2, "--test-queries", 2, "--rounds", 1, "--finder", "rm")
    find = ("tickets", "find", "--dataset", "mine.npz", *sizes, "-q")
    assert refimpl(*find, "--out", "ticket")[0] == 0
    assert refimpl("tickets", "train", "ticket", "-q")[0] == 0
    samples(tmp_path / "mine.npz", 1)
    (tmp_path / "ticket" / "ticket.json").unlink()
    for words in (
        ("find", "--resume", "--out", "ticket"),
        ("find", "--dense", "ticket/trained", "--finder", "rm", "--out", "other"),
    ):
        code, _, err = refimpl("tickets", *words, "-q")
        assert code == 2, err
        assert "was begun with other data: mine.npz in" in err
        assert "other samples or labels, though as many (60)" in err
    assert not (tmp_path / "other").exists()
    samples(tmp_path / "mine.npz", 0)
    assert refimpl("tickets", "find", "--resume", "--out", "ticket", "-q")[0] == 0
    samples(tmp_path / "mine.npz", 1)
    code, _, err = refimpl("tickets", "train", "ticket", "--out", "again", "-q")
    assert code == 2
    assert "ticket: was begun with other data" in err


def test_a_network_that_diverges_is_counted_and_in_no_mean(refimpl, tmp_path):
    words = ("--finders", "sr", "--seeds", "0-1", "--test-alpha", 1e30, "--test-episodes", 4, "--out", "t")
    code, out, err = refimpl("tickets", "compare", *TINY, *words, "-q")
    assert code == 1
    assert out.count("2 of 2 seeds diverged") == 2
    assert "adaptation diverged in 2 of 2 rows, first in dense (not finite)" in err.splitlines()[-1]
    rows = json.loads((tmp_path / "t" / "comparison.json").read_text())["rows"]
    assert [(row["accuracy"], row["diverged"], row["episodes"]) for row in rows] == [(None, 2, None)] * 2


def test_what_does_not_diverge_in_training_is_compared_all_the_same(refimpl, tmp_path, monkeypatch):
    right = comparison._sparse

    def diverging(run, plan, workshop, place, network, share):
        if network == "sr" and run.config.seed == 0:
            raise DivergenceError("not finite")
        return right(run, plan, workshop, place, network, share)

    monkeypatch.setattr(comparison, "_sparse", diverging)
    words = ("--finders", "sr,rm", "--seeds", "0-1", "--test-episodes", 4, "--out", "t")
    code, out, err = refimpl("tickets", "compare", *TINY, *words, "-q")
    assert code == 1
    assert "training or adaptation diverged in 1 of 3 rows, first in sr" in err.splitlines()[-1]
    dense, sr, rm = json.loads((tmp_path / "t" / "comparison.json").read_text())["rows"]
    assert [row["diverged"] for row in (dense, sr, rm)] == [0, 1, 0]
    assert sr["reasons"] == ["seed 0, not finite", ""]
    assert "1 of 2 seeds diverged" in out
    assert dense["in_all"]["flops"] == 1
    assert sr["in_all"]["flops"] == pytest.approx(rm["in_all"]["flops"], rel=0.3)  # both of dense training
    assert sr["episodes"] is not None


def test_a_dense_training_that_diverges_is_trained_once_and_takes_those_that_need_it_along(refimpl, tmp_path):
    words = ("--finders", "mwt,rr,rm", "--seeds", "0", "--alpha", 1e30, "--test-episodes", 4, "--out", "t")
    code, out, err = refimpl("tickets", "compare", *TINY, *words, "-q")
    assert code == 1
    last = err.splitlines()[-1]
    assert "diverged in 4 of 4 rows, first in dense: seed 0, training diverged in round 1 at node" in last
    rows = json.loads((tmp_path / "t" / "comparison.json").read_text())["rows"]
    dense, mwt, rr, rm = (row["reasons"] for row in rows)
    assert dense == mwt == rr
    assert "round" in rm[0]
    assert not (tmp_path / "t" / "seed-0" / "mwt-0.8" / "dense").exists()
    assert out.count("1 of 1 seeds diverged") == 4


def test_figures_of_patterns(refimpl, tmp_path):
    pytest.importorskip("matplotlib")
    refimpl("tickets", "find", *TINY, "--finder", "mwt", "--every", 1, "--out", "mwt", "-q")
    code, _, _ = refimpl("tickets", "patterns", "mwt", "--out", "figures")
    assert code == 0
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["tickets.png", "training-1.png"]


def test_the_demo_and_what_it_finds_done_already(refimpl, tmp_path):
    words = ("tickets", "demo", "--rounds", 2, "--out", "demo", "--json", "-q")
    code, out, _ = refimpl(*words)
    assert code == 0
    dense, mwt, pmt, sr, *_ = json.loads(out)["networks"]
    assert (dense["finding"]["flops"], dense["in_all"]["flops"], dense["episodes"]) == (0, 1, None)
    assert (mwt["finding"]["flops"], sr["finding"]["flops"]) == (1, 0)
    assert mwt["in_all"]["flops"] == pytest.approx(1 + sr["in_all"]["flops"], rel=0.5)
    assert pmt["finding"]["flops"] == 1  # two iterations are too few for its queue
    assert sr["in_all"]["flops"] < 0.6
    assert mwt["episodes"]["mean"] == pytest.approx(mwt["accuracy"] - dense["accuracy"], abs=1e-12)
    before = (tmp_path / "demo/seed-0/sr-0.8/trained/metrics.jsonl").stat().st_mtime_ns
    code, again, _ = refimpl(*words)
    assert (code, json.loads(again)) == (0, json.loads(out))
    assert (tmp_path / "demo/seed-0/sr-0.8/trained/metrics.jsonl").stat().st_mtime_ns >= before
    code, _, err = refimpl("tickets", "demo", "--rounds", 3, "--out", "demo", "-q")
    assert code == 2
    assert "other settings" in err


def test_a_comparison_is_paired_by_seed_and_episode(refimpl, tmp_path):
    few = ("--finders", "sr,rm", "--seeds", "0-3", "--test-episodes", 20)
    words = ("tickets", "compare", *TINY, *few, "--out", "t", "-q")
    code, out, err = refimpl(*words, "--baseline", "sr", "--margin", "5")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[1:4]] == ["dense", "sr", "rm"]
    written = json.loads((tmp_path / "t" / "comparison.json").read_text())
    assert written["stated"] == written["judged"] == {"baseline": "sr", "margin": 5}
    dense, sr, rm = written["rows"]
    assert (dense["claim"], sr["claim"]) == (None, None)
    assert rm["claim"]["points"] == pytest.approx(100 * (rm["accuracy"] - sr["accuracy"]), abs=1e-9)
    assert (rm["claim"]["seeds"], rm["claim"]["pairs"]) == (4, 4 * written["run"]["test_episodes"])
    code, _, _ = refimpl(*words, "--baseline", "dense")
    later = json.loads((tmp_path / "t" / "comparison.json").read_text())
    assert (later["stated"]["baseline"], later["judged"]["baseline"]) == ("sr", "dense")
    assert later["rows"][1]["claim"]["points"] == pytest.approx(
        100 * (sr["accuracy"] - dense["accuracy"]), abs=1e-9
    )


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        (("--finders", "nothing"), "finder"),
        (("--finders", "sr,sr"), "each finder once"),
        (("--baseline", "mwt", "--finders", "sr"), "baseline"),
        (("--pruned", "many"), "shares like"),
    ],
)
def test_a_wrong_comparison_is_refused_before_anything_is_made(refimpl, tmp_path, wrong, pattern):
    code, _, err = refimpl("tickets", "compare", *TINY, *wrong, "--out", "t", "-q")
    assert code == 2
    assert pattern in err
    assert not (tmp_path / "t").exists()
