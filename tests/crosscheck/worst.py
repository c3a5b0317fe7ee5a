"""Measure how much this package and PyTorch differ: the worst error of every network, mode and dtype.

    python tests/crosscheck/worst.py measure tests/crosscheck/golden/worst.json  # needs PyTorch
    python tests/crosscheck/worst.py readme tests/crosscheck/golden/worst.json \
        --into refimpl/crosscheck/README.md

Errors are those of `refimpl golden check`: the norm of the difference relative to that of this package's
array (an entry of which counts as at least 0.001 of those of the case's largest array, values and gradients
apart), the worst of all activations, masks and gradients.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from refimpl._version import __version__
from refimpl.crosscheck.bridges.run import leave_with
from refimpl.crosscheck.compare import DEPARTS, FINE, Row, as_theirs, compare
from refimpl.crosscheck.golden.case import LEVELS, Case
from refimpl.crosscheck.golden.file import golden_of
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.models import NAMES
from refimpl.crosscheck.golden.ours import run as ours
from refimpl.errors import RefimplError
from refimpl.files.paths import expanded
from refimpl.files.tables import markdown, put_into
from refimpl.nn.context import MODES

DTYPES = ("float64", "float32")
COLUMNS = ("ungated", *MODES)
SEED = 0
COMMAND = "python tests/crosscheck/worst.py readme"  # the command in the README's marks
Worst = dict[str, Any]


def measure() -> Worst:
    """Measure every network at full width in every mode, and every other level, in both dtypes."""
    from refimpl.crosscheck.bridges.torch.run import single_threaded

    content: Worst = {"made_by": [single_threaded(), f"refimpl {__version__}"], "networks": {}, "levels": {}}
    for name in NAMES:
        for dtype in DTYPES:
            cases = list(build_cases("networks", SEED, dtype, (name,), full=True))
            content["networks"][f"{name} {dtype}"] = {
                # The second word of a case's name is the mode, or `ungated` if it has no gates.
                column: _worst(case for case in cases if case.name.split("-")[1] == column)
                for column in COLUMNS
            }
    for level in LEVELS:
        if level != "networks":
            content["levels"][level] = {dtype: _worst(build_cases(level, SEED, dtype)) for dtype in DTYPES}
    return content


def _worst(cases: Iterable[Case]) -> dict[str, Any]:
    """The array with the largest error of all cases."""
    rows = [row for case in cases for row in rows_of(case)]
    worst = max(rows, key=lambda row: row.relative)
    return {"array": worst.name, "relative": worst.relative, "arrays": len(rows)}


def rows_of(case: Case) -> tuple[Row, ...]:
    """Compare PyTorch's outputs with this package's; raises `RefimplError` if that is impossible."""
    from refimpl.crosscheck.bridges.torch.run import run

    rows = compare(golden_of([(case, ours(case))], "refimpl"), as_theirs({case.name: run(case)})).rows
    for row in rows:
        if row.status not in (FINE, DEPARTS):
            raise RefimplError(f"{row.name}: {row.status} {row.note}")
    return rows


def readme(content: Worst) -> str:
    """The two tables of the README."""
    who = " against ".join(content["made_by"])
    parts = (
        f"Worst relative error of any activation, mask or gradient, {who}: the norm of an array's difference "
        "relative to the array's own (an entry of it counting as at least 0.001 of those of the case's "
        "largest array, values and gradients apart). Networks at their own widths, gate gradients dense and "
        "active:",
        _table("network", COLUMNS, content["networks"]),
        "And of the other levels (`algorithm`: ten rounds):",
        _table("level", DTYPES, content["levels"]),
    )
    return "\n\n".join(parts)


def _table(what: str, columns: Sequence[str], content: Worst) -> str:
    rows = [
        [name, *(f"{entries[column]['relative']:.1e}" for column in columns)]
        for name, entries in content.items()
    ]
    return markdown([what, *columns], rows)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure", help="compare both, and write the errors as JSON").add_argument(
        "results", type=expanded
    )
    tables = commands.add_parser("readme", help="print the tables, or put them into a file")
    tables.add_argument("results", type=expanded)
    tables.add_argument("--into", type=expanded, help="file with marks, between which the tables are put")
    options = parser.parse_args(arguments)
    if options.command == "measure":
        options.results.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
        return 0
    content = json.loads(options.results.read_text(encoding="utf-8"))
    if options.into is None:
        print(readme(content))
    else:
        text = options.into.read_text(encoding="utf-8")
        options.into.write_text(put_into(text, COMMAND, readme(content)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    leave_with("worst", main)
