"""The true gap of runs: solvers and error bars against closed forms, replay, and the command."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise

import numpy as np
import pytest

from refimpl.cli.app import run as command
from refimpl.errors import InputError, RunError
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import adapt_settings, prepare, train
from refimpl.experiments.record import RunFolder
from refimpl.experiments.replay import over_the_run
from refimpl.federated.methods.metagater import MetaGater
from refimpl.nn.context import Context
from refimpl.nn.objective import NetworkObjective
from refimpl.optim.prox import GroupLasso, Groups, Zero
from refimpl.report import canvas
from refimpl.theory import measured, problems, stationarity
from refimpl.theory.gap import surrogate_gap
from refimpl.theory.measured import Effort, measured_gap
from refimpl.theory.stationarity import Inspection

TINY = {"nodes": 3, "targets": 1, "node_min": 8, "node_max": 12, "support": 4, "rounds": 4, "local_steps": 2}
UNEVEN = np.array([0.5, 0.25, 0.125, 0.125])


def tiny(**changes):
    return prepare(resolve(**(TINY | changes)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four rounds, two of three nodes in each; not to be written to."""
    path = tmp_path_factory.mktemp("runs") / "four"
    experiment = tiny(per_round=2, weighted=True)
    with RunFolder.create(path, experiment.config.table()) as folder:
        train(experiment, folder, threads=1)
    return path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


# --- solving and looking at local problems ----------------------------------------------------------


def quadratic_truth(problem, v, lam, weights, penalty, beta):
    """The gap from closed forms alone."""
    points = [loss.local_point(v, lam) for loss in problem.losses]
    gradient = lam * (v - weights @ np.array(points))
    return surrogate_gap(v, gradient, penalty, beta), penalty.subdifferential_distance(-gradient, v)


@pytest.mark.parametrize("low", [0.05, -1.0])
@pytest.mark.parametrize("penalty", [Zero(), GroupLasso(Groups.from_sizes([2, 4]), 0.1)])
def test_true_gap_of_quadratics(low, penalty):
    rng = np.random.default_rng(0)
    problem = problems.quadratics(np.linspace(low, 1.0, 6), rng, nodes=4)
    v, lam, beta = rng.standard_normal(6), 1.5, 0.4
    mapping, distance = quadratic_truth(problem, v, lam, UNEVEN, penalty, beta)
    found = measured_gap(problem.losses, UNEVEN, v, lam, beta, penalty, Effort(tolerance=1e-10))
    assert found.mapping == pytest.approx(mapping, rel=1e-8)
    assert found.distance == pytest.approx(distance, rel=1e-8)
    assert found.concavity == pytest.approx(max(0.0, -low), abs=1e-5)
    assert found.smoothness == pytest.approx(1.0, abs=1e-5)
    assert found.spread < 1e-8
    assert found.before == pytest.approx(
        np.mean([np.linalg.norm(f.matrix @ (v - f.centre)) for f in problem.losses])
    )


@pytest.mark.parametrize("low", [0.05, -1.0])
@pytest.mark.parametrize("evaluations", [1, 3, 8])
def test_error_bar_contains_the_truth_however_early_the_solver_stops(low, evaluations):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        problem = problems.quadratics(np.linspace(low, 1.0, 6), rng, nodes=4)
        v, lam, penalty = rng.standard_normal(6), 1.5, GroupLasso(Groups.from_sizes([2, 4]), 0.1)
        mapping, distance = quadratic_truth(problem, v, lam, UNEVEN, penalty, 0.4)
        effort = Effort(tolerance=1e-12, evaluations=evaluations, starts=1)
        found = measured_gap(problem.losses, UNEVEN, v, lam, 0.4, penalty, effort)
        assert abs(found.mapping - mapping) <= found.error
        assert abs(found.distance - distance) <= found.error
        assert np.isnan(found.spread)


def test_the_wrong_point_is_outside_the_error_bar():
    rng = np.random.default_rng(1)
    problem = problems.quadratics(np.linspace(0.05, 1.0, 6), rng, nodes=4)
    v = rng.standard_normal(6)
    mapping, _ = quadratic_truth(problem, v, 1.5, UNEVEN, Zero(), 0.4)
    found = measured_gap(problem.losses, UNEVEN, 1.001 * v, 1.5, 0.4, Zero(), Effort(tolerance=1e-8))
    assert abs(found.mapping - mapping) > found.error


