"""Times of one core that are kept as JSON, and shown as Markdown beside those of other kinds of processor."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """The options of every such program."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--out", type=Path, help="where the times are kept as JSON")
    parser.add_argument("--table", type=Path, nargs="+", help="print kept times instead of measuring")
    parser.add_argument("--kind", default="this machine", help="the columns' name in the table")
    parser.add_argument("--smoke", action="store_true", help="as little as shows that it works")
    return parser


def show(
    options: argparse.Namespace,
    table: Callable[[list[dict[str, Any]]], str],
    measure: Callable[[], list[dict[str, Any]]],
    how: str = "processor time, shared with other work",
) -> None:
    """Print the table of kept times, or of those that are measured now, on one core, and kept.

    how: which time is measured.
    """
    if options.table:
        print(table([json.loads(path.read_text()) for path in options.table]))
        return
    from refimpl.bench.process import pin

    pin(1)
    from refimpl.files.environment import environment

    machine = f"{environment()['cpu']['model']}, one core, {how}"
    results = {"kind": options.kind, "machine": machine, "rows": measure()}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table([results]))
