"""The table of a run's target nodes: accuracy, sparsity, FLOPs beside seconds, and their mean and spread.

Source: mathematics.md §6, §9.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from refimpl.federated.adapt import NodeReport

Cells = tuple[str, ...]
HEADER = ("node", "accuracy %", "before %", "off %", "kFLOP dense", "executed", "gate ms", "backbone ms")
LABELS = {  # columns that mean something else for a method
    "pfedme": {"accuracy %": "personal %", "before %": "global %"},
    "metasnip": {"gate ms": "prune ms"},
    "metasnip-weights": {"off %": "weights off %", "gate ms": "prune ms"},
}


def node_table(method: str, reports: Sequence[NodeReport]) -> tuple[list[str], list[Cells]]:
    """Header and rows: one for each node, then mean and spread over nodes."""
    labels = LABELS.get(method, {})
    return [labels.get(name, name) for name in HEADER], [*map(_cells, reports), *_summary(reports)]


def _cells(report: NodeReport) -> Cells:
    return (
        report.node,
        f"{100 * report.accuracy_after:.2f}",
        f"{100 * report.accuracy_before:.2f}",
        f"{100 * report.weights_off:.1f}"
        if report.weights_off > 0
        else f"{100 * report.sparsity_mean:.1f} +- {100 * report.sparsity_spread:.1f}",
        f"{report.flops_dense / 1e3:.1f}",
        f"{report.flops_executed / 1e3:.1f}",
        f"{1e3 * report.seconds_gate:.2f}",
        f"{1e3 * report.seconds_backbone:.2f}",
    )


def _summary(reports: Sequence[NodeReport]) -> list[Cells]:
    """Mean over nodes and, where it means something, the spread (standard deviation) over nodes."""

    def column(name: str, scale: float) -> list[float]:
        return [scale * getattr(report, name) for report in reports]

    accuracy, before = column("accuracy_after", 100), column("accuracy_before", 100)
    pruned = any(report.weights_off > 0 for report in reports)
    off = column("weights_off" if pruned else "sparsity_mean", 100)
    costs = [
        column("flops_dense", 1e-3),
        column("flops_executed", 1e-3),
        column("seconds_gate", 1e3),
        column("seconds_backbone", 1e3),
    ]
    digits = (1, 1, 2, 2)
    means = [f"{statistics.fmean(cost):.{places}f}" for cost, places in zip(costs, digits, strict=True)]
    mean = [
        f"{statistics.fmean(values):.{places}f}" for values, places in ((accuracy, 2), (before, 2), (off, 1))
    ]
    spread = [
        f"{statistics.pstdev(values):.{places}f}" for values, places in ((accuracy, 2), (before, 2), (off, 1))
    ]
    return [("mean", *mean, *means), ("spread over nodes", *spread, "", "", "", "")]
