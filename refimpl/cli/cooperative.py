"""`refimpl cooperative`: trains networks whose depth is chosen at run time, measures and uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import SuggestingGroup
from refimpl.cli.options import (
    FILE,
    NAME_LIST,
    PATH,
    SEED_LIST,
    Session,
    expect_figures,
    key_options,
    session_options,
    shipped,
)
from refimpl.cli.output import answer, facts, table
from refimpl.cli.progress import working
from refimpl.cli.supervised import SHOWN, Silent, Supervised, compare, deployed_in, draw, row_cells, tested
from refimpl.cli.training import Begin, begin_options
from refimpl.cooperative.config import PRESETS, CooperativeConfig, resolve
from refimpl.experiments.record import RunFolder
from refimpl.registry import keys_of

if TYPE_CHECKING:
    import numpy as np

    from refimpl.cooperative.experiment import Cooperative
    from refimpl.cooperative.measure import Deployed

KEYS = keys_of(CooperativeConfig)
BY_PRESET = PRESETS.keys()

EPILOG = """\b
Examples:
  refimpl cooperative demo
  refimpl cooperative train --preset digits --out runs/deep
  refimpl cooperative evaluate runs/deep
  refimpl cooperative predict runs/deep --budget-ms 0.5
  refimpl cooperative export runs/deep --depth 2 --out depth2.onnx
