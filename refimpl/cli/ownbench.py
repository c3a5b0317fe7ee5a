"""`refimpl bench layer` and `refimpl bench network`: times of what the user brings."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from refimpl.cli.options import (
    FILE,
    NUMBER_LIST,
    SHARE_LIST,
    Session,
    expect_figures,
    session_options,
    together,
)
from refimpl.cli.output import exit_unless
from refimpl.cli.progress import Progress
from refimpl.errors import InputError

WORKER = "refimpl.bench"
PASSES = ("forward", "input_grad", "weight_grad")
PROGRAMS = ("forward", "gradient", "local step", "adaptation")
EXTRAS = {"torch": "torch", "onnx": "onnxruntime"}

LAYER_EPILOG = """\b
Examples:
  refimpl bench layer --in 48 --out 96 --kernel 5 --size 20 --batch 7 --off 0.6
  refimpl bench layer --in 48 --out 96 --size 20 --stride 2 --groups 4 --torch --pass forward
  refimpl bench layer --in 784 --out 100 --linear --off 0,0.5,0.9 --dtype float64 --figure linear.png
"""
NETWORK_EPILOG = """\b
Examples:
  refimpl bench network mine.py:network
  refimpl bench network mine.py:network --off 0,0.5,0.75 --batch 1,32 --torch --onnx
  refimpl bench network mine.py:network --pass forward --json > mine.json
"""

_shared = together(
    click.option("--dtype", type=click.Choice(("float32", "float64")), default="float32", show_default=True),
    click.option("--torch", is_flag=True, help="Also time PyTorch with masks multiplied (extra `torch`)."),
    click.option("--smallest", is_flag=True, help="Smoke test; its times mean nothing."),
    click.option("--figure", type=FILE, help="Draw seconds against executed FLOPs here (needs matplotlib)."),
    session_options("json", "talk"),
)


def _passes(names: tuple[str, ...]) -> Any:
    text = "Time only this pass; may be repeated.  [all]"
    return click.option("--pass", "passes", type=click.Choice(names), multiple=True, help=text)


@click.command(epilog=LAYER_EPILOG)
@click.option(
    "--in", "channels", type=click.IntRange(min=1), required=True, help="Input channels or features."
)
@click.option("--out", "filters", type=click.IntRange(min=1), required=True, help="Output channels.")
@click.option("--linear", is_flag=True, help="A fully connected layer instead of a convolution.")
@click.option("--kernel", type=click.IntRange(min=1), default=3, show_default=True, help="Size of windows.")
@click.option("--size", type=click.IntRange(min=1), default=16, show_default=True, help="Height and width.")
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--pad", type=click.IntRange(min=0), help="Padding.  [keeps the size, at stride 1]")
@click.option("--dilation", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--groups", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Batch size.")
@click.option("--off", type=SHARE_LIST, default="0,0.5", show_default=True, help="Shares of outputs closed.")
@_passes(PASSES)
@_shared
def layer(
    channels: int,
    filters: int,
    linear: bool,
    kernel: int,
    size: int,
    stride: int,
    pad: int | None,
    dilation: int,
    groups: int,
    session: Session,
    figure: Path | None,
    **ask: Any,
) -> None:
    """Time a layer of your own sizes: forward, input gradient and weight gradient.

    A share of the output channels is closed, others in each sample; nothing closed is always measured too.
    The table has the FLOPs of a sample, dense and executed, the time of a batch, the rate also relative to
    the machine's best matrix product, and the time relative to nothing closed. Other candidates' times are
    relative to ours. Every result is compared with a float64 reference first; the command exits with 1 if
    one is wrong.
    """
    from refimpl.bench import Geometry
    from refimpl.bench.own import check_layer

    padding = dilation * (kernel - 1) // 2 if pad is None else pad
    geometry = (channels, filters, size, kernel, padding, stride, dilation, groups)
    ask["geometry"] = (channels, filters, 1, 1, 0) if linear else geometry
    check_layer(Geometry(*ask["geometry"]), ask["batch"])  # here, before a process is started
    ask["passes"] = ask["passes"] or PASSES
    _time(ask, figure, session)


@click.command(epilog=NETWORK_EPILOG)
@click.argument("network", metavar="FILE.py:NAME")
@click.option(
    "--off", type=SHARE_LIST, default="0,0.5,0.75", show_default=True, help="Shares of channels closed."
)
@click.option("--batch", type=NUMBER_LIST, default="1,32", show_default=True, help="Batch sizes.")
@click.option("--onnx", is_flag=True, help="Also time onnxruntime, forward only (extra `onnx`).")
@_passes(PROGRAMS)
@_shared
def network(passes: tuple[str, ...], session: Session, figure: Path | None, **ask: Any) -> None:
    """Time a network of your own: forward, gradient, a local step and an adaptation.

    FILE.py defines NAME as a `refimpl.Network`, or as a function that returns one. Its gates close the given
    shares of their channels, others in each sample (`refimpl.FixedShare`). A network without gates needs
    --off 0. The table is that of `bench layer`.
    """
    from refimpl.bench.own import own_network

    found = own_network(ask["network"])
    if not found.gates and max(ask["off"]) > 0:
        raise InputError(f"bench network: {found.name} has no gates, so nothing can be closed; give --off 0")
    _time({**ask, "programs": passes or PROGRAMS}, figure, session)


def _time(ask: dict[str, Any], figure: Path | None, session: Session) -> None:
    """Measure in a process of its own, and print the result."""
    from refimpl.bench import process
    from refimpl.bench.own import Timings, ascending

    ascending(ask["off"])  # refuses what is no share, before a process is started
    for extra, module in EXTRAS.items():
        if ask.get(extra) and find_spec(module) is None:
            raise InputError(
                f'--{extra} needs {module}, which is not installed; try pip install "refimpl[{extra}]"'
            )
    expect_figures(figure)
    rows, peak = [], 0.0
    with Progress(_count(ask), session.talk) as progress:
        progress.say("benchmark; the first run also compiles the kernels")
        for kind, value in process.listen(WORKER, ["--own", json.dumps(ask)], 1):
            if kind == "row":
                rows.append(value)
                what = f"{value['pass']}, batch {value['batch']}, {value['off']:.0%} off"
                progress.step(f"bench  {what}: {value['candidate']}")
            else:
                peak = value
    found = Timings(rows[0]["layer"], tuple(rows), peak)
    if figure is not None:
        found.figure(figure)
    click.echo(found.json() if session.as_json else found.table(), nl=not session.as_json)
    exit_unless(not found.refused)


def _count(ask: dict[str, Any]) -> int:
    """How many rows there will be, if no result is refused."""
    from refimpl.bench.cases import Geometry

    layer = "geometry" in ask
    passes = ask["passes"] if layer else ask["programs"]
    batches = 1 if layer else len(ask["batch"])
    each = 1 + ask["torch"] + (layer and Geometry(*ask["geometry"]).plain)
    onnx = not layer and ask["onnx"] and ask["dtype"] == "float32" and "forward" in passes
    return batches * len({0.0, *ask["off"]}) * (len(passes) * each + onnx)
