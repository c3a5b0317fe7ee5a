"""Interleaved timing: candidates take turns, so that whatever slows the machine slows all of them.

A sample is the mean of enough back-to-back calls to last about a millisecond; what is reported is the
median of the samples and their quartiles.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Run = Callable[[], object]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least `rounds` turns each, more (up to `most`) until `seconds` have passed.

    sample: least duration of one sample in seconds; clock: `wall`, or `cpu` to leave out the time other
    programs took on a busy machine (it adds up over threads, so only for one thread).
    """

    rounds: int = 9
    most: int = 101
    seconds: float = 1.0
    sample: float = 1e-3
    clock: str = "wall"


SMOKE = Effort(rounds=2, most=2, seconds=0.0, sample=0.0)


class Timing(NamedTuple):
    """Seconds of one call: median and quartiles over `samples` samples of `calls` calls each."""

    seconds: float
    low: float
    high: float
    samples: int
    calls: int

    @property
    def noise(self) -> float:
        """Distance between the quartiles relative to the median."""
        return (self.high - self.low) / self.seconds


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _sample(run: Run, calls: int, clock: Callable[[], float]) -> float:
    """Mean seconds of a call."""
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def interleave(runs: Mapping[str, Run], effort: Effort) -> dict[str, Timing]:
    """Time every run; each round starts with another one, so that none always follows the same one."""
    clock, names = CLOCKS[effort.clock], list(runs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _without_garbage_collection():
        calls = {}
        for name in names:  # the first call warms up, the second shows how many calls make a sample
            runs[name]()
            once = max(_sample(runs[name], 1, time.perf_counter), 1e-7)
            calls[name] = max(1, math.ceil(effort.sample / once))
        start = time.perf_counter()
        for turn in range(effort.most):
            if turn >= effort.rounds and time.perf_counter() - start >= effort.seconds:
                break
            for i in range(len(names)):
                name = names[(turn + i) % len(names)]
                samples[name].append(_sample(runs[name], calls[name], clock))
    timings = {}
    for name, seconds in samples.items():
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        timings[name] = Timing(median, low, high, len(seconds), calls[name])
    return timings