def test_no_error_bar_where_nothing_follows():
    problem = problems.attained(-1, smoothness=2.0)
    w = np.ones(4)
    found = measured.solve_measured(
        problem.losses[0], w, 1.0, Effort(evaluations=5), np.random.default_rng(0)
    )
    assert found.concavity == pytest.approx(2.0, rel=1e-6)
    assert found.error(1.0) == np.inf


def test_threads_change_nothing_and_every_node_is_told_of():
    problem, told = problems.cosines(np.random.default_rng(2), nodes=4), []
    arguments = (problem.losses, UNEVEN, np.ones(8), 2.0, 0.4, Zero(), Effort(), 7)
    one = measured_gap(*arguments, threads=1, on_node=lambda: told.append(1))
    two = measured_gap(*arguments, threads=2)
    assert one[:-1] == two[:-1]
    np.testing.assert_array_equal(one.points, two.points)
    assert len(told) == 4


@pytest.mark.parametrize(
    "change", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"evaluations": 0}, {"starts": 0}]
)
def test_senseless_efforts_are_refused(change):
    with pytest.raises(InputError, match="`Effort`: expected 0 < tolerance < 1"):
        Effort(**change)


# --- a run's nodes ----------------------------------------------------------------------------------


def gap_by_fixed_point(experiment, point, context):
    """The gap from NumPy and the network's gradient alone: w <- v - grad/lam, prox by its formula."""
    config, v, network = experiment.config, point.v, experiment.network
    points, sizes = [], []
    for x, y in (node.train for node in experiment.train_nodes):
        objective = NetworkObjective(network, x.astype(np.float64), y, context)
        w, gradient = v.copy(), np.empty_like(v)
        for _ in range(40):
            objective(w, gradient)
            w = v - gradient / config.lam
        points.append(w)
        sizes.append(len(y))
    weights = np.array(sizes) / np.sum(sizes) if config.weighted else np.full(len(sizes), 1 / len(sizes))
    step = config.beta * config.lam * (v - weights @ np.array(points))
    after = v - step
    if network.gates:
        phi, (indptr, indices) = network.layout.phi, network.gate_groups
        for start, stop in pairwise(indptr):
            group = phi.start + np.asarray(indices[start:stop])
            norm = np.linalg.norm(after[group])
            after[group] *= max(0.0, 1 - config.beta * config.rho * np.sqrt(group.size) / norm)
    return np.linalg.norm(v - after) / config.beta


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("metagater-ungated", {"weighted": True}),
        ("metagater", {"gate_mode": "soft", "rho": 0.02}),
    ],
)
def test_true_gap_of_a_network_by_another_way(method, changes):
    """With lam far above the curvature the local problems are easy, and the error bar is there and small."""
    experiment = tiny(method=method, lam=3000.0, eta=1e-4, beta=1e-4, **changes)
    state = experiment.start()
    v = experiment.method.broadcast(state, 1).astype(np.float64)
    point = stationarity.Point(1, "centre", v, np.nan)
    found = Inspection(experiment, Effort(tolerance=1e-6), 1).measure(point)
    expected = gap_by_fixed_point(experiment, point, Context(experiment.gating, ("theta", "phi")))
    assert found.lam_above_l
    assert found.error < 1e-3 * expected
    assert abs(found.true_gap - expected) <= found.error
    assert found.flipped == 0.0


@pytest.mark.parametrize("gate_grad", ["dense", "active"])
def test_surrogate_has_the_gradient_of_training_at_its_centre(gate_grad):
    experiment = tiny(gate_grad=gate_grad, dtype="float64")
    v = experiment.start()["x"]
    for node, given in zip(Inspection(experiment).nodes(), experiment.train_nodes, strict=True):
        there, seen = np.empty_like(v), np.empty_like(v)
        surrogate = node.around(v)
        value = surrogate(v, there)
        context = Context(experiment.gating, ("theta", "phi"))
        objective = NetworkObjective(experiment.network, *given.train, context)
        assert objective(v, seen) == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(there, seen, rtol=1e-10, atol=1e-13)
        residual, flipped = node.decide_again(v, v, 1.0)
        assert flipped == 0.0
        assert residual == pytest.approx(np.linalg.norm(seen), rel=1e-10)


