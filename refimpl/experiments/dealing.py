"""The data of a configuration: the data set, which samples go to which node, and how much of it they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from refimpl.data.catalog import load
from refimpl.data.dataset import DataSet
from refimpl.data.identity import Recorded, identify
from refimpl.data.node import Node
from refimpl.data.partition import Partition, Share, plan
from refimpl.experiments.config import Config
from refimpl.registry import PARTITIONS


def build_partition(config: Config) -> Partition:
    """How the data set is cut into nodes."""
    sizes = (config.node_min, config.node_max) if config.node_max > 0 else None
    return Partition(
        PARTITIONS.make(config.partition, config.own),
        nodes=config.nodes,
        targets=config.targets,
        sizes=tuple(config.sizes) or sizes,
        test=config.test_share,
        support=config.support,
        target_sizes=(config.target_min, config.target_max) if config.target_max > 0 else None,
        folds=config.folds,
        fold=config.fold,
        pool=config.pool,
        pool_share=config.pool_share,
    )


def deal(config: Config, dataset: DataSet) -> list[Share]:
    """Which samples go to which node."""
    return plan(dataset, build_partition(config), config.seed)


def load_again(
    name: str, data_dir: str | Path | None, recorded: Recorded | None, known: DataSet | None = None
) -> DataSet:
    """The data set `name`; the recorded data of it, if there is a record, from the first place that has them.

    known: a data set in memory, which is used if it is the recorded one.
    """
    if recorded is None:
        return load(name, data_dir)
    if known is not None and known.digest == recorded.data.digest:
        return known
    *others, last = recorded.places(name, data_dir)
    for place in others:
        dataset = load(*place)
        if dataset.digest == recorded.data.digest:
            return dataset
    dataset = load(*last)
    recorded.check(identify(dataset))
    return dataset


# --- how much of the data the nodes have


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