"""


@click.group(cls=SuggestingGroup, epilog=EPILOG)
def command() -> None:
    """Train networks whose depth is chosen at run time.

    A Leader and two Teammates are trained at once; sub-networks of the Teammates keep the first blocks of
    each stage. `predict` uses the deepest one that fits a budget of milliseconds or FLOPs. Only the abstract
    of the paper is known (Fang, Bradford & Kim 2023, Cooperative Learning for Cost-Adaptive Inference): the
    losses and all settings are a reconstruction.
    """


preset_option = shipped(PRESETS, "settings")


# --- train


@command.command(
    "train",
    epilog="\b\nExamples:\n  refimpl cooperative train --preset digits --out runs/deep\n"
    "  refimpl cooperative train --out runs/deep --resume\n"
    "  refimpl cooperative train --preset cifar10-narrow --scheme sandwich --seed 1 --data-dir ~/data\n"
    "  refimpl cooperative train --dataset mine.npz --model cnn7 --epochs 20 --sets complementary",
)
@begin_options(preset_option, "cooperative-DATASET-SCHEME-SEED")
@session_options("threads", "data_dir", "json", "talk")
@key_options(KEYS.values(), BY_PRESET)
def train_command(begin: Begin, session: Session, **options: Any) -> None:
    """Train a team, or what it is compared with, into a run folder.

    Settings come from --preset; those in the file of --config override them, and the options override both.
    Ctrl-C stops after the epoch in progress. --resume continues from there, and ends in the same bytes as an
    uninterrupted run, for any number of threads.
    """
    Supervised(session).run(begin, options)


# --- evaluate


@command.command(
    "evaluate",
    epilog="\b\nExamples:\n  refimpl cooperative evaluate runs/deep\n"
    "  refimpl cooperative evaluate runs/deep runs/alone --figure frontier.png",
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option("--figure", type=FILE, help="PNG file for accuracy against FLOPs and time (extra `plot`).")
@session_options("data_dir", "json", "talk")
def evaluate_command(runs: tuple[Path, ...], figure: Path | None, session: Session) -> None:
    """Show accuracy, FLOPs and milliseconds of every depth of trained runs.

    At each depth the better Teammate on validation samples is used. Milliseconds are medians of single calls
    on one thread of this machine. The numbers are also written to RUN/report/cooperative.json.
    """
    expect_figures(figure)
    with working(len(runs), session.talk) as progress:
        found, trainer = {}, Silent(session)
        for path in runs:
            found[str(path)] = tested(path, trainer)
            progress.step(f"tested  {path}")
    tables = {name: [row.table() for row in one.rows] for name, one in found.items()}
    if figure is not None:
        draw(tables, figure, err=session.as_json)
    text = [
        f"{name}: {one.scheme}, seed {one.seed}\n{table(SHOWN, [row_cells(row) for row in one.rows])}"
        for name, one in found.items()
    ]
    answer(session, tables, "\n".join(text))


# --- predict


@command.command(
    "predict",
    epilog="\b\nExamples:\n  refimpl cooperative predict runs/deep --budget-ms 0.5\n"
    "  refimpl cooperative predict runs/deep --budget-flops 3e6 --batch 32\n"
    "  refimpl cooperative predict runs/deep --budget-ms 2 --input mine.npz --out classes.npz",
)
@click.argument("run", type=PATH)
@click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), help="Milliseconds of a call.")
@click.option("--budget-flops", type=click.FloatRange(min=0, min_open=True), help="FLOPs of a sample.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples of a call.")
@click.option("--input", "source", type=FILE, help="A .npz file with samples x.  [the test samples]")
@click.option("--out", type=FILE, help="A .npz file for logits and classes.  [none]")
@click.option("--force", is_flag=True, help="Replace the file of --out.")
@session_options("data_dir", "json", "talk")
def predict_command(
    run: Path,
    budget_ms: float | None,
    budget_flops: float | None,
    batch: int,
    source: Path | None,
    out: Path | None,
    force: bool,
    session: Session,
) -> None:
    """Predict with the deepest sub-network that fits a budget.

    The depths are timed on this machine first: a budget of milliseconds fits a depth if 95 % of the calls
    keep it, and a budget of FLOPs if the first 256 samples keep it in the mean. Then the samples are
    predicted in calls of --batch, on one thread. With no budget the full depth is used. Samples of --input
    are arrays x (n, C, H, W) as the network takes them, after normalisation.
    """
    from refimpl.cooperative.measure import COUNTED, deepest, rows
    from refimpl.files.storage import check_new, npz_bytes, write_whole

    if out is not None:
        check_new(out, force)
    with RunFolder.open(run, lock=False) as folder:
        made, deployed = deployed_in(folder, Silent(session))
    x, y = made.samples("test") if source is None else (_samples(made, source), None)
    row = deepest(rows(deployed, x[:COUNTED], None, (batch,)), budget_ms, budget_flops, batch)
    logits, milliseconds = _timed(deployed[row.depth], x, batch)
    classes = logits.argmax(axis=1)
    if out is not None:
        write_whole(out, npz_bytes({"logits": logits, "classes": classes}))
    kept = None if budget_ms is None else float((milliseconds <= budget_ms).mean())
    content = {
        "depth": row.depth, "member": row.member, "samples": len(x), "flops": row.flops,
        "accuracy": None if y is None else float((classes == y).mean()),
        "kept": kept, "milliseconds": row.latency(batch)._asdict(),
    }  # fmt: skip
    latency = row.latency(batch)
    lines = [
        ("depth", f"{row.depth} of {made.depths.full}, {named(row.member)}"),
        ("FLOPs a sample", f"{row.flops:.4g}"),
        ("ms a call", f"{latency.median:.3g}, 95 % of the calls at most {latency.high:.3g}"),
        *([] if kept is None else [("budget kept", f"in {kept:.1%} of {len(milliseconds)} calls")]),
        *([] if y is None else [("accuracy", f"{content['accuracy']:.2%} of {len(x)} test samples")]),
        *([("written", str(out))] if out is not None else []),
    ]
    answer(session, content, facts(lines))


def named(member: str) -> str:
    """The name of a member with what it is: `Teammate a`, or `network alone`."""
    from refimpl.cooperative.schemes import MATES

    return f"Teammate {member}" if member in MATES else f"network {member}"


def _samples(run: Cooperative, source: Path) -> np.ndarray:
    """The samples of a file, in the floating-point type of the run."""
    import numpy as np

    from refimpl.errors import DataError
    from refimpl.files.storage import read_npz

    arrays = read_npz(source, {"x"})
    if "x" not in arrays:
        raise DataError(f"{source}: expected an array x, found none")
    if arrays["x"].dtype.kind not in "biuf":
        raise DataError(f"{source}: expected x as numbers, found {arrays['x'].dtype}")
    with np.errstate(over="ignore"):
        x = run.network.network.check_batch(f"{source}: x", arrays["x"].astype(run.config.dtype))
    if not np.isfinite(x).all():
        raise DataError(f"{source}: expected x as finite numbers of {run.config.dtype}, found others")
    return x


def _timed(deployed: Deployed, x: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of all samples, in calls of `batch`, and the milliseconds of each call."""
    import time

    import numpy as np

    logits, milliseconds = [], []
    for first in range(0, len(x), batch):
        started = time.perf_counter()
        found = deployed.predict(x[first : first + batch]).logits
        milliseconds.append(1e3 * (time.perf_counter() - started))
        logits.append(found)
    return np.concatenate(logits), np.array(milliseconds)