def test_flipped_counts_masks_that_change():
    experiment = tiny()
    node, v = Inspection(experiment).nodes()[0], experiment.start()["x"].astype(np.float64)
    w = v.copy()
    w[experiment.network.layout.phi] = 0.0  # d = 0: every channel off
    masks = NetworkObjective(node.network, node.x, node.y, node.context)
    masks(v, np.empty_like(v))
    open_share = np.mean(list(masks.masks.values()))
    assert 0 < open_share <= 1
    _, flipped = node.decide_again(v, w, 1.0)
    assert flipped == pytest.approx(open_share)


def test_gumbel_noise_is_left_out():
    experiment = tiny(gate_mode="gumbel")
    assert Inspection(experiment).nodes()[0].context.gating.mode == "hard"
    assert adapt_settings(experiment).gating.mode == "gumbel"


# --- replay -----------------------------------------------------------------------------------------


def test_replay_finds_the_centres(finished, tmp_path):
    """md_3 from the checkpoint of a run stopped after two rounds, by its formula: a_3 = 1/2."""
    experiment, rounds = tiny(per_round=2, weighted=True), []
    with RunFolder.create(tmp_path / "two", experiment.config.table()) as folder:
        train(experiment, folder, threads=1, on_round=rounds.append, stop=lambda: len(rounds) == 1)
        _, state, _ = folder.load_checkpoint()
    whole, told = RunFolder.open(finished, lock=False), []
    first, third = Inspection(experiment, threads=1).replay(whole, [3, 1], told.append)
    assert [record.round for record in told] == [1, 2, 3]
    assert (first.round, third.round, third.kind) == (1, 3, "centre")
    assert third.v.dtype == np.float64
    np.testing.assert_array_equal(first.v, experiment.start()["x"])
    np.testing.assert_allclose(third.v, 0.5 * state["ag"] + 0.5 * state["x"], rtol=1e-6, atol=1e-8)
    assert [first.server_gap, third.server_gap] == [whole.metrics()[k]["gap"] for k in (0, 2)]


@pytest.mark.parametrize("name", ["loss", "gap"])
@pytest.mark.parametrize("change", [lambda x: float(np.nextafter(x, 9.0)), lambda x: None])
def test_replay_refuses_altered_metrics(run, name, change):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    lines[1] = json.dumps(record | {name: change(record[name])})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    inspection, folder = (
        Inspection(tiny(per_round=2, weighted=True), threads=1),
        RunFolder.open(run, lock=False),
    )
    with pytest.raises(RunError, match=f"round 2 does not repeat: {name} is"):
        list(inspection.replay(folder, [3]))
    assert [point.round for point in inspection.replay(folder, [1])] == [1]  # nothing wrong up to there


def test_replay_refuses_another_point(finished, monkeypatch):
    """Centres taken at xag instead of md do not repeat the run from round 2 on, where they differ."""
    monkeypatch.setattr(MetaGater, "broadcast", lambda self, state, round_: state["ag"].copy())
    folder = RunFolder.open(finished, lock=False)
    with pytest.raises(RunError, match="round 2 does not repeat"):
        list(Inspection(tiny(per_round=2, weighted=True), threads=1).replay(folder, [4]))


def test_replay_refuses_other_data(finished):
    folder = RunFolder.open(finished, lock=False)
    with pytest.raises(RunError, match="round 1 does not repeat"):
        list(Inspection(tiny(per_round=2, weighted=True, seed=1), threads=1).replay(folder, [1]))


@pytest.mark.parametrize("wanted", [[5], [1, 9], []])
def test_rounds_must_be_there(finished, wanted):
    folder = RunFolder.open(finished, lock=False)
    with pytest.raises(InputError, match=r"has rounds 1\.\.4"):
        list(Inspection(tiny(), threads=1).replay(folder, wanted))


def test_last_checkpoint_is_the_meta_model(finished):
    experiment, folder = tiny(per_round=2, weighted=True), RunFolder.open(finished, lock=False)
    point = Inspection(experiment).last_checkpoint(folder)
    model = experiment.network.layout.from_arrays(folder.load_model(), "float32")
    np.testing.assert_array_equal(point.v, model)
    assert (point.round, point.kind, point.server_gap) == (4, "model", folder.metrics()[-1]["gap"])


