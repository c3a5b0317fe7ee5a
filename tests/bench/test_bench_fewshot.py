"""The tables of few-shot runs, and where PMT would have stopped."""

from __future__ import annotations

import numpy as np
import pytest

from bench import fewshot, fewshot_twin, primary
from refimpl.errors import InputError
from refimpl.experiments.experiment import train
from refimpl.experiments.record import RunFolder
from refimpl.fewshot.config import resolve
from refimpl.fewshot.experiment import prepare
from refimpl.fewshot.tickets.finders import PMT, Search, find
from refimpl.fewshot.tickets.masks import counts_in
from refimpl.fewshot.tickets.ticket import begin, facts_of, settings_from


def test_pmt_is_judged_as_it_decides(tmp_path):
    config = resolve(None, "digits-2way-1shot", rounds=12, tasks=1, validate_every=0)
    run, own = prepare(config), {"finder": "pmt", "gamma": 2, "length": 2, "delta": 0.9, "pruned": 0.8}
    settings = settings_from(config.table() | own, "test")
    begin(tmp_path / "pmt", settings, run.data)
    find(Search(run, settings, tmp_path / "pmt", threads=1))
    weights = np.array([*primary.first_layers(run)])
    count = counts_in(run.network.layout, "smart", 0.8)[0]
    assert weights.shape == (13, 144)
    stopped = primary.stop(PMT(gamma=2, length=2, delta=0.9), weights, count)
    assert stopped == facts_of(tmp_path / "pmt")["stopped"] is not None


def test_a_mask_that_changes_at_every_look_is_never_stable():
    weights = np.zeros((1001, 10))
    weights[::100, :5] = weights[50::100, 5:] = 1
    found = primary.judge(weights, 5)
    by_gamma = {row["gamma"]: row["stop"] for row in found["rows"] if row["delta"] == 0.95}
    assert by_gamma == {50: None, 100: 600, 200: None, 500: None}
    assert found["first"] == 1
    assert "| 100 | 600: 100% | 600: 100% |" in primary.table(found)
    assert "| 50 | never |" in primary.table(found)


def test_a_line_for_each_test():
    run = {
        "method": "fomaml",
        "ways": 5,
        "shots": 1,
        "widths": [32, 16],
        "rounds": 9,
        "tasks": 4,
        "alpha": 0.1,
    }
    run |= {"episodes": 600, "test_queries": 0, "accuracy": 0.5, "half": 0.01}
    about = {"ways": 5, "shots": 1}
    curves = [
        about | {"alpha": 0.1, "points": [[1000, 0.5], [1500, 0.6]]},
        about | {"alpha": 0.4, "points": [[500, 0.2], [1000, 0.25], [2000, None]]},
    ]
    shown = fewshot.table({"curves": curves, "runs": [run]})
    assert "| validation % after | 5-way 1-shot, alpha 0.4 | 5-way 1-shot, alpha 0.1 |" in shown
    assert "| 1000 | 25.0 | 50.0 |\n| 2000 | diverged |  |" in shown
    assert "| fomaml, 5-way 1-shot | 32-16 | 9 x 4 | 0.1 | 600 | 1 | 50.00 +- 1.00 |" in shown


def trained(folder, **settings):
    """A finished short run on random 16x16 images of ten classes, in `folder`."""
    rng, file = np.random.default_rng(0), folder / "images.npz"
    np.savez(file, x=rng.random((200, 1, 16, 16), np.float32), y=np.repeat(np.arange(10), 20))
    few = {"ways": 2, "shots": 2, "test_steps": 2, "test_queries": 3, "test_episodes": 8, "validate_every": 0}
    own = {"dataset": str(file), "widths": (4, 4, 4, 4), "rounds": 3, "tasks": 2, "alpha": 0.1} | few
    config = resolve(None, None, **(own | {"model": "conv4", "method": "fomaml"} | settings))
    run = prepare(config)
    RunFolder.create(folder / "run", config.table(), threads=1, data=run.data).close()
    with RunFolder.open(folder / "run") as opened:
        train(run, opened, resume=True, threads=1)
    return folder / "run"


def test_pytorch_trains_the_same_model(tmp_path):
    pytest.importorskip("torch")
    found = fewshot_twin.compare(trained(tmp_path))
    ours, theirs = np.array(found["losses"]).T
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert abs(found["difference"]["mean"]) <= 0.05
    row = fewshot_twin.table({"runs": [found]}).splitlines()[-1]
    assert "2-way 2-shot | 4-4-4-4 | 3 x 2 | float32 |" in row


def test_the_twin_refuses_what_it_does_not_compute(tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(InputError, match="expected a run of fomaml"):
        fewshot_twin.compare(trained(tmp_path, method="reptile"))
