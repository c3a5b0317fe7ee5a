"""`refimpl adapt`: personalise a run's meta-model at its target nodes and test it there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.options import PATH, Session, config_options, session_options
from refimpl.cli.output import answer, exit_if, say_data, table
from refimpl.cli.progress import WARM_UP, adapted_text, working
from refimpl.errors import InputError
from refimpl.experiments.config import adaptation_keys
from refimpl.experiments.record import RunFolder
from refimpl.registry import METHODS

if TYPE_CHECKING:
    from refimpl.experiments.experiment import Experiment
    from refimpl.federated.adapt import NodeReport


@click.command(
    epilog="\b\nExamples:\n  refimpl adapt runs/first\n  refimpl adapt runs/first --adapt-steps 3 --json"
)
@click.argument("run", type=PATH)
@session_options("threads", "data_dir", "json", "talk")
@config_options(adaptation_keys())
def command(run: Path, session: Session, **options: Any) -> None:
    """Adapt a run's meta-model at its target nodes, in two stages.

    Stage I adapts the gates on a node's support samples. Stage II adapts the backbone channels that the gates
    select. Methods without gates have no stage I; metasnip and metasnip-weights prune instead. For pfedme the
    personalised and the global model are tested separately. The options below replace the settings of the
    run. The numbers are also written to RUN/report/adapt.json.

    FLOPs are those of a forward pass of one test sample. The share of channels off is followed by its
    standard deviation over a node's test samples; in the last row it is that over nodes (ddof 0 in both).
    Trained gates have three columns more: the share of gated channels whose mask differs between test
    samples, the accuracy with each node's mask frozen to what is open for most support samples, and the
    mutual information of a channel's mask and the class, in bits.

    If a node's adapted model is not finite, the node has diverged. It is named and left out of every mean,
    and the command exits with 1.
    """
    from refimpl.experiments.compare.nodes import node_table
    from refimpl.experiments.dealing import strangers, unseen_classes, unseen_said
    from refimpl.experiments.experiment import adapt_targets, reopen
    from refimpl.experiments.methods import notes
    from refimpl.federated.adapt import divergence

    with RunFolder.open(run) as folder:  # locked: two processes would write the same report
        experiment, w = reopen(folder, session.data_dir)
        if not session.as_json:
            say_data(experiment.note)
        if not experiment.target_nodes:
            raise InputError(f"{run}: the run has no target nodes; train one with --targets 1 or more")
        given = {name: value for name, value in options.items() if value is not None}
        experiment = replace(experiment, config=replace(experiment.config, **given))
        method = experiment.config.method
        unseen = unseen_classes(experiment.train_nodes, experiment.target_nodes)
        alone = strangers(unseen, experiment.target_nodes)
        if not session.as_json:
            say_data(unseen_said(unseen))
        experiments = [experiment, *_shown_beside(experiment)]
        work = len(experiment.target_nodes) * len(experiments)
        with working(work, session.talk, WARM_UP) as progress:

            def on_node(node: NodeReport) -> None:
                progress.step(f"adapted at {node.node}  {adapted_text(node.accuracy_after)}")

            results = [adapt_targets(one, w, on_node, session.threads) for one in experiments]
        reports, beside = results[0], results[1] if len(results) > 1 else []
        content = {
            "run": str(run),
            "method": method,
            "settings": {name: getattr(experiment.config, name) for name in adaptation_keys()},
            "data": experiment.note,
            "nodes": [report._asdict() for report in reports],
            "channel_variant": [report._asdict() for report in beside],
            "diverged": [report.node for report in reports if report.diverged],
            "notes": notes([method]),
            "unseen_classes": unseen,
        }
        folder.save_report("adapt", {key: value for key, value in content.items() if key != "run"})
    lines = [table(*node_table(method, reports, alone)), *notes([method])]
    if beside:
        other = experiments[1].config.method
        lines.append(f"\n{other}, from the same meta-model:\n{table(*node_table(other, beside, alone))}")
    answer(session, content, "\n".join(lines))
    exit_if(next(filter(None, map(divergence, results)), ""))


def _shown_beside(experiment: Experiment) -> list[Experiment]:
    """The experiment of the method that is shown beside this one, from the same meta-model.

    The list is empty where there is none, and where no layer is named whose channels could be pruned.
    """
    beside = METHODS[experiment.config.method].beside
    if not beside or not experiment.config.gates:
        return []
    return [replace(experiment, config=replace(experiment.config, method=beside))]
