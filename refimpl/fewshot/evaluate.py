"""Test a meta-model on fixed episodes: adapt on the support samples of each, then classify its other samples.

Source: mathematics.md §13.3; Student 1908 (the interval).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl.experiments.differences import student_half
from refimpl.fewshot.learner import Learner
from refimpl.fewshot.tasks import EpisodeTask, losses
from refimpl.nn.network import Network
from refimpl.nn.norms import calibrate, frozen
from refimpl.nn.predict import predict
from refimpl.threads import share


@dataclass(frozen=True)
class Measurement:
    """A test: the method that adapts, its steps, the statistics of the query samples, and the episodes."""

    learner: Learner
    steps: int
    statistics: str
    tasks: Sequence[EpisodeTask]


class Accuracy(NamedTuple):
    """Mean accuracy over episodes, and half the width of its 95 % t-interval."""

    mean: float
    half: float
    episodes: int


def accuracies(
    test: Measurement, w: np.ndarray, threads: int = 1, on_episode: Callable[[], None] = lambda: None
) -> np.ndarray:
    """The accuracy in each episode after adaptation from w (d,); the same for any number of threads."""
    tasks = test.tasks
    found = share(lambda at: _accuracy(test, w, tasks[at]), len(tasks), threads, lambda *_: on_episode())
    return np.array(found)


def _accuracy(test: Measurement, w: np.ndarray, task: EpisodeTask) -> float:
    """The share of an episode's test samples that is classified rightly."""
    node, network = task.node, task.network
    with np.errstate(all="ignore"):  # a rate too large is an answer, not a fault
        adapted = test.learner.adapt(w, losses(network, node.support, test.steps, task.weights))
    network, adapted = _normalising(network, adapted, node.support.x, test.statistics)
    x, y = node.test
    return float((predict(network, adapted, x).logits.argmax(axis=1) == y).mean())


def _normalising(
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
    """Mean of the accuracies (n,) of n >= 2 episodes, with the 95 % interval of Student's t."""
    return Accuracy(float(values.mean()), student_half(values), len(values))
