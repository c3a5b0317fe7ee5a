"""`refimpl export`: a run's meta-model, or one adapted at a target node, as an ONNX file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refimpl.cli.app import CHECK_FAILED
from refimpl.cli.compiling import notice
from refimpl.cli.options import FILE, PATH, data_dir_option, json_option
from refimpl.cli.output import facts, print_json, say_data
from refimpl.cli.progress import Progress, Talk
from refimpl.errors import InputError
from refimpl.experiments.record import RunFolder

if TYPE_CHECKING:
    import numpy as np

    from refimpl.experiments.experiment import Experiment
    from refimpl.federated.adapt import Personal
    from refimpl.nn.network import Network

TOLERANCE = 1e-5  # float32: the same sums in another order
SAMPLES = 64


@click.command(
    epilog="\b\nExamples:\n  refimpl export runs/first --out first.onnx\n"
    "  refimpl export runs/first --node target-0 --out target-0.onnx"
)
@click.argument("run", type=PATH)
@click.option("--out", type=FILE, required=True, help="The .onnx file to write.")
@click.option("--node", metavar="NAME", help="Adapt at this target node first.  [the meta-model]")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@data_dir_option
@json_option
def command(
    run: Path, out: Path, node: str | None, force: bool, data_dir: Path | None, as_json: bool
) -> None:
    """Export a run's model for inference as ONNX, gates included: masks multiply.

    Input `x` (N, ...), output `logits` (N, classes), float32, any batch size. Gates decide without noise.
    Where onnxruntime is installed the file is held against this package on test samples; exits with 1 if
    logits differ by more than 1e-5 of the largest. Needs the extra `onnx`.
    """
    from refimpl.crosscheck.bridges.onnx import disagreement, export
    from refimpl.experiments.experiment import reopen
    from refimpl.federated.adapt import quiet
    from refimpl.files.storage import check_new, write_whole
    from refimpl.nn.predict import predict

    check_new(out, force)
    with RunFolder.open(run, lock=False) as folder:
        experiment, w = reopen(folder, data_dir)
    say_data(experiment.note)
    network = experiment.network
    with Progress(1, Talk.USUAL) as progress, notice(progress):
        if node is not None:
            personal = _personal(experiment, w, node)
            network, w = personal.network, personal.adapted.w
        w = w.astype("float32")
        model = export(network, w, experiment.gating)
        write_whole(out, model.SerializeToString())
        error = None
        if find_spec("onnxruntime") is not None:
            x = (experiment.target_nodes or experiment.train_nodes)[0].test[0][:SAMPLES]
            x = x.reshape(len(x), *network.input_shape).astype("float32")
            error = disagreement(model, x, predict(network, w, x, quiet(experiment.gating)).logits)
    _report(out, network, error, as_json)
    if error is not None and not error <= TOLERANCE:
        click.get_current_context().exit(CHECK_FAILED)


def _personal(experiment: Experiment, w: np.ndarray, name: str) -> Personal:
    """The model adapted at the target node of that name, as the run's method does it."""
    from refimpl.experiments.experiment import personalise

    nodes = {node.name: node for node in experiment.target_nodes}
    if name not in nodes:
        raise InputError(f"export: no target node {name!r}; the run has {', '.join(nodes) or 'none'}")
    return personalise(experiment, w, nodes[name])


def _report(out: Path, network: Network, error: float | None, as_json: bool) -> None:
    """What was written, and how far onnxruntime's logits are off."""
    if as_json:
        print_json({"file": str(out), "bytes": out.stat().st_size, "difference": error, "allowed": TOLERANCE})
        return
    shapes = f"x (N, {', '.join(map(str, network.input_shape))}) -> logits (N, {network.classes}), float32"
    checked = (
        "onnxruntime is not installed: not checked"
        if error is None
        else f"onnxruntime differs by {error:.1e} of the largest logit, allowed {TOLERANCE:.0e}"
    )
    click.echo(facts([(str(out), f"{out.stat().st_size:,} bytes"), ("graph", shapes), ("check", checked)]))
