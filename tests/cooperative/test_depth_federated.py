"""Federations whose nodes have different depths, under FedAvg and under MetaGater with gates."""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_same_bits

from refimpl.cooperative.federated import depth_tasks, depth_team, depths_within, gate_penalty
from refimpl.cooperative.team import Part
from refimpl.errors import InputError
from refimpl.federated.local import LocalSettings
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.rounds import Participation, run_rounds
from refimpl.nn import zoo
from refimpl.nn.context import Gating
from refimpl.nn.work import dense_work
from refimpl.optim.accel import SCHEDULES
from refimpl.registry import METHODS
from refimpl.rng import SeedTree

SIZES = {"input_shape": (1, 8, 8), "classes": 3, "widths": [2, 3, 4]}
PLAIN = zoo.network("resnet20", (), **SIZES)
GATED = zoo.network("resnet20", ("stage1.block1.conv1", "stage3.block3.conv1"), **SIZES)


def samples(nodes=4, count=12):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(nodes):
        y = rng.integers(0, 3, count)
        found.append(((rng.standard_normal((count, 1, 8, 8)) + y[:, None, None, None]).astype("float32"), y))
    return found


def rounds(method, tasks, w, count, threads=1):
    which = range(1, count + 1)
    found = [*run_rounds(method, tasks, method.start(w), which, Participation(), SeedTree(0), threads)]
    return method.model(found[-1][0]), [record for _, record in found]


def fedavg(eta=0.05, local_steps=2):
    return METHODS["fedavg"](eta=eta, local_steps=local_steps)


def test_budgets_become_depths():
    costs = [dense_work(PLAIN.at_depth(depth), 1).total for depth in (1, 2, 3)]
    assert depths_within(PLAIN, [costs[0], costs[2] - 1, costs[2], 10 * costs[2]]) == [1, 2, 3, 3]
    with pytest.raises(InputError, match=f"at least {costs[0]} FLOPs"):
        depths_within(PLAIN, [costs[0] - 1])


def test_a_node_leaves_what_it_does_not_have_and_the_mean_moves_the_rest_in_proportion():
    """One step: an entry moves by -eta times the sum of its gradients over the number of all nodes."""
    team, own = depth_team(PLAIN), samples(2)
    tasks, w = depth_tasks(team, own, [1, 3]), team.layout.initialise(SeedTree(1))
    found, _ = rounds(fedavg(0.1, 1), tasks, w, 1)
    expected = w.astype("float64")
    for task, depth in zip(tasks, (1, 3), strict=True):
        where = team.entries(Part("net", depth))
        (objective,) = task.own.draw(np.random.default_rng(0), 1)
        gradient = np.empty(len(where), "float32")
        objective(w[where], gradient)
        expected[where] -= 0.1 * gradient / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    deep = np.setdiff1d(team.entries(Part("net", 3)), team.entries(Part("net", 1)))
    alone, _ = rounds(fedavg(), tasks[:1], w, 2)
    assert_same_bits(alone[deep], w[deep])
    assert not np.array_equal(alone, w)


def test_every_depth_of_a_federation_learns():
    team, own = depth_team(PLAIN), samples(6, 30)
    tasks = depth_tasks(team, own, [1, 2, 3, 1, 2, 3], batch_size=10)
    w, records = rounds(fedavg(0.1, 5), tasks, team.layout.initialise(SeedTree(1)), 12)
    assert records[-1].loss < 0.7 * records[0].loss
    w = team.calibrated(w, np.concatenate([x for x, _ in own]))
    for part in team.parts:
        logits, _ = team.at_rest(part).forward(w[team.entries(part, at_rest=True)], own[0][0])
        assert (logits.argmax(axis=1) == own[0][1]).mean() > 0.5  # a third by chance


def test_metagater_trains_gates_and_depths_together():
    """The same bytes for any number of threads; gates that only deep nodes have are shrunk as well."""
    team, own = depth_team(GATED), samples()
    w = team.layout.initialise(SeedTree(2))
    w = team.calibrated(w, own[0][0])
    tasks = depth_tasks(team, own, [1, 1, 3, 2], Gating("ste"))
    method = MetaGater(LocalSettings(1.0, 0.05, 2), SCHEDULES["bounded"](), gate_penalty(team, 0.02))
    one, records = rounds(method, tasks, w, 3)
    two, _ = rounds(method, tasks, w, 3, threads=2)
    assert_same_bits(two, one)
    assert all(np.isfinite(record.gap) for record in records)
    deep = "net.stage3.block3.conv1.gate.fc2.weight"
    start, end = team.layout.views(w)[deep], team.layout.views(one)[deep]
    assert 0 < np.linalg.norm(end) < np.linalg.norm(start)


def test_a_depth_that_the_team_lacks_is_refused():
    with pytest.raises(InputError, match="no sub-network of depth 4"):
        depth_tasks(depth_team(PLAIN), samples(1), [4])