# --- export


@command.command(
    "export", epilog="\b\nExample:\n  refimpl cooperative export runs/deep --depth 2 --out depth2.onnx"
)
@click.argument("run", type=PATH)
@click.option("--depth", type=click.IntRange(min=1), help="Blocks of each stage.  [all]")
@click.option("--out", type=FILE, required=True, help="The .onnx file to write.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@session_options("data_dir", "json", "talk")
def export_command(run: Path, depth: int | None, out: Path, force: bool, session: Session) -> None:
    """Export one depth of a trained run for inference, as ONNX.

    The graph maps `x` (N, C, H, W) to `logits` (N, classes) in float32. If onnxruntime is installed, the file
    is compared with this package on test samples, and the command exits with 1 if logits differ by more than
    1e-5 of the largest. A model that has diverged is refused. The command needs the extra `onnx`.
    """
    from refimpl.cli.export import check_sound, single, write
    from refimpl.errors import one_of
    from refimpl.files.storage import check_new

    check_new(out, force)
    with RunFolder.open(run, lock=False) as folder:
        made, deployed = deployed_in(folder, Silent(session))
    depth = depth or made.depths.full
    one_of("cooperative export", "depth", str(depth), tuple(map(str, deployed)))
    one = deployed[depth]
    network, gating = one.predict.network, one.predict.gating
    x, y = made.samples("test")
    w, x = single(one.w), single(x)
    check_sound(network, w, (x, y), gating, f"depth {depth}")
    write(out, network, w, x, gating, made.dataset.note, session)


# --- compare and demo


@command.command(
    "compare",
    epilog="\b\nExamples:\n  refimpl cooperative compare --preset digits --seeds 0-4 --out runs/schemes\n"
    "  refimpl cooperative compare --preset cifar10-narrow --schemes cooperative,alone --seeds 0-2 "
    "--data-dir ~/data --out runs/cifar",
)
@preset_option
@click.option("--out", type=PATH, required=True, help="Folder of the runs; those that are there go on.")
@click.option("--schemes", type=NAME_LIST, help="Schemes to compare.  [all]")
@click.option("--seeds", type=SEED_LIST, default="0-2", show_default=True, help="Seeds of the training.")
@click.option(
    "--margin", type=click.FloatRange(min=0), default=0.0, help="Points of accuracy that count as equal."
)
@click.option("--figure", type=FILE, help="PNG file for accuracy against FLOPs and time (extra `plot`).")
@session_options("threads", "data_dir", "json", "talk")
@key_options((one for name, one in KEYS.items() if name not in ("scheme", "seed")), BY_PRESET)
def compare_command(
    from_preset: str | None,
    out: Path,
    schemes: list[str] | None,
    seeds: Sequence[int],
    margin: float,
    figure: Path | None,
    session: Session,
    **options: Any,
) -> None:
    """Train and test schemes side by side, with equal epochs and samples, and show how far apart they are.

    A line is a scheme at a depth: its test accuracy with the standard deviation over seeds, and the
    difference to a network of that depth that was trained alone, paired by seed, with the 95 % interval of
    Student's t, and whether that excludes zero or lies within --margin. The training cost is a multiple of
    training the full network alone. The numbers are also written to cooperative.json in the folder. Runs that
    diverge are named and in no mean; then the command exits with 1.
    """
    expect_figures(figure)
    compare(resolve(None, from_preset, **options), schemes, seeds, out, figure, session, margin)


@command.command(
    "demo", epilog="\b\nExamples:\n  refimpl cooperative demo\n  refimpl cooperative demo --epochs 5 --json"
)
@click.option("--out", type=PATH, default=Path("runs/cooperative-demo"), show_default=True, help="Folder.")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of each training.  [as in the preset]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed.")
@session_options("threads", "json", "talk")
def demo_command(out: Path, epochs: int | None, seed: int, session: Session) -> None:
    """Train depth-adaptive networks on handwritten digits and compare them, offline.

    The command does the same as `refimpl cooperative compare --preset demo` with one seed and three schemes.
    One seed separates nothing: the table shows how results look.
    """
    config = resolve(None, "demo", epochs=epochs)
    compare(config, ["cooperative", "sandwich", "alone"], (seed,), out, None, session)
