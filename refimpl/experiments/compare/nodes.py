"""The table of a run's target nodes: accuracy, sparsity, FLOPs beside seconds, and their mean and spread.

A node at which adaptation diverged has no numbers of an adapted model; mean and spread leave it out.

Source: mathematics.md §6, §9.
"""

from collections.abc import Collection, Sequence
from statistics import fmean, pstdev
from typing import NamedTuple

from refimpl.experiments.compare.summary import spread
from refimpl.federated.adapt import NodeReport
from refimpl.files.tables import number
from refimpl.registry import METHODS

Cells = tuple[str, ...]


class Column(NamedTuple):
    """A field of `NodeReport` in the table; spread: whether to show its standard deviation over nodes."""

    label: str
    field: str
    scale: float
    digits: int
    spread: bool = False

    def text(self, value: float) -> str:
        """A value of the field as text; a dash for NaN."""
        return number(self.scale * value, f".{self.digits}f")


ACCURACY = Column("accuracy %", "accuracy_after", 100, 2, spread=True)
BEFORE = Column("before %", "accuracy_before", 100, 2, spread=True)
PRUNED = Column("pruned %", "accuracy_pruned", 100, 2, spread=True)  # for methods that prune
CHANNELS = Column("off % +- over samples", "sparsity_mean", 100, 1, spread=True)
MASKS = (  # of trained gates
    Column("conditional %", "conditional_share", 100, 1, spread=True),
    Column("frozen %", "accuracy_frozen", 100, 2, spread=True),
    Column("class bits", "class_information", 1, 3),
)
WEIGHTS = Column("weights off %", "weights_off", 100, 1, spread=True)  # replaces the column of channels
COSTS = (
    Column("kFLOP dense", "flops_dense", 1e-3, 1),
    Column("executed", "flops_executed", 1e-3, 1),
    Column("gate ms", "seconds_gate", 1e3, 2),
    Column("backbone ms", "seconds_backbone", 1e3, 2),
)
DIVERGED = "diverged"  # shown instead of an accuracy


def node_table(
    method: str, reports: Sequence[NodeReport], strangers: Collection[str] = ()
) -> tuple[list[str], list[Cells]]:
    """Header and rows: one for each node, then mean and spread over nodes.

    strangers: nodes of whose classes the meta-model has seen none; before adaptation it guesses there.
    """
    labels, columns = METHODS[method].labels, _columns(method)
    header = ["node", *(labels.get(column.label, column.label) for column in columns)]
    rows = [_cells(report, columns, report.node in strangers) for report in reports]
    return header, [*rows, *_summary(reports, columns)]


def _columns(method: str) -> list[Column]:
    prunes = METHODS[method].prunes
    pruned = [PRUNED] if prunes else []
    masks = MASKS if METHODS[method].gated else ()
    return [ACCURACY, BEFORE, *pruned, WEIGHTS if prunes == "weights" else CHANNELS, *masks, *COSTS]


def _cells(report: NodeReport, columns: Sequence[Column], stranger: bool) -> Cells:
    guess = {BEFORE: f"{BEFORE.text(report.accuracy_before)} (chance)"} if stranger else {}
    return (report.node, *(guess.get(column) or _cell(report, column) for column in columns))


def _cell(report: NodeReport, column: Column) -> str:
    if column is ACCURACY and report.diverged:
        return DIVERGED
    text = column.text(getattr(report, column.field))
    if column is CHANNELS and not report.diverged:
        return f"{text} +- {column.text(report.sparsity_spread)}"
    return text


def _summary(reports: Sequence[NodeReport], columns: Sequence[Column]) -> list[Cells]:
    """Mean, and for some columns standard deviation, over the nodes that did not diverge."""
    good = [report for report in reports if not report.diverged]
    mean = "mean" if len(good) == len(reports) else f"mean of {len(good)} of {len(reports)} nodes"
    if not good:
        return [(mean, *("-" for _ in columns))]
    values = [(column, [getattr(report, column.field) for report in good]) for column in columns]
    means = [column.text(fmean(own)) for column, own in values]
    spreads = [column.text(spread(own, pstdev)) if column.spread else "" for column, own in values]
    return [(mean, *means), ("spread over nodes (ddof 0)", *spreads)]
