"""The tables of a comparison, in the paper's layout: on the screen, as Markdown, CSV and JSON.

The paper's Tables 1, 3 and 5 are about meta-training (method, local updates, accuracy, seconds), Tables 2, 4
and 6 about adaptation (accuracy, sparsity, seconds). Here both kinds also show the work beside the seconds;
those about adaptation show the work of the dense network as well.

Source: [MG] section 5; mathematics.md §9.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from refimpl.experiments.compare.claims import Claim, claims_of, dealt_otherwise
from refimpl.experiments.compare.plan import Cell, Claims, Plan, run_of
from refimpl.experiments.compare.summary import Row, by_label, curves, finished, gaps, summarise
from refimpl.experiments.compare.work import Outcome
from refimpl.experiments.differences import MANY
from refimpl.experiments.methods import notes
from refimpl.files.environment import environment
from refimpl.files.tables import markdown, number, table
from refimpl.registry import METHODS

Cells = tuple[str, ...]
Writer = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def text(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """Both tables, the gaps and the notes, for a screen."""
    return "\n\n".join(_blocks(plan, outcomes, table))


def markdown_text(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """The tables, the gaps and the notes, as Markdown."""
    return "\n\n".join(_blocks(plan, outcomes, markdown)) + "\n"


def csv_text(rows: Sequence[Row], claims: Sequence[Claim] = ()) -> str:
    """The rows as CSV with all digits; a cell is empty if there is no number.

    If there are claims, the last columns show them, as `difference_points` and so on; the baseline has none.
    """
    file, own = io.StringIO(), {claim.label: asdict(claim) for claim in claims}
    names = [item.name for item in fields(Claim)[1:]] if claims else []
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*(item.name for item in fields(Row)), *(f"difference_{name}" for name in names)])
    for row in rows:
        cells = [*asdict(row).values(), *(own.get(row.label, {}).get(name, "") for name in names)]
        writer.writerow("" if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in cells)
    return file.getvalue()


def results(plan: Plan, outcomes: Sequence[Outcome], threads: int | None) -> dict[str, Any]:
    """Everything from which the tables and figures are made, for JSON."""
    return {
        "plan": plan.table(),
        "environment": environment(threads),
        "notes": plan_notes(plan, outcomes),
        "rows": [asdict(row) for row in summarise(outcomes)],
        "claims": [asdict(claim) for claim in claims_of(outcomes, plan.claims)],
        "accuracy_by_round": [asdict(curve) for curve in curves(outcomes)],
        "runs": [_run(outcome) for outcome in outcomes],
    }


def _run(outcome: Outcome) -> dict[str, Any]:
    return {
        "label": outcome.label,
        **run_of(outcome.config),
        "failure": outcome.failure,
        "train_seconds": math.fsum(record.seconds for record in outcome.records),
        "accuracy_by_round": [list(point) for point in outcome.accuracy_by_round],
        "nodes": [report._asdict() for report in outcome.reports],
    }


def tables(outcomes: Sequence[Outcome], claims: Claims | None = None) -> list[tuple[Cells, list[Cells]]]:
    """Header and rows of the tables about training and about adaptation, then of claims and gaps if any."""
    found = row_tables(summarise(outcomes))
    if claims:
        found.append(claim_table(claims_of(outcomes, claims), claims.baseline))
    labels, by_round = gaps(outcomes)
    if labels:
        lines = [(str(round_), *(number(v, ".2e") for v in values)) for round_, values in by_round]
        found.append((("stationarity gap, round", *labels), lines))
    return found


def claim_table(claims: Sequence[Claim], baseline: str) -> tuple[Cells, list[Cells]]:
    """Header and rows of the table of differences to the baseline."""
    lines = [tuple(cell(one) for cell in CLAIM.values()) for one in claims]
    return (f"against {baseline}", *tuple(CLAIM)[1:]), lines


def _blocks(plan: Plan, outcomes: Sequence[Outcome], write: Writer) -> list[str]:
    lines = plan_notes(plan, outcomes)
    return [
        *(write(*one) for one in tables(outcomes, plan.claims)),
        "\n".join(f"- {line}" if write is markdown else line for line in lines),
    ]


def plan_notes(plan: Plan, outcomes: Sequence[Outcome]) -> list[str]:
    """Notes for the reader: what the numbers mean, then what is special about some of them."""
    seeds = ", ".join(map(str, plan.seeds))
    lines = [
        f"data set {_common(plan, 'dataset')}, model {_common(plan, 'model')}, "
        f"{_common(plan, 'nodes')} training nodes ({_common(plan, 'per_round', 'all')} a round), "
        f"{_common(plan, 'targets')} target nodes{_rotation(plan)}, seeds {seeds}",
        "accuracy: target nodes' test parts, last round, after adaptation; mean over nodes, then mean +- "
        "standard deviation over seeds (ddof 1); median, worst: over a seed's nodes, then mean over seeds; "
        "before: the meta-model as it comes to the nodes",
        "off: gated channels off, mean +- standard deviation over nodes (ddof 0; both are means over seeds); "
        "FLOPs dense and executed: one sample, forward; adapt: one node, all stages; train: rounds alone "
        "(other trainings beside them where there were threads); floats sent: up and down",
    ]
    if any(METHODS[config.method].gated for _, config in plan.rows):
        lines.append(
            "trained gates: over samples: spread of the share off over a node's test samples; conditional: "
            "gated channels whose mask differs between them; frozen: accuracy with each node's mask frozen "
            "to what most support samples open; class bits: mutual information of mask and class"
        )
    lines += _claim_notes(plan)
    lines += sorted({f"data: {outcome.note}" for outcome in outcomes if outcome.note})
    lines += notes({config.method for _, config in plan.rows})
    return lines + _failures(outcomes)


def _rotation(plan: Plan) -> str:
    rotated = any(config.folds > 1 for _, config in plan.rows)
    return f", every node a target once in {_common(plan, 'folds')} folds of a seed" if rotated else ""


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    """How many runs are left out of the numbers, then each of them with its reason."""
    lines = [f"{Cell(o.label, o.config).title}: {o.failure}" for o in outcomes if o.failure]
    used = sum(len(runs) for own in by_label(outcomes).values() for runs in finished(own))
    many = f"{len(outcomes) - used} of {len(outcomes)} runs"
    return [f"left out of every mean, median and worst node: {many}", *lines] if lines else []


def _claim_notes(plan: Plan) -> list[str]:
    """How the differences to the baseline are meant, and for which rows they are not at the same nodes."""
    if not (claims := plan.claims):
        return []
    stated = "stated after the comparison had begun" if claims.afterwards else "stated before the run"
    margin = f"margin {claims.margin:g} points" if claims.margin else "no margin"
    lines = [
        f"against {claims.baseline}: differences of accuracy in percentage points, paired by seed and node; "
        f"95 % interval by a bootstrap over seeds, by Student's t if fewer than {MANY}; p: adjusted over "
        "the rows of the table (Holm); above, below: p < 0.05; within the margin: the whole interval is; "
        f"{margin}, {stated}"
    ]
    if others := dealt_otherwise(plan):
        listed = ", ".join(others)
        lines.append(
            f"other nodes than those of {claims.baseline}, so paired by their numbers only: {listed}"
        )
    return lines


def _common(plan: Plan, key: str, zero: str = "0") -> str:
    """The values of the key over all rows, joined by "or"; `zero` is written for the value 0."""
    values = dict.fromkeys(getattr(config, key) for _, config in plan.rows)
    return " or ".join(str(value) if value else zero for value in values)


def _accuracy(row: Row) -> str:
    if row.diverged == row.seeds:
        return "diverged"
    over = f" ({row.seeds - row.diverged} of {row.seeds} seeds)" if row.diverged else ""
    return _spread(row.accuracy_adapted_last_mean, row.accuracy_adapted_last_std, 2) + over


def _off(row: Row) -> str:
    if row.weights_off_mean > 0:
        return f"weights {_percent(row.weights_off_mean, 1)}"
    if row.flops_executed == row.flops_dense or math.isnan(row.sparsity_mean):
        return "-"
    return _spread(row.sparsity_mean, row.sparsity_std_over_nodes, 1)


def _spread(mean: float, std: float, digits: int) -> str:
    return _percent(mean, digits) + ("" if math.isnan(std) else f" +- {_percent(std, digits)}")


def _percent(share: float, digits: int = 2) -> str:
    return number(100 * share, f".{digits}f")


# --- columns: each a label and the cell of a row


TRAINING: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.label,
    "local updates": lambda row: str(row.local_steps),
    "rounds": lambda row: str(row.rounds),
    "accuracy %": _accuracy,
    "train s": lambda row: number(row.train_seconds, ".1f"),
    "gradients": lambda row: number(row.gradients, ".0f"),
    "GFLOP": lambda row: number(row.train_flops / 1e9, ".4g"),
    "Mfloats sent": lambda row: number(row.floats_sent / 1e6, ".4g"),
    "nonzero": lambda row: number(row.floats_sent_nonzero / 1e6, ".4g"),
}
MEDIAN, WORST, PRUNED = "median %", "worst %", "pruned %"
SAMPLES, CONDITIONAL = "over samples", "conditional %"
FROZEN, INFORMATION = "frozen %", "class bits"
OPTIONAL = {  # columns that are shown only if a row has a number of that name
    MEDIAN: "accuracy_adapted_last_median",
    WORST: "accuracy_adapted_last_worst",
    PRUNED: "accuracy_pruned_last_mean",
    SAMPLES: "conditional_share_mean",
    CONDITIONAL: "conditional_share_mean",
    FROZEN: "accuracy_frozen_last_mean",
    INFORMATION: "class_information_mean",
}
ADAPTATION: dict[str, Callable[[Row], str]] = {
    "method": lambda row: row.label,
    "accuracy %": _accuracy,
    MEDIAN: lambda row: _percent(row.accuracy_adapted_last_median),
    WORST: lambda row: _percent(row.accuracy_adapted_last_worst),
    "before %": lambda row: _percent(row.accuracy_unadapted_last_mean),
    PRUNED: lambda row: _percent(row.accuracy_pruned_last_mean),
    "off %": _off,
    SAMPLES: lambda row: (  # only masks of trained gates may differ between samples
        "-" if math.isnan(row.conditional_share_mean) else f"+- {_percent(row.sparsity_std_over_samples, 1)}"
    ),
    CONDITIONAL: lambda row: _percent(row.conditional_share_mean, 1),
    FROZEN: lambda row: _percent(row.accuracy_frozen_last_mean),
    INFORMATION: lambda row: number(row.class_information_mean, ".3f"),
    "kFLOP dense": lambda row: number(row.flops_dense / 1e3, ".1f"),
    "executed": lambda row: number(row.flops_executed / 1e3, ".1f"),
    "adapt ms": lambda row: number(row.adapt_seconds * 1e3, ".2f"),
    "adapt MFLOP": lambda row: number(row.adapt_flops / 1e6, ".4g"),
}


def _interval(claim: Claim) -> str:
    bounded = math.isfinite(claim.high)
    return f"[{claim.low:.2f}, {claim.high:.2f}]" if bounded else "unbounded" if claim.pairs else "-"


CLAIM: dict[str, Callable[[Claim], str]] = {
    "method": lambda claim: claim.label,
    "points": lambda claim: number(claim.points, "+.2f"),
    "95 % interval": _interval,
    "p": lambda claim: number(claim.p_holm, ".4f"),
    "pairs": lambda claim: str(claim.pairs),
    "seeds": lambda claim: f"{claim.seeds}" + (f" ({claim.left_out} left out)" if claim.left_out else ""),
    "verdict": lambda claim: claim.verdict,
}


def _has_numbers(rows: Sequence[Row], label: str) -> bool:
    """Whether the column is to be shown: always, or if it is optional where a row has a number for it."""
    return label not in OPTIONAL or any(not math.isnan(getattr(row, OPTIONAL[label])) for row in rows)


def row_tables(rows: Sequence[Row]) -> list[tuple[Cells, list[Cells]]]:
    """Header and rows of the tables about training and about adaptation."""
    adaptation = {label: cell for label, cell in ADAPTATION.items() if _has_numbers(rows, label)}
    return [
        (tuple(columns), [tuple(cell(row) for cell in columns.values()) for row in rows])
        for columns in (TRAINING, adaptation)
    ]
