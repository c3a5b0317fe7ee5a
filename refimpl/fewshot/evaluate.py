"""Test a meta-model on fixed episodes: adapt on the support samples of each, then classify its other samples.

Source: mathematics.md §13.3; Student 1908 (the interval).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl.experiments.differences import student_half
from refimpl.federated.adapt import evaluate
from refimpl.fewshot.learner import Learner
from refimpl.fewshot.tasks import EpisodeTask, losses
from refimpl.nn.network import Network
from refimpl.nn.norms import calibrate, frozen
from refimpl.threads import share


@dataclass(frozen=True)
class Measurement:
    """A test: the method that adapts, its steps, the statistics of the query samples, and the episodes."""

    learner: Learner
    steps: int
    statistics: str
    tasks: Sequence[EpisodeTask]


class Accuracy(NamedTuple):
    """Mean accuracy over episodes, and half the width of its 95 % t-interval.

    diverged: the episodes that are not among them, since the adapted model was not finite there.
    """

    mean: float
    half: float
    episodes: int
    diverged: int = 0


def accuracies(
    test: Measurement, w: np.ndarray, threads: int = 1, on_episode: Callable[[], None] = lambda: None
) -> np.ndarray:
    """The accuracy in each episode after adaptation from w (d,); the same for any number of threads.

    It is NaN in an episode where adaptation diverged: see `federated.adapt.evaluate`.
    """
    tasks = test.tasks
    found = share(lambda at: _accuracy(test, w, tasks[at]), len(tasks), threads, lambda *_: on_episode())
    return np.array(found)


def _accuracy(test: Measurement, w: np.ndarray, task: EpisodeTask) -> float:
    """The share of an episode's test samples that is classified rightly; NaN if adaptation diverged."""
    node, network = task.node, task.network
    with np.errstate(all="ignore"):  # a rate too large is an answer, not a fault
        adapted = test.learner.adapt(w, losses(network, node.support, test.steps, task.weights))
        network, adapted = normalising(network, adapted, node.support.x, test.statistics)
    return evaluate(network, adapted, *node.test).accuracy


def normalising(
    network: Network, w: np.ndarray, support: np.ndarray, statistics: str
) -> tuple[Network, np.ndarray]:
    """The network and parameters that normalise with those statistics.

    `transductive`: those of the samples that are classified together; `support`: those of the support set.
    """
    if statistics == "transductive" or not network.mixes_samples:
        return network, w
    still = frozen(network)
    start = np.concatenate([w, np.zeros(still.layout.size - w.size, w.dtype)])
    return still, calibrate(still, start, support)


def interval(values: np.ndarray) -> Accuracy:
    """Mean of the accuracies (n,) that are not NaN, with the 95 % interval of Student's t; NaN for one."""
    sound = values[~np.isnan(values)]
    lost = len(values) - len(sound)
    if len(sound) < 2:
        return Accuracy(math.nan, math.nan, len(sound), lost)
    return Accuracy(float(sound.mean()), student_half(sound), len(sound), lost)
