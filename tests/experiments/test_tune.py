"""Tuning: the same budget for all, on validation nodes, never the targets; recorded and resumed."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from commands import assert_one_line, assert_refused

from refimpl.cli import app
from refimpl.errors import ConfigError, DataError, RefimplError, RunError
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import adapt_targets, prepare, train
from refimpl.experiments.tune import trial as trials_of
from refimpl.experiments.tune.record import Tuning
from refimpl.experiments.tune.search import Search, grid_levels, ranges_of, search_from
from refimpl.experiments.tune.trial import Trial, best, jobs, run_trials, validation_experiment
from refimpl.registry import METHODS

TINY = {"nodes": 4, "targets": 2, "rounds": 2, "local_steps": 1}
FLAGS = ("--nodes", "4", "--targets", "2", "--rounds", "2", "--local-steps", "1", "--threads", "1")


def search(method="fedavg", budget=4, kind="random", **changes):
    config = resolve(method=method, **TINY)
    return Search(config, changes.pop("ranges", ranges_of(method)), budget, kind, validation=1, **changes)


def made(name, score, loss=1.0):
    return Trial("fedavg", name, {"eta": 0.1}, score, loss, [], 1.0)


# --- settings


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_searched_in_what_it_takes_with_the_same_budget(method):
    whole = search(method, budget=6)
    settings = whole.settings()
    assert len(settings) == 6
    assert {"eta", "eta_theta"} <= set(whole.ranges)
    assert not {"rho", "snip_keep"} & set(whole.ranges)
    for setting in settings:
        for key, (low, high) in whole.ranges.items():
            assert low <= setting[key] <= high
            assert float(f"{setting[key]:.3g}") == setting[key]
        if "lam" in setting and method != "pfedme":
            assert setting["lam"] * setting["beta"] == pytest.approx(0.5, rel=0.01)
        replace(whole.config, **setting)


def test_a_larger_budget_goes_on_where_a_smaller_one_ends():
    assert search(budget=9).settings()[:4] == search(budget=4).settings()
    assert search(draw=1).settings() != search().settings()


def test_random_settings_are_spread_evenly_on_a_logarithmic_scale():
    values = [setting["eta"] for setting in search(budget=400, ranges={"eta": (1e-3, 1.0)}).settings()]
    counts, _ = np.histogram(np.log10(values), bins=3, range=(-3, 0))
    assert all(abs(count - 400 / 3) < 40 for count in counts)  # four standard deviations


@pytest.mark.parametrize(
    ("keys", "budget", "levels"),
    [(2, 9, [3, 3]), (2, 8, [4, 2]), (3, 12, [3, 2, 2]), (3, 1, [1, 1, 1]), (3, 5, [2, 2, 1]), (1, 5, [5])],
)
def test_a_grid_is_as_even_as_its_budget_admits(keys, budget, levels):
    assert grid_levels(keys, budget) == levels


def test_a_grid_is_in_geometric_progression_with_both_ends():
    tried = search(kind="grid", budget=3, ranges={"eta": (0.01, 1.0)}).settings()
    assert tried == [{"eta": 0.01}, {"eta": 0.1}, {"eta": 1.0}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": 0}, "budget"),
        ({"kind": "wild"}, "wild"),
        ({"ranges": {"eta": (0.5, 0.1)}}, "low < high"),
        ({"ranges": {"eta": (0.0, 0.1)}}, "low < high"),
        ({"ranges": {"mix": (0.1, 1.0)}}, "no number that fedavg takes"),
        ({"ranges": {"rounds": (1.0, 9.0)}}, "no number"),
        ({"ranges": {}}, "keys"),
        ({"validation": 4}, "cannot hold 4 of 4"),
        ({"validation": 0}, "at least 1"),
    ],
)
def test_searches_that_make_no_sense_are_refused(changes, words):
    given = {"ranges": {"eta": (0.1, 0.5)}, "budget": 2, "validation": 1, **changes}
    with pytest.raises((ConfigError, RefimplError), match=words):
        Search(resolve(method="fedavg", **TINY), **given)
    with pytest.raises(ConfigError, match="per_round"):
        Search(resolve(method="fedavg", per_round=4, **TINY), {"eta": (0.1, 0.5)}, 2, validation=1)


def test_a_search_is_read_back_as_it_was_written():
    whole = search("metagater", seeds=(3, 4))
    assert search_from(json.loads(json.dumps(whole.table()))) == whole


def test_adaptations_share_the_settings_of_training():
    """Settings 0..2 have one rate of training and three of adaptation, 3..5 others."""
    settings = search("metagater", budget=6, adaptations=3).settings()
    for group in (settings[:3], settings[3:]):
        assert len({(s["eta"], s["lam"], s["beta"]) for s in group}) == 1
        assert len({s["eta_theta"] for s in group}) == len({s["eta_phi"] for s in group}) == 3
    assert settings[0]["eta"] != settings[3]["eta"]
    with pytest.raises(ConfigError, match="adaptations"):
        search(adaptations=0)


def one(method="fedavg", **changes):
    """The only trial of a search, as a job."""
    (job,) = jobs([(search(method, budget=1, seeds=(0,), **changes), 0)], None, 1)
    return job


def only(job):
    (trial,) = run_trials(job, lambda told: None, lambda: False)
    return trial


def test_trials_with_the_same_training_share_it_and_end_in_the_same_numbers(monkeypatch):
    """Across methods, too: metasnip prunes the meta-model of metagater-ungated."""
    searches = [search(m, budget=4, adaptations=2) for m in ("metagater-ungated", "metasnip", "fedavg")]
    wanted = [(s, n) for n in range(4) for s in searches]
    found = jobs(wanted, None, 1)
    assert [len(job.trials) for job in found] == [4, 2, 4, 2]
    assert sorted((s.config.method, n) for job in found for s, n in job.trials) == sorted(
        (s.config.method, n) for s, n in wanted
    )
    trained = []
    monkeypatch.setattr(trials_of, "train", lambda *a, **k: trained.append(1) or train(*a, **k))
    together = run_trials(found[0], lambda told: None, lambda: False)
    assert len(trained) == 1
    alone = [only(jobs([trial], None, 1)[0]) for trial in found[0].trials]
    assert [replace(t, seconds=0.0) for t in together] == [replace(t, seconds=0.0) for t in alone]


# --- nodes


def test_validation_nodes_are_training_nodes_that_do_not_train():
    config = resolve(method="fedavg", **TINY)
    whole, held = prepare(config), validation_experiment(config, 1)
    assert [node.name for node in held.train_nodes] == ["train-0", "train-1", "train-2"]
    assert [node.name for node in held.target_nodes] == ["train-3"]
    assert [node.name for node in whole.target_nodes] == ["target-0", "target-1"]
    assert len(held.tasks()) == 3


@pytest.mark.parametrize("method", ["fedavg", "metagater", "metasnip"])
def test_target_nodes_are_never_touched(monkeypatch, method):
    """With NaN in all of their data, every trial ends in the same numbers."""
    job = one(method)
    clean = only(job)

    def poisoned(*given):
        experiment = prepare(*given)
        for node in experiment.target_nodes:
            node.x.fill(np.nan)
        return experiment

    monkeypatch.setattr(trials_of, "prepare", poisoned)
    again = only(job)
    assert replace(again, seconds=0.0) == replace(clean, seconds=0.0)
    assert 0.0 <= clean.score <= 1.0

    config = job.trials[0][0].config  # the poison works: whoever touched the targets would show
    w = train(prepare(config), threads=1).w
    with np.errstate(all="ignore"):
        pairs = zip(adapt_targets(prepare(config), w), adapt_targets(poisoned(config), w), strict=True)
    assert all(good.loss_after != bad.loss_after for good, bad in pairs)


def test_a_trial_is_scored_at_the_validation_nodes(monkeypatch):
    """Poison there does show."""

    def poisoned(*given):
        experiment = prepare(*given)
        held = experiment.train_nodes[-1]
        held.y[held.n_train :] = (held.y[held.n_train :] + 1) % 10
        return experiment

    job = one()
    clean = only(job)
    monkeypatch.setattr(trials_of, "prepare", poisoned)
    assert only(job).loss != clean.loss


# --- trials


def test_the_best_is_the_most_accurate_then_of_least_loss_then_the_first():
    assert best([made(0, 0.5), made(1, 0.7), made(2, None)]).trial == 1
    assert best([made(0, 0.7, 2.0), made(1, 0.7, 1.0), made(2, 0.7, 1.0)]).trial == 1
    with pytest.raises(RefimplError, match="all trials of fedavg diverged"):
        best([made(0, None)])


def test_a_diverging_setting_is_an_answer():
    short = search(budget=1, ranges={"eta": (1e5, 1e6)}, seeds=(0,))
    found = only(jobs([(replace(short, config=replace(short.config, rounds=20)), 0)], None, 1)[0])
    assert found.score is None
    assert "diverged in round" in found.failure


def values(tuning):
    return [replace(trial, seconds=0.0) for trial in sorted(tuning.trials, key=lambda t: (t.method, t.trial))]


def test_stopped_it_goes_on_and_repeats_nothing(tmp_path):
    searches = [search("fedavg", budget=3), search("reptile", budget=3)]
    whole = Tuning.create(tmp_path / "whole.jsonl", searches)
    whole.run(threads=1)
    assert [(t.method, t.trial) for t in whole.trials] == [
        (m, n) for n in range(3) for m in ("fedavg", "reptile")
    ]

    told = []
    tuning = Tuning.create(tmp_path / "a.jsonl", searches)
    with pytest.raises(KeyboardInterrupt):
        tuning.run(None, 1, lambda search, n, record: told.append(n), lambda: len(told) >= 5)
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write('{"method": "fedavg", "tri')  # killed while writing
    again = Tuning.open(tmp_path / "a.jsonl")
    done = {(t.method, t.trial) for t in again.trials}
    assert 1 <= len(done) < 6
    assert not done & {(s.config.method, n) for s, n in again.left()}
    again.run(threads=1)
    assert values(again) == values(whole)
    assert values(Tuning.open(tmp_path / "a.jsonl")) == values(whole)
    assert again.toml().replace("a.jsonl", "whole.jsonl") == whole.toml()


@pytest.mark.parametrize("text", ["{\n", "[]\n", '{"searches": [{}]}\n', '{"searches": []}\n{"a": 1}\n'])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"a\.jsonl: expected a record"):
        Tuning.open(tmp_path / "a.jsonl")
    with pytest.raises(RunError, match="no such record"):
        Tuning.open(tmp_path / "b.jsonl")


# --- the command


def test_the_best_setting_is_what_train_and_compare_take(refimpl, tmp_path):
    code, out, err = refimpl("tune", "--method", "fedavg,metagater", *FLAGS, "--budget", 2, "--out", "t.toml")
    assert code == 0
    assert "4 trials of 2 methods" in err
    assert "none of their target nodes was used" in out
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert len(lines) == 1 + 4
    table = tomllib.loads((tmp_path / "t.toml").read_text())
    assert {"fedavg", "metagater"} <= set(table)
    for method in ("fedavg", "metagater"):
        own = [line for line in lines[1:] if line["method"] == method]
        chosen = max(own, key=lambda line: (line["score"], -line["loss"]))["setting"]
        _, resolved, _ = refimpl("train", "--config", "t.toml", "--method", method, "--dry-run")
        resolved = tomllib.loads(resolved)
        assert {key: resolved[key] for key in chosen} == chosen
        assert (resolved["nodes"], resolved["rounds"], resolved["seed"]) == (4, 2, 0)
    arguments = ("--methods", "fedavg", "--seeds", 0, "--threads", 1, "--out", "c", "-q")
    assert refimpl("compare", "--config", "t.toml", *arguments)[0] == 0


def test_one_method_alone_needs_not_be_named_again(refimpl):
    arguments = ("--method", "reptile", *FLAGS, "--budget", 1, "--out", "deep/t.toml", "--json", "-q")
    code, out, err = refimpl("tune", *arguments)
    assert (code, err) == (0, "")
    (found,) = json.loads(out)["methods"]
    assert set(found["best"]["setting"]) == {"eta", "mix", "eta_theta"}
    resolved = tomllib.loads(refimpl("train", "--config", "deep/t.toml", "--dry-run")[1])
    assert resolved["method"] == "reptile"
    assert resolved["mix"] == found["best"]["setting"]["mix"]


def test_keys_and_ranges_can_be_chosen(refimpl, tmp_path):
    ranges = ("--keys", "eta,rho", "--range", "rho=0.001:0.1", "--range", "eta=0.01:0.1")
    arguments = ("--method", "metagater", "--grid", "--budget", 4, *ranges, *FLAGS, "--out", "t.toml", "-q")
    assert refimpl("tune", *arguments)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [line["setting"] for line in lines[1:]] == [
        {"eta": eta, "rho": rho} for eta in (0.01, 0.1) for rho in (0.001, 0.1)
    ]


def test_interrupted_it_says_how_to_go_on(refimpl, tmp_path, monkeypatch):
    run = Tuning.run

    def interrupted(self, data_dir, threads, on_told, stop):
        run(self, data_dir, threads, on_told, lambda: len(self.trials) >= 1)

    arguments = ("--method", "fedavg", *FLAGS, "--budget", 3, "--out", "my t.toml", "-q")
    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "run", interrupted)
        code, out, err = refimpl("tune", *arguments)
    assert (code, out) == (app.INTERRUPTED, "")
    assert "with 1 trial recorded; go on with: refimpl tune --resume --out 'my t.toml'" in err
    assert not (tmp_path / "my t.toml").exists()
    assert refimpl("tune", "--resume", "--out", "my t.toml", "--threads", 1, "-q")[0] == 0
    assert len((tmp_path / "my t.jsonl").read_text().splitlines()) == 1 + 3
    code, _, err = refimpl("tune", *arguments)
    assert code == app.WRONG_USE
    assert "--force" in err


WRONG = [
    ((), ["--out"]),
    (("--out", "t.jsonl", "--method", "fedavg"), ["--out", ".toml", "t.jsonl"]),
    (("--out", "t.toml"), ["--method"]),
    (("--out", "t.toml", "--method", "sgd"), ["sgd", "fedavg"]),
    (("--out", "t.toml", "--method", "fedavg,fedavg"), ["once"]),
    (("--out", "t.toml", "--method", "fedavg", "--keys", "mixx"), ["mixx"]),
    (("--out", "t.toml", "--method", "fedavg", "--range", "eta=1"), ["--range", "KEY=LOW:HIGH"]),
    (("--out", "t.toml", "--method", "fedavg", "--range", "etaa=1:2"), ["etaa"]),
    (("--out", "t.toml", "--method", "fedavg", "--range", "rho=1:2"), ["rho", "fedavg"]),
    (("--out", "t.toml", "--method", "fedavg", "--keys", "mix"), ["mix", "eta"]),
    (("--out", "t.toml", "--method", "fedavg", "--validation", "10"), ["10"]),
    (("--out", "t.toml", "--method", "fedavg", "--dataset", "mnist"), ["--data-dir"]),
    (("--out", "t.toml", "--method", "fedavg", "--grid", "--adaptations", "2"), ["--adaptations"]),
    (("--out", "t.toml", "--resume"), ["t.jsonl"]),
    (("--out", "t.toml", "--resume", "--budget", "3"), ["--resume"]),
]


@pytest.mark.parametrize(("args", "words"), WRONG, ids=[" ".join(args) for args, _ in WRONG])
def test_a_mistake_is_one_line_and_writes_nothing(refimpl, tmp_path, args, words):
    assert_refused(refimpl("tune", "--threads", 1, *args), words, tmp_path)


def test_every_method_is_tried_out_before_anything_is_written(refimpl, tmp_path):
    """A section of the file may ask for what the data do not have."""
    file = tmp_path / "my.toml"
    file.write_text("[reptile]\nsupport = 5000\n")
    given = ("--method", "fedavg,reptile", "--config", file, "--threads", 1, "--out", "out/t.toml")
    err = assert_one_line(*refimpl("tune", *given))
    assert "tune: reptile, seed 100: partition: 5000 support samples asked for" in err
    assert not (tmp_path / "out").exists()


def test_a_budget_without_end_is_refused():
    with pytest.raises(ConfigError, match="at most 10000, got 1000000000000"):
        search("fedavg", budget=10**12)


def record_of_one_trial(path, **changes):
    searched = search("fedavg", budget=1)
    trial = {"method": "fedavg", "trial": 0, "setting": searched.settings()[0], "score": 0.5, "loss": 1.0}
    lines = [{"searches": [searched.table()]}, {**trial, "scores": [0.5], "seconds": 1.0, **changes}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "changes", [{}, {"loss": None}, {"score": None, "loss": None, "failure": "diverged"}]
)
def test_trials_without_a_finite_loss_are_trials(tmp_path, changes):
    (trial,) = Tuning.open(record_of_one_trial(tmp_path / "a.jsonl", **changes)).trials
    assert trial.loss == changes.get("loss", 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trial": 7}, "trial 7 is none of the search"),
        ({"trial": "0"}, "trial 0 is none of the search"),
        ({"setting": {"eta": 0.123}}, "trial 0 is none of the search"),
        ({"method": "reptile"}, "reptile"),
        ({"score": None}, "neither score nor failure"),
        ({"loss": "low"}, "neither score nor failure"),
    ],
)
def test_a_record_with_trials_that_are_not_its_searches_is_one_line(tmp_path, changes, words):
    path = record_of_one_trial(tmp_path / "a.jsonl", **changes)
    with pytest.raises(DataError, match=rf"a\.jsonl: expected a record of trials, .*{words}"):
        Tuning.open(path)


# --- successive halving, and pools of images


def test_rungs_have_a_share_of_the_rounds():
    halving = search(budget=9, rungs=3)
    rounds = halving.config.rounds
    assert [halving.at(rung).config.rounds for rung in range(3)] == [-(-rounds // 9), -(-rounds // 3), rounds]
    assert halving.at(1).settings() == halving.settings()


def test_the_best_third_goes_on_and_those_that_diverged_do_not(tmp_path):
    halving = search(budget=9, rungs=3)
    method = halving.config.method
    tuning = Tuning(tmp_path / "t.jsonl", (halving,), [], {}, "")
    settings, scores = halving.settings(), [0.1, None, 0.9, 0.4, 0.8, 0.2, 0.8, 0.3, 0.7]
    assert [(one.rung, n) for one, n in tuning.left()] == [(0, n) for n in range(9)]
    tuning.trials += [
        Trial(method, n, settings[n], score, None if score is None else 1.0, [], 0.0, rung=0)
        for n, score in enumerate(scores)
    ]
    assert [(one.rung, n) for one, n in tuning.left()] == [(1, 2), (1, 4), (1, 6)]
    tuning.trials += [Trial(method, n, settings[n], 0.5 + n / 100, 1.0, [], 0.0, rung=1) for n in (2, 6)]
    assert [(one.rung, n) for one, n in tuning.left()] == [(1, 4)]
    tuning.trials.append(Trial(method, 4, settings[4], 0.1, 1.0, [], 0.0, rung=1))
    assert [(one.rung, n) for one, n in tuning.left()] == [(2, 6)]
    tuning.trials.append(Trial(method, 6, settings[6], 0.2, 1.0, [], 0.0, rung=2))
    assert tuning.left() == []
    assert best(tuning.trials).trial == 6  # 0.9 after a ninth of the rounds is no result


def test_a_search_with_rungs_ends_in_trials_of_all_rounds(tmp_path):
    halving = search(budget=3, rungs=2)
    tuning = Tuning.create(tmp_path / "t.jsonl", [halving])
    tuning.run(threads=1)
    assert [(trial.rung, trial.trial) for trial in tuning.trials][:3] == [(0, 0), (0, 1), (0, 2)]
    assert [trial.rung for trial in tuning.trials] == [0, 0, 0, 1]
    again = Tuning.open(tmp_path / "t.jsonl")
    assert again.trials == tuning.trials
    assert again.left() == []


def test_what_is_found_on_the_pool_for_tuning_is_for_the_other_pool(tmp_path):
    one = replace(search(budget=1), config=resolve(method="fedavg", pool="tuning", **TINY))
    tuning = Tuning(tmp_path / "t.jsonl", (one,), [], {}, "")
    tuning.trials.append(Trial("fedavg", 0, one.settings()[0], 0.5, 1.0, [], 0.0))
    assert 'pool = "report"' in tuning.toml()