def test_a_checkpoint_whose_round_has_no_gap(finished, tmp_path):
    """Metrics have null for NaN."""
    shutil.copytree(finished, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = [{**json.loads(line), "gap": None} for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = RunFolder.open(tmp_path / "run", lock=False)
    assert math.isnan(Inspection(tiny(per_round=2, weighted=True)).last_checkpoint(folder).server_gap)


@pytest.mark.parametrize(("last", "expected"), [(1, [1]), (4, [1, 2, 3, 4]), (100, [1, 5, 22, 100])])
def test_a_few_rounds_over_the_run(last, expected, tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    with pytest.raises(RunError, match="has no rounds yet"):
        over_the_run(folder)
    (folder.path / "metrics.jsonl").write_text("".join(f'{{"round": {k}}}\n' for k in range(1, last + 1)))
    assert over_the_run(folder) == expected
    folder.close()


@pytest.mark.parametrize("method", ["fedavg", "perfedavg"])
def test_methods_without_envelopes_have_no_gap(method):
    with pytest.raises(InputError, match=f"not to {method}"):
        Inspection(tiny(method=method))


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def undrawn(monkeypatch):
    """As if matplotlib were not installed."""
    monkeypatch.setattr(canvas, "has_matplotlib", lambda: False)


QUICK = ["--tolerance", "0.05", "--starts", "1", "--threads", "1", "-q"]


def test_command_prints_both_gaps(run, capsys, undrawn):
    assert command(["theory", "gap", str(run), "--rounds", "4,1", *QUICK]) == 0
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines()[:3]]
    assert table[0][:4] == ["round", "at", "server's", "gap"]
    assert [row[:2] for row in table[1:]] == [["1", "centre"], ["4", "centre"]]
    assert "lam = 2 does not exceed the curvature found" in printed
    assert "flipped: masks decided differently" in printed
    assert "no figure, as matplotlib is not installed" in printed
    assert (run / "report" / "gap.json").is_file()


def test_command_in_json_at_the_checkpoint(run, capsys, undrawn):
    assert command(["theory", "gap", str(run), "--rounds", "checkpoint", "--json", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    (point,) = found["points"]
    assert (point["round"], point["point"], point["estimate"]) == (4, "model", True)
    assert 0 < point["true_gap"] <= point["distance"]
    assert point["residual"] <= 0.05 * point["residual_at_centre"]
    assert found["figure"] is None
    assert "The true gap is that of the meta-model after the round" in " ".join(found["what"])
    assert json.loads((run / "report" / "gap.json").read_text())["points"] == found["points"]


def complaint(arguments, capsys) -> str:
    """The one line on stderr of a command that must exit with 2."""
    assert command(["theory", "gap", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_command_refuses_in_one_line(run, tmp_path, capsys, undrawn):
    assert "not a run folder" in complaint([str(tmp_path / "nowhere")], capsys)
    assert "has rounds 1..4, asked for [9]" in complaint([str(run), "--rounds", "9", "-q"], capsys)
    assert "expected rounds from 1 on" in complaint([str(run), "--rounds", "0,1"], capsys)
    assert "expected 0 < tolerance < 1" in complaint([str(run), "--tolerance", "2", "-q"], capsys)
    figure = str(tmp_path / "gap.png")
    assert "figures need matplotlib" in complaint([str(run), "--figure", figure], capsys)
    assert "need a RUN" in complaint(["--figure", figure], capsys)
    assert "need a RUN" in complaint(["--rounds", "checkpoint"], capsys)
    assert not (run / "report" / "gap.json").exists()


def test_command_refuses_a_run_of_another_method(tmp_path, capsys):
    with RunFolder.create(tmp_path / "run", resolve(method="fedavg", **TINY).table()) as folder:
        folder.append_metrics({"round": 1, "loss": 1.0, "gap": None})
    assert "not to fedavg" in complaint([str(tmp_path / "run"), "-q"], capsys)


def test_command_refuses_altered_metrics(run, capsys, undrawn):
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"loss": ', '"loss": 1', 1))
    assert "does not repeat" in complaint([str(run), "-q"], capsys)


def test_command_draws_where_it_is_told(run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "new" / "gap.png"
    assert command(["theory", "gap", str(run), "--rounds", "1,4", "--figure", str(figure), *QUICK]) == 0
    assert str(figure) in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert not (run / "report" / "gap.png").exists()
