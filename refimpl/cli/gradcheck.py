"""`refimpl gradcheck`: a table of the worst relative error of the gradient, by parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.options import MODEL, Session, session_options
from refimpl.cli.output import answer, exit_unless, table
from refimpl.cli.progress import Talk, working
from refimpl.files.tables import counted

if TYPE_CHECKING:
    from refimpl.nn.gradcases import Case, Checked

TOLERANCE = 1e-6
MODES = ("hard", "gumbel", "ste", "soft", "ungated")
GATE_GRADS = ("dense", "active")


@click.command(
    epilog="\b\nExamples:\n  refimpl gradcheck --model digits --mode gumbel\n  refimpl gradcheck --all"
)
@click.option(
    "--all", "everything", is_flag=True, help="Check all layers, the loss, all models and settings."
)
@click.option("--model", type=MODEL, help="One model at full width.  [digits]")
@click.option("--mode", type=click.Choice(MODES), help="Check only this gate mode.")
@click.option("--gate-grad", type=click.Choice(GATE_GRADS), help="Check only this gate gradient.")
@click.option("--batch", type=click.IntRange(min=2), default=2, show_default=True, help="Batch size.")
@click.option(
    "--directions", type=click.IntRange(min=1), default=1, show_default=True, help="Directions per parameter."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all numbers.")
@session_options("json", "talk")
def command(
    everything: bool,
    model: str | None,
    mode: str | None,
    gate_grad: str | None,
    batch: int,
    directions: int,
    seed: int,
    session: Session,
) -> None:
    """Check gradients against central differences, in float64.

    The command prints, for each parameter, the worst relative error of the derivative along random
    directions. It exits with 1 if one is above 1e-6. For hard, gumbel and ste gates it checks the documented
    surrogate derivative. A difference means nothing where a kink of ReLU or max-pooling lies within the
    finest step, so a case above the limit is repeated at two other points and must pass at both.

    With --all the large models have fewer channels, as the output says.
    """
    from refimpl.nn import gradcases
    from refimpl.nn.zoo import checked_names

    if everything and model:
        raise click.UsageError("--all checks every model; leave out --model")
    settings = [setting for setting in gradcases.SETTINGS if _chosen(setting, mode, gate_grad)]
    if not settings:
        raise click.UsageError("ungated networks have no gate gradient")
    models = checked_names() if everything else (model or "digits",)
    cases = gradcases.network_cases(models, settings, seed, batch, directions, narrow=everything)
    if everything:
        cases = gradcases.layer_cases(seed, batch, directions) + cases
    checked, repeated = _check(cases, session.talk)
    worst = max(map(_worst, checked))
    passed = all(_good(result) for result in checked)
    lines = [
        *_tables(checked, gradcases.NARROW if everything else {}),
        *(f"{name}: a kink was too near the first point; checked at two others" for name in repeated),
        f"worst {worst:.1e}, allowed {TOLERANCE:.0e}: {'passed' if passed else 'FAILED'}",
    ]
    answer(session, _as_json(checked, repeated, worst, passed), "\n".join(lines))
    exit_unless(passed)


def _chosen(setting: Any, mode: str | None, gate_grad: str | None) -> bool:
    """Whether the options ask for this setting."""
    of_mode = mode is None or (setting.mode or "ungated") == mode
    return of_mode and (gate_grad is None or setting.gate_grad == gate_grad)


def _check(cases: Sequence[Case], talk: Talk) -> tuple[list[Checked], list[str]]:
    """Check everything; returns the results and the names of the cases that passed when repeated."""
    checked: list[Checked] = []
    repeated: list[str] = []
    with working(len(cases), talk) as progress:
        progress.say(f"checking {counted(len(cases), 'case')}")
        for case in cases:
            result = case.check(0)
            if not _good(result):
                others = [case.check(1), case.check(2)]
                if all(_good(other) for other in others):
                    result = max(others, key=_worst)
                    repeated.append(f"{case.name} {case.setting}")
            checked.append(result)
            progress.step(f"gradcheck  {len(checked)}/{len(cases)}  {case.name} {case.setting}")
    return checked, repeated


def _worst(result: Checked) -> float:
    """The largest error, or infinity if an error is NaN."""
    return max(math.inf if math.isnan(slot.error) else slot.error for slot in result.errors)


def _good(result: Checked) -> bool:
    return _worst(result) <= TOLERANCE


def _as_json(checked: Sequence[Checked], repeated: list[str], worst: float, passed: bool) -> dict[str, Any]:
    cases = [
        {
            "case": result.case,
            "setting": result.setting,
            "off_share": result.off,
            "errors": {slot.name: slot.error for slot in result.errors},
        }
        for result in checked
    ]
    return {"passed": passed, "worst": worst, "tolerance": TOLERANCE, "repeated": repeated, "cases": cases}


def _tables(checked: Sequence[Checked], narrow: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A table of all layers, then one for each network with a row for each parameter."""
    layers = [result for result in checked if result.setting == "layer"]
    if layers:
        rows = [(result.case, slot.name, f"{slot.error:.1e}") for result in layers for slot in result.errors]
        yield table(("layer", "parameter", "error"), rows) + "\n"
    networks = [result for result in checked if result.setting != "layer"]
    for name in dict.fromkeys(result.case for result in networks):
        note = _narrowed(narrow[name]) if name in narrow else ""
        yield _network_table(name + note, [result for result in networks if result.case == name]) + "\n"


def _narrowed(keys: Mapping[str, Any]) -> str:
    """How a model is made smaller than usual."""
    channels, image = ("-".join(map(str, keys["widths"])), "x".join(map(str, keys["input_shape"][1:])))
    return f" (channels {channels}, images {image})"


def _network_table(title: str, results: Sequence[Checked]) -> str:
    names = dict.fromkeys(slot.name for result in results for slot in result.errors)
    columns = [{slot.name: f"{slot.error:.0e}" for slot in result.errors} for result in results]
    rows = [(name, *(column.get(name, "-") for column in columns)) for name in names]
    off = ("channels off", *("-" if result.off is None else f"{result.off:.0%}" for result in results))
    return table((title, *(result.setting for result in results)), [*rows, off])
