"""Nodes solved in one call have the bytes of nodes solved one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refimpl.federated import rounds
from refimpl.federated.local import LocalSettings, solve_each, solve_local
from refimpl.federated.methods.fedavg import FedAvg
from refimpl.federated.methods.reptile import Reptile
from refimpl.federated.rounds import Participation, run_rounds
from refimpl.nn import zoo
from refimpl.nn.context import Gating
from refimpl.nn.distillation import SoftTargets
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree

SETTINGS = LocalSettings(0.5, 0.1, 3)
SIZES = (5, 3, 7, 1, 5)


def like(first: NetworkTask, sizes=SIZES) -> list[NetworkTask]:
    """Tasks that differ from the first in their samples alone."""
    rng, shape = np.random.default_rng(2), first.network.input_shape
    x = [rng.standard_normal((n, *shape)).astype(first.x.dtype) for n in sizes]
    return [first.on(each, rng.integers(0, 10, len(each))) for each in x]


def mlp(dtype="float32", **options) -> NetworkTask:
    return NetworkTask(zoo.mlp((64, 6, 10)), np.ones((2, 64), dtype), np.zeros(2, int), **options)


def gated(mode="hard") -> NetworkTask:
    network = zoo.mlp((64, 6, 10), gates=("fc1",))
    return NetworkTask(network, np.ones((2, 64), "float32"), np.zeros(2, int), Gating(mode))


def streams(tasks):
    return [np.random.default_rng(i) for i in range(len(tasks))]


def one_by_one(tasks, w):
    found = zip(tasks, streams(tasks), strict=True)
    return [solve_local(task, w, SETTINGS, rng) for task, rng in found]


def same(ours, expected):
    assert len(ours.w) == len(expected)
    for place, other in enumerate(expected):
        mine = ours.of(place)
        assert mine.w.tobytes() == other.w.tobytes()
        assert mine[1:] == other[1:]  # loss, residual, gradients, FLOPs, closed share


@pytest.mark.parametrize(
    "first",
    [mlp(), mlp("float64"), mlp(batch_size=3), mlp(compiled=False), gated(), gated("gumbel")],
    ids=["float32", "float64", "mini-batches", "layers", "gated", "noise"],
)
def test_nodes_of_several_sizes(first):
    tasks = like(first)
    w = first.network.layout.initialise(SeedTree(1)).astype(first.x.dtype)
    same(solve_each(tasks, w, SETTINGS, streams(tasks)), one_by_one(tasks, w))


def test_nodes_whose_samples_are_views_of_one_array():
    first, rng = mlp(batch_size=3), np.random.default_rng(4)
    x, y = rng.standard_normal((20, 64)).astype("float32"), rng.integers(0, 10, 20)
    places = (slice(7, 12), slice(0, 4), slice(15, 20), slice(4, 7))
    tasks = [first.on(x[place], y[place]) for place in places]
    w = first.network.layout.initialise(SeedTree(1))
    same(solve_each(tasks, w, SETTINGS, streams(tasks)), one_by_one(tasks, w))


def differing() -> list[list[NetworkTask]]:
    one, other = like(mlp(), (5, 5))
    soft = SoftTargets(np.ones((1, 5, 10), "float32"), np.ones(1), 1.0, 2.0)
    return [
        [one, replace(other, batch_size=2)],
        [one, replace(other, train=("phi",))],
        [one, replace(other, soft=soft)],
        [replace(one, soft=soft), other],
        [one, one.on(other.x.astype("float64"), other.y)],
        like(mlp(), (2000, 5)),
    ]


@pytest.mark.parametrize(
    "tasks", differing(), ids=["batches", "trained", "taught", "teachers", "numbers", "large"]
)
def test_nodes_that_differ_in_more_than_samples_are_solved_one_by_one(tasks):
    w = tasks[0].network.layout.initialise(SeedTree(1)).astype("float32")
    assert tasks[0].descend_each(tasks, w, 0.1, 0.0, 1, streams(tasks)) is None
    if all(task.x.dtype == w.dtype for task in tasks):  # else `solve_local` refuses them, by name
        same(solve_each(tasks, w, SETTINGS, streams(tasks)), one_by_one(tasks, w))


def test_generators_are_made_only_where_numbers_are_drawn():
    tasks = like(mlp())
    w = tasks[0].network.layout.initialise(SeedTree(1)).astype("float32")
    same(solve_each(tasks, w, SETTINGS, []), one_by_one(tasks, w))


class Lazy(FedAvg):
    """Replaces `local` and inherits `local_each`, which would say something else."""

    def local(self, task, point, rng):
        return super().local(task, point, rng)._replace(w=point)


def models(method, tasks, threads=1):
    w = tasks[0].network.layout.initialise(SeedTree(1)).astype("float32")
    found = run_rounds(method, tasks, method.start(w), range(1, 3), Participation(), SeedTree(3), threads)
    return [(method.model(state).tobytes(), record[:-1]) for state, record in found]


@pytest.mark.parametrize("threads", [1, 2])
def test_rounds_have_the_same_bytes_however_many_nodes_are_solved_together(threads, monkeypatch):
    tasks, method = like(mlp(), SIZES * 20), FedAvg(eta=0.1, local_steps=2)
    together = models(method, tasks, threads)
    monkeypatch.setattr(rounds, "TOGETHER", 1)
    assert models(method, tasks) == together


@pytest.mark.parametrize(
    ("nodes", "threads", "most"),
    [(5, 1, 5), (5, 2, 1), (100, 1, rounds.TOGETHER), (100, 2, 100 // (2 * rounds.CALLS))],
)
def test_small_nodes_are_solved_together_if_that_leaves_work_for_all_threads(
    nodes, threads, most, monkeypatch
):
    seen = []
    whole = NetworkTask.descend_each

    def watched(self, tasks, *others):
        seen.append(len(tasks))
        return whole(self, tasks, *others)

    monkeypatch.setattr(NetworkTask, "descend_each", watched)
    models(FedAvg(eta=0.1, local_steps=1), like(mlp(), (SIZES * 20)[:nodes]), threads)
    assert max(seen) == most
    seen.clear()
    models(FedAvg(eta=0.1, local_steps=1), like(mlp(), (5000,) * nodes), threads)
    assert max(seen) == 1


@pytest.mark.parametrize("method", [Lazy(eta=0.1), Reptile(eta=0.1)], ids=["replaced", "reptile"])
def test_a_method_that_replaces_its_work_is_asked_for_that_work(method, monkeypatch):
    tasks = like(mlp(), SIZES * 20)
    found = models(method, tasks)
    monkeypatch.setattr(rounds, "TOGETHER", 1)
    assert models(method, tasks) == found
    moved = np.frombuffer(found[-1][0], "float32") != tasks[0].network.layout.initialise(SeedTree(1))
    assert moved.any() == (not isinstance(method, Lazy))
