"""Tables and figures of cooperative learning, from `cooperative.json` of `refimpl cooperative compare`.

Milliseconds are left out: the runs were timed beside other work (`python -m bench.depth_speed` times depths).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refimpl.cooperative.compare import HEADER, Line, Outcome, cells, lines
from refimpl.cooperative.measure import Latency, Row
from refimpl.files.tables import markdown

Results = dict[str, Any]
TIME = HEADER.index("ms")


def table(results: Results) -> str:
    """A line for each scheme and depth, and what was run."""
    rows = [_untimed(cells(one)) for one in compared(results)]
    return f"{markdown(_untimed(HEADER), rows)}\n\n{about(results)}"


def _untimed(columns: Any) -> list[str]:
    return [*columns[:TIME], *columns[TIME + 1 :]]


def compared(results: Results) -> list[Line]:
    """The lines of the comparison, from its runs."""
    runs = [Outcome(**{**run, "rows": [_row(row) for row in run["rows"]]}) for run in results["runs"]]
    return lines(runs, margin=results["margin"])


def _row(table: Results) -> Row:
    return Row(**{**table, "latencies": tuple(Latency(**one) for one in table["latencies"])})


def about(results: Results) -> str:
    """The setting in words."""
    given, seeds = results["settings"], sorted({run["seed"] for run in results["runs"]})
    widths = "-".join(map(str, given["widths"]))
    lost = f" Diverged, and in no mean: {', '.join(results['diverged'])}." if results["diverged"] else ""
    size = f"{given['train_samples']} training samples" if given["train_samples"] else "all training samples"
    return (
        f"Data set {given['dataset']}, {size}, {given['epochs']} epochs, batches of {given['batch_size']}, "
        f"{given['model']} with widths {widths}, rate {given['rate']:g}, seeds {', '.join(map(str, seeds))}. "
        "Accuracy: test samples, mean +- standard deviation over seeds (ddof 1). Minus baseline: minus the "
        "network of that depth trained alone, paired by seed, with the 95 % interval of Student's t over "
        "seeds; above, below: p < 0.05, adjusted over the table (Holm); within the margin: the whole "
        f"interval is, margin {results['margin']:g} points. Training cost: FLOPs of a step as a "
        f"multiple of those of the full network alone.{lost}"
    )


def draw(results: Results, path: Path) -> Path:
    """Accuracy against FLOPs."""
    from refimpl.report.canvas import save
    from refimpl.report.cooperative import comparison_figure

    return save(path, lambda: comparison_figure(compared(results), timed=False))
