"""What each depth of a trained team is worth, in accuracy, FLOPs and milliseconds; which one fits a budget.

Source: mathematics.md §15.5. Reconstructed.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.cooperative.experiment import Cooperative, accuracy
from refimpl.cooperative.team import Part
from refimpl.errors import InputError
from refimpl.nn.predict import Predictor

BATCHES = (1, 32)  # samples of a call
CALLS = 100
COUNTED = 256  # samples whose FLOPs are counted to choose a depth
WARM = 5  # calls before the clock runs
TURN = 8  # calls in a row of one depth: in use a depth stays the same for many calls
KEPT = 0.95  # share of the calls in which a budget of time is to be kept
SURE = 0.95  # probability with which `Latency.high` promises that share of new calls


class Latency(NamedTuple):
    """Milliseconds of a call.

    batch: samples of the call; median: what half of the calls take; high: what 95 % of new calls will not
    exceed, with a probability of 95 % (`limit`).
    """

    batch: int
    median: float
    high: float


class Deployed(NamedTuple):
    """A depth of a trained team, ready to predict.

    part: the sub-network that is used; validation: its accuracy on the validation samples; w: its own
    parameters; predict: a `Predictor` with them.
    """

    part: Part
    validation: float
    w: np.ndarray
    predict: Predictor


class Row(NamedTuple):
    """A depth in numbers.

    member: the member whose sub-network is used at this depth; validation, test: its accuracy on those
    samples; flops: of a sample, as executed; latencies: milliseconds, for each size of a call.
    """

    depth: int
    member: str
    validation: float
    test: float
    flops: float
    latencies: tuple[Latency, ...]

    def latency(self, batch: int) -> Latency:
        """The latency of calls with `batch` samples."""
        return next(one for one in self.latencies if one.batch == batch)

    def table(self) -> dict[str, Any]:
        """The row for JSON."""
        return {**self._asdict(), "latencies": [one._asdict() for one in self.latencies]}


def deploy(run: Cooperative, w: np.ndarray, validation: Sequence[float]) -> dict[int, Deployed]:
    """The sub-network that is used at each depth (§15.2), from the calibrated w (d,) of a finished run.

    validation: the accuracies of all parts on the validation samples, as from `run.accuracies`.
    """
    accuracy = dict(zip(run.network.parts, validation, strict=True))
    found = {}
    for depth, part in run.deployed(validation).items():
        own = w[run.network.entries(part, at_rest=True)]
        found[depth] = Deployed(part, accuracy[part], own, Predictor(run.network.at_rest(part), own))
    return found


def rows(
    deployed: dict[int, Deployed],
    x: np.ndarray,
    y: np.ndarray | None = None,
    batches: Sequence[int] = BATCHES,
    calls: int = CALLS,
) -> list[Row]:
    """All depths in numbers, the least first, on samples x (n, ...); without labels y, `test` is NaN."""
    predictors, found = [one.predict for one in deployed.values()], []
    times = {batch: call_times(predictors, x, batch, calls) for batch in batches}
    for at, (depth, (part, validation, _, predict)) in enumerate(deployed.items()):
        logits, _, flops = predict(x)
        test = np.nan if y is None else accuracy(part, logits, y)
        own = tuple(summary(batch, times[batch][at]) for batch in batches)
        found.append(Row(depth, part.member, validation, test, flops / len(x), own))
    return found


def summary(batch: int, milliseconds: np.ndarray) -> Latency:
    """The latency of calls with `batch` samples that took so many milliseconds (calls,)."""
    return Latency(batch, float(np.median(milliseconds)), limit(milliseconds))


def limit(milliseconds: np.ndarray) -> float:
    """The least of the times (n,) that is above the 95 % quantile of all calls with a probability of 95 %.

    It is the largest where n < 59, which are too few for such a promise. Source: Wilks 1941 (tolerance limits
    without a distribution); the k-th of n times is above the quantile if fewer than k of n calls are below.
    """
    from scipy.special import bdtr

    count = len(milliseconds)
    rank = int(np.searchsorted(bdtr(np.arange(count - 1), count, KEPT), SURE))
    return float(np.sort(milliseconds)[rank])


def call_times(
    predictors: Sequence[Predictor],
    x: np.ndarray,
    batch: int,
    calls: int,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """Milliseconds of calls (predictors, calls); predictors take turns, so that all see one machine.

    A turn has several calls, as a predictor in use is called again and again. (If another one were called in
    between, its weights would have to come into the cache each time.)
    """
    parts = [np.resize(x, (batch, *x.shape[1:]))] if len(x) < batch else _parts(x, batch)
    seconds = np.empty((len(predictors), calls))
    turns = [range(first, min(first + TURN, calls)) for first in range(0, calls, TURN)]
    for turn in (range(-WARM, 0), *turns):
        for at, predict in enumerate(predictors):
            for call in turn:
                own = parts[call % len(parts)]
                started = clock()
                predict(own)
                if call >= 0:
                    seconds[at, call] = clock() - started
    return 1e3 * seconds


def _parts(x: np.ndarray, batch: int) -> list[np.ndarray]:
    """x in parts of `batch` samples; what is left over is left out."""
    return [x[first : first + batch] for first in range(0, len(x) - batch + 1, batch)]


def deepest(
    found: Sequence[Row], milliseconds: float | None = None, flops: float | None = None, batch: int = 1
) -> Row:
    """The deepest row that fits: FLOPs of a sample, milliseconds in 95 % of calls with `batch` samples.

    Raises `InputError` where not even the least depth fits.
    """

    def fits(row: Row) -> bool:
        in_time = milliseconds is None or row.latency(batch).high <= milliseconds
        return in_time and (flops is None or row.flops <= flops)

    fitting = [row for row in found if fits(row)]
    if not fitting:
        least = min(found, key=lambda row: row.depth)
        time_ = f"{least.latency(batch).high:.3g} ms a call" if milliseconds is not None else ""
        work = f"{least.flops:.3g} FLOPs a sample" if flops is not None else ""
        raise InputError(
            f"cooperative: no depth fits the budget: depth {least.depth} needs "
            f"{' and '.join(filter(None, (time_, work)))}; give more, or train a narrower network"
        )
    return max(fitting, key=lambda row: row.depth)
