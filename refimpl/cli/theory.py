"""`refimpl theory`: the paper's lemmas, theorem and rates, both sides of every statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from refimpl.cli.output import facts, print_json, table
from refimpl.cli.progress import Progress

if TYPE_CHECKING:
    from refimpl.theory import Row

SECTIONS = ("gap", "lemmas", "theorem", "rates")
HEADER = ("statement", "family", "left", "right", "slack", "verdict")


@click.command(epilog="\b\nExamples:\n  refimpl theory all\n  refimpl theory theorem --verbose --seed 1")
@click.argument("section", type=click.Choice((*SECTIONS, "all")), default="all")
@click.option("-v", "--verbose", is_flag=True, help="Every row, not only the tightest of each statement.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Root of all numbers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every row.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(section: str, verbose: bool, seed: int, as_json: bool, quiet: bool) -> None:
    """Check the paper's lemmas, theorem and rates numerically.

    A statement is left <= right; it is checked on several families of problems whose constants are known.
    For each statement the family is shown that comes nearest to violating it, and violations always.
    Exits with 1 if a statement is violated. What each one says, and how it differs from the printed form:
    the help text of the module `refimpl.theory`.
    """
    from refimpl import theory

    chosen = SECTIONS if section == "all" else (section,)
    found: dict[str, list[Row]] = {}
    with Progress(len(chosen), quiet) as progress:
        for name in chosen:
            found[name] = theory.run_section(name, seed)
            progress.step(f"theory  {name}: {len(found[name])} rows")
    rows = [row for section_rows in found.values() for row in section_rows]
    passed = theory.all_hold(rows)
    if as_json:
        sections = {name: [row._asdict() for row in of] for name, of in found.items()}
        print_json({"passed": passed, "seed": seed, "sections": sections})
    else:
        for name, of in found.items():
            click.echo(_text(name, of, verbose) + "\n")
        violated = [row for row in rows if row.verdict == "violated"]
        verdict = "all hold" if passed else f"{len(violated)} VIOLATED"
        click.echo(f"{len(rows)} rows, {verdict}")
    if not passed:
        click.get_current_context().exit(1)


def _text(section: str, rows: Sequence[Row], verbose: bool) -> str:
    """One table of a section, followed by the terms of the rows that have any."""
    from refimpl.theory import summarise

    if verbose:
        shown, cells = list(rows), [_cells(row, row.verdict) for row in rows]
    else:
        summaries = summarise(rows)
        shown = [summary.tightest for summary in summaries]
        cells = [_cells(s.tightest, f"{s.held} of {s.checked} hold") for s in summaries]
        others = [row for row in rows if row.verdict == "violated" and row not in shown]
        cells += [_cells(row, row.verdict) for row in others]
    terms = [_terms(row) for row in shown if row.terms]
    return "\n".join([section, table(HEADER, cells), *terms])


def _terms(row: Row) -> str:
    """What the sides of a row are made of, one number a line."""
    pairs = [(f"  {name}", f"{value:.6g}") for name, value in row.terms]
    return f"\n{row.statement}; {row.family}\n" + facts(pairs)


def _cells(row: Row, verdict: str) -> tuple[str, ...]:
    return (row.statement, row.family, f"{row.left:.4g}", f"{row.right:.4g}", f"{row.slack:.2g}", verdict)
