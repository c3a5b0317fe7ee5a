"""Outcomes of comparisons, and small plans, that tests of the room make up."""

from __future__ import annotations

from dataclasses import replace

from refimpl.experiments.compare.plan import Plan
from refimpl.experiments.compare.work import Outcome
from refimpl.experiments.config import Config, resolve
from refimpl.federated.adapt import NodeReport
from refimpl.federated.rounds import RoundRecord

TINY = {"nodes": 3, "targets": 2, "rounds": 3, "local_steps": 1}


def report(accuracy, sparsity=0.25):
    return NodeReport("n", 0.5, accuracy, 1.0, 0.5, sparsity, 0.1, 1000.0, 750.0, 10.0, 5.0, 0.001, 0.002)


def record(round_, gap):
    return RoundRecord(round_, (0,), 1.0, gap, 0.1, 3, 7.0, 0.0, 10, 9, 0.25)


def outcome(seed, accuracies, gaps=(4.0, 1.0), sparsities=(0.25, 0.25), **changes):
    records = tuple(record(k + 1, gap) for k, gap in enumerate(gaps))
    reports = tuple(report(*pair) for pair in zip(accuracies, sparsities, strict=False))
    return Outcome("metagater", Config(seed=seed, **changes), records, reports)


def plan(*methods, seeds=(0,), every=0, **options):
    configs = [resolve(method=method, **{**TINY, **options}) for method in methods]
    return Plan(tuple((config.method, config) for config in configs), seeds, every)


def accuracies(label, by_seed, **changes):
    """Outcomes of a row: for each seed the accuracies of its nodes, or None where training diverged."""
    found = []
    for seed, own in by_seed.items():
        nodes = tuple(report(value)._replace(node=f"target-{k}") for k, value in enumerate(own or ()))
        failure = "" if own else "training diverged in round 7"
        found.append(replace(outcome(seed, (), **changes), label=label, reports=nodes, failure=failure))
    return found
