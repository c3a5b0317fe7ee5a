"""How much of the data a run uses: the number of samples, and the classes that no training node has."""

from collections.abc import Mapping, Sequence

import numpy as np

from refimpl.data.node import Node
from refimpl.experiments.config import Config


def samples_said(config: Config, nodes: Sequence[Node], samples: int) -> str:
    """How many of the samples the nodes have, and why not all; `samples`: those of the data set."""
    used = sum(len(node.y) for node in nodes)
    if used == samples:
        return f"all {samples}"
    if config.sizes:
        why = "sizes says how many each node has"
    elif config.node_max:
        why = f"nodes have {config.node_min} to {config.node_max} training samples (node_min, node_max)"
    else:
        why = "sizes of nodes are spread from half of the largest up; node_min and node_max set others"
    return f"{used} of {samples}: {why}"


def unseen_classes(train: Sequence[Node], targets: Sequence[Node]) -> dict[str, list[int]]:
    """By target node, its classes that no training node has; nodes without such classes are left out."""
    seen = np.unique(np.concatenate([node.y for node in train]))
    found = {node.name: np.setdiff1d(node.y, seen).tolist() for node in targets}
    return {name: classes for name, classes in found.items() if classes}


def strangers(unseen: Mapping[str, Sequence[int]], targets: Sequence[Node]) -> list[str]:
    """The target nodes all of whose classes are unseen: there the meta-model can only guess."""
    return [node.name for node in targets if len(unseen.get(node.name, ())) == len(np.unique(node.y))]


def unseen_said(unseen: Mapping[str, Sequence[int]]) -> str:
    """A line that explains accuracy before adaptation at nodes with unseen classes, if there are any."""
    if not unseen:
        return ""
    nodes = ", ".join(f"{name}: {', '.join(map(str, classes))}" for name, classes in unseen.items())
    return (
        f"classes of target nodes that no training node has ({nodes}): the meta-model never saw them, so "
        "before adaptation their samples are classified by chance; more --classes-per-node or --nodes "
        "cover all classes"
    )
