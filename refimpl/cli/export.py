"""`refimpl export`: a run's meta-model, or one adapted at a target node, as an ONNX file."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refimpl.cli.options import FILE, PATH, Session, session_options
from refimpl.cli.output import answer, exit_unless, facts
from refimpl.cli.progress import working
from refimpl.errors import DivergenceError, InputError
from refimpl.experiments.record import RunFolder

if TYPE_CHECKING:
    import numpy as np

    from refimpl.data.node import Node
    from refimpl.experiments.experiment import Experiment
    from refimpl.nn.context import Gating
    from refimpl.nn.network import Network

TOLERANCE = 1e-5  # in float32, for the same sums in another order
SAMPLES = 64


@click.command(
    epilog="\b\nExamples:\n  refimpl export runs/first --out first.onnx\n"
    "  refimpl export runs/first --node target-0 --out target-0.onnx"
)
@click.argument("run", type=PATH)
@click.option("--out", type=FILE, required=True, help="The .onnx file to write.")
@click.option("--node", metavar="NAME", help="Adapt at this target node first.  [the meta-model]")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@session_options("data_dir", "json", "talk")
def command(run: Path, out: Path, node: str | None, force: bool, session: Session) -> None:
    """Export a run's model with its gates for inference, as ONNX.

    The graph maps `x` (N, ...) to `logits` (N, classes), in float32 and for any batch size. Gates decide
    without noise; channels that are off are computed and multiplied by zero. If onnxruntime is installed, the
    file is compared with this package on test samples, and the command exits with 1 if logits differ by more
    than 1e-5 of the largest. A model that has diverged is refused. The command needs the extra `onnx`.
    """
    from refimpl.crosscheck.bridges import onnx
    from refimpl.experiments.experiment import personalise, reopen
    from refimpl.files.storage import check_new

    assert onnx  # without the package, nothing is trained in vain
    check_new(out, force)
    with RunFolder.open(run, lock=False) as folder:
        experiment, w = reopen(folder, session.data_dir)
    network, tested = experiment.network, _tested(experiment, node)
    with working(1, session.talk):
        if node is not None:
            personal = personalise(experiment, w, tested)
            network, w = personal.network, personal.adapted.w
        w, x = single(w), single(tested.test.x).reshape(-1, *network.input_shape)
        check_sound(network, w, (x, tested.test.y), experiment.gating, node or "the meta-model")
        write(out, network, w, x, experiment.gating, experiment.note, session)


def write(
    out: Path, network: Network, w: np.ndarray, x: np.ndarray, gating: Gating, note: str, session: Session
) -> None:
    """Export to the file `out`, and compare it on some of the samples x, all in float32; say what was done.

    note: what there is to say about the data. Exits with 1 if logits differ by more than `TOLERANCE`.
    """
    from refimpl.crosscheck.bridges.onnx import disagreement, export
    from refimpl.federated.adapt import quiet
    from refimpl.files.storage import write_whole
    from refimpl.nn.predict import predict

    model, error = export(network, w, gating), None
    write_whole(out, model.SerializeToString())
    if find_spec("onnxruntime") is not None:
        x = x[:SAMPLES]
        error = disagreement(model, x, predict(network, w, x, quiet(gating)).logits)
    _report(out, network, error, note, session)
    exit_unless(error is None or error <= TOLERANCE)


def _tested(experiment: Experiment, name: str | None) -> Node:
    """The node whose test samples are used: the target node of that name, or the first if none is named."""
    if name is None:
        return (experiment.target_nodes or experiment.train_nodes)[0]
    nodes = {node.name: node for node in experiment.target_nodes}
    if name not in nodes:
        raise InputError(f"export: no target node {name!r}; the run has {', '.join(nodes) or 'none'}")
    return nodes[name]


def single(values: np.ndarray) -> np.ndarray:
    """The values in float32; those that are too large become infinite."""
    import numpy as np

    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def check_sound(
    network: Network, w: np.ndarray, test: tuple[np.ndarray, np.ndarray], gating: Gating, what: str
) -> None:
    """Raise `DivergenceError` where parameters, or logits on the samples `test` (x, y), are not finite."""
    from refimpl.federated.adapt import evaluate

    if math.isnan(evaluate(network, w, *test, gating).accuracy):
        raise DivergenceError(
            f"export: the model of {what} has diverged (not finite in float32), so nothing was written; "
            "train the run anew at smaller rates"
        )


def _report(out: Path, network: Network, error: float | None, note: str, session: Session) -> None:
    """Print what was written, what to know about its data, and how much onnxruntime's logits differ."""
    size = out.stat().st_size
    shapes = f"x (N, {', '.join(map(str, network.input_shape))}) -> logits (N, {network.classes}), float32"
    checked = (
        "onnxruntime is not installed: not checked"
        if error is None
        else f"onnxruntime differs by {error:.1e} of the largest logit, allowed {TOLERANCE:.0e}"
    )
    data = [("data", note)] if note else []
    lines = [(str(out), f"{size:,} bytes"), *data, ("graph", shapes), ("check", checked)]
    content = {"file": str(out), "bytes": size, "difference": error, "allowed": TOLERANCE}
    answer(session, content, facts(lines))
