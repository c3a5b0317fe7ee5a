"""Measurements of a meta-model at its target nodes that figures need beyond the table of `adapt`.

They say which inputs open which channels, before and after adaptation, and how long a forward pass takes when
channels are skipped and without gates.

Source: mathematics.md §2.2 (which channels are open), §6 (adaptation), §9 (work).
"""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refimpl.experiments.experiment import Experiment, build_network, personalise
from refimpl.experiments.methods import is_gated
from refimpl.federated.adapt import Personal, quiet
from refimpl.nn.context import Gating
from refimpl.nn.network import Network
from refimpl.nn.predict import Predictor, open_channels

REPEATS = 5  # forward passes to time; the median of their seconds counts


class Openings(NamedTuple):
    """For a gated layer, the share of the test samples of each class that open each channel.

    layer: the gate's name; classes (C,); before, after (C, K): with the meta-model and after adaptation,
    over all target nodes that have the class. varied (nodes, K): of each node, the share of test samples for
    which an adapted gate decides otherwise than for the majority; zero where it does not look at its input.
    """

    layer: str
    classes: np.ndarray
    before: np.ndarray
    after: np.ndarray
    varied: np.ndarray


class ForwardPass(NamedTuple):
    """FLOPs and seconds per test sample of a node, with its adapted model and with the same without gates."""

    node: str
    flops: float
    seconds: float
    flops_dense: float
    seconds_dense: float


class NodeMeasures(NamedTuple):
    """y (n,): labels of the test samples; before, after: gate name -> bool (n, K), open channels."""

    y: np.ndarray
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    forward: ForwardPass


def measure_node(experiment: Experiment, w: np.ndarray, index: int) -> NodeMeasures:
    """Adapt the meta-model w at target node `index` and look at its test samples."""
    node = experiment.target_nodes[index]
    personal, (x, y) = personalise(experiment, w, node), node.test
    gating = quiet(experiment.gating)
    forward = _forward_pass(experiment, personal, node.name, x)
    if not is_gated(experiment.config):
        return NodeMeasures(y, {}, {}, forward)
    states = (personal.start, personal.adapted.w)
    before, after = (open_channels(personal.network, state, x, gating) for state in states)
    return NodeMeasures(y, before, after, forward)


def openings(measures: Sequence[NodeMeasures]) -> list[Openings]:
    """The openings over the samples of all nodes, layer by layer; empty without gates."""
    if not measures:
        return []
    y = np.concatenate([measure.y for measure in measures])
    classes = np.unique(y)
    found = []
    for layer in measures[0].before:
        before = np.concatenate([measure.before[layer] for measure in measures])
        after = np.concatenate([measure.after[layer] for measure in measures])
        first, last = (np.stack([on[y == c].mean(axis=0) for c in classes]) for on in (before, after))
        by_node = np.stack([measure.after[layer].mean(axis=0) for measure in measures])
        found.append(Openings(layer, classes, first, last, np.minimum(by_node, 1 - by_node)))
    return found


def _forward_pass(experiment: Experiment, personal: Personal, name: str, x: np.ndarray) -> ForwardPass:
    network, w = personal.network, personal.adapted.w
    dense = build_network(experiment.config, network.input_shape, network.classes, gated=False)
    flops, seconds = _timed(network, w, x, quiet(experiment.gating))
    flops_dense, seconds_dense = _timed(dense, np.ascontiguousarray(w[network.layout.theta]), x, Gating())
    return ForwardPass(name, flops, seconds, flops_dense, seconds_dense)


def _timed(network: Network, w: np.ndarray, x: np.ndarray, gating: Gating) -> tuple[float, float]:
    """FLOPs and seconds per sample of predictions for x; the first prediction is not timed."""
    predictor, seconds = Predictor(network, w, gating), []
    flops = predictor(x).flops
    for _ in range(REPEATS):
        started = time.perf_counter()
        predictor(x)
        seconds.append(time.perf_counter() - started)
    return flops / len(x), statistics.median(seconds) / len(x)
