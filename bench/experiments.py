"""The README's tables of experiments, from results of `refimpl compare` that are kept in `experiments/`.

NAME.json is the `results.json` of a comparison, NAME.toml the settings it was given and NAME.trials.jsonl
the search on validation nodes they come from; figures are drawn from the results. Of an ablation the table
about adaptation is shown alone. Where a comparison stated a baseline, differences follow, also to the second
one of `SECOND`. `regime.json` is what `python -m bench.regime` writes; files whose names begin with
`tickets-` and `cooperative-` are those of the two commands' own comparisons, and those with `fewshot-`,
`twin-` and `primary-` what `bench.fewshot`, `bench.fewshot_twin` and `bench.primary` write.
"""

from __future__ import annotations

import json
from math import nan
from pathlib import Path
from typing import Any

from bench import depths, fewshot, fewshot_twin, primary, regime
from refimpl.experiments.compare.claims import Claim, judged
from refimpl.experiments.compare.layout import claim_table, row_tables
from refimpl.experiments.compare.summary import Curve, Row, read_row
from refimpl.fewshot.tickets.comparison import COSTS_NOTE, cells
from refimpl.files.tables import markdown

FOLDER = Path(__file__).parent / "results"
ABLATION = "ablation-"  # how its name begins
TICKETS = "tickets-"  # how the name of a `comparison.json` of `refimpl tickets compare` begins
COOPERATIVE = "cooperative-"  # how the name of a `cooperative.json` of `refimpl cooperative compare` begins
REGIME = "regime"
TABLES = {
    "regime": regime.table,
    "cooperative": depths.table,
    "fewshot": fewshot.table,
    "primary": primary.table,
    "twin": fewshot_twin.table,
}
SECOND = {
    "protocol-1": "perfedavg",
    "protocol-2": "perfedavg",
    "protocol-half": "perfedavg",
    "conditional-20": "metasnip",
    "conditional-demo": "metasnip",
    "conditional-cifar10-second": "metasnip",
    "conditional-cifar10-third": "metasnip",
    "conditional-cnn7": "metasnip",
    "conditional-cnn7-second": "metasnip",
    "protocol-cifar10": "fedavg",
}
Results = dict[str, Any]


def command(name: str) -> str:
    """What the marks in the README say."""
    return f"python -m bench experiments {name}"


def names() -> list[str]:
    """The experiments that are kept."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read(name: str) -> Results:
    """The results of one."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def rows(results: Results) -> list[Row]:
    return [read_row(table) for table in results["rows"]]


def content(name: str) -> str:
    """Tables and notes as Markdown; of an ablation, what was run and the last table."""
    results = read(name)
    if name.startswith(TICKETS):
        return f"{markdown(*cells(results['rows'], results['judged']['baseline']))}\n\n{COSTS_NOTE}."
    if name.partition("-")[0] in TABLES:
        return TABLES[name.partition("-")[0]](results)
    about, *notes = results["notes"]
    training, adaptation = (markdown(*table) for table in row_tables(rows(results)))
    if name.startswith(ABLATION):
        return f"{about}:\n\n{adaptation}"
    stated = [
        Claim(**{key: nan if v is None else v for key, v in one.items()}) for one in results.get("claims", [])
    ]
    tables = [claim_table(stated, results["plan"]["claims"]["baseline"])] if stated else []
    tables += [claim_table(differences(results, SECOND[name]), SECOND[name])] if name in SECOND else []
    blocks = [training, adaptation, *(markdown(*table) for table in tables)]
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in (about, *notes))])


def differences(results: Results, baseline: str) -> list[Claim]:
    """The difference of every row to another baseline than the stated one, adjusted over the rows."""
    values: dict[str, dict[tuple[int, str], float]] = {}
    for run in results["runs"]:
        own = {(run["seed"], node["node"]): 100 * node["accuracy_after"] for node in run["nodes"]}
        values.setdefault(run["label"], {}).update(own)
    pairs = {label: (own, values[baseline]) for label, own in values.items() if label != baseline}
    return judged(pairs, 0.0, len({run["seed"] for run in results["runs"]}))


def draw(name: str) -> list[Path]:
    """Accuracy by round, of each method's first row, and accuracy against FLOPs, where it was measured."""
    from refimpl.report.canvas import save
    from refimpl.report.comparison import accuracy_figure, frontier_figure, series
    from refimpl.report.tickets import comparison_figure

    results, drawn = read(name), []
    if name.startswith(TICKETS):
        return [save(FOLDER / f"{name}.png", lambda: comparison_figure(results["rows"]))]
    if name.startswith(COOPERATIVE):
        return [depths.draw(results, FOLDER / f"{name}.png")]
    if name.startswith(("fewshot-", "twin-", "primary-")):
        return []
    if name == REGIME:
        return [regime.draw(results, FOLDER / f"{name}.png")]
    points = [row for row in rows(results) if row.diverged < row.seeds]
    first = {row.method: row.label for row in reversed(points)}
    curves = [Curve(**curve) for curve in results["accuracy_by_round"] if curve["label"] in first.values()]
    if curves:
        drawn.append(save(FOLDER / f"{name}-accuracy.png", lambda: accuracy_figure(curves)))
    names = [series(point)[0] for point in points]
    if any(names.count(name) >= 3 for name in names):  # so that a line is informative
        drawn.append(save(FOLDER / f"{name}-frontier.png", lambda: frontier_figure(points)))
    return drawn
