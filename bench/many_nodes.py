"""Rounds of many small nodes: `python -m bench.many_nodes --data-dir DATA`.

Nodes of seven images each are dealt from a data set (10,000 of them use all of MNIST), and all take part in
every round: FedAvg, an mlp, one local step. It prints three things.

* The memory that a round takes above the images as numbers.
* The time of a node, solved with others in one call, beside that of one of ten nodes that are solved one by
  one. It is processor time, of the fastest round.
* The gain of a second thread: the median of ratios of times on the clock, which needs two free cores. Beside
  it stands what a second thread gains with a kernel alone, which never waits for the interpreter: that much
  the machine had to give.

Rounds take turns, so that other programs disturb all alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bench.memory import status

IMAGES, FEW = 7, 10  # of a node; nodes that are calls of their own
MEGABYTE = 2**20


def rounds(tasks: Sequence[Any], w: Any, seeds: Any, threads: int) -> Callable[[], None]:
    """A function that runs the next round of FedAvg over all tasks."""
    from refimpl.federated.methods.fedavg import FedAvg
    from refimpl.federated.rounds import Participation, run_rounds

    method = FedAvg(eta=0.05, local_steps=1)
    state, numbers = method.start(w), count(1)

    def run() -> None:
        nonlocal state
        k = next(numbers)
        ((state, _),) = run_rounds(method, tasks, state, range(k, k + 1), Participation(), seeds, threads)

    return run


def in_turns(
    works: dict[str, tuple[Callable[[], None], int]], repeats: int, clock: Callable[[], float]
) -> dict[str, np.ndarray]:
    """Seconds of each work (repeats,), which is called so many times in a row; the works take turns."""
    found = {name: np.empty(repeats) for name in works}
    for repeat in range(repeats):
        for name, (work, times) in works.items():
            start = clock()
            for _ in range(times):
                work()
            found[name][repeat] = clock() - start
    return found


def kernels(threads: int) -> Callable[[], None]:
    """A function that runs a kernel, of about a millisecond, a hundred times."""
    from refimpl.kernels import vector
    from refimpl.threads import share

    numbers = np.ones(1_000_000, np.float32)

    def run() -> None:
        share(lambda piece: vector.squared_norm(numbers), 100, threads)

    return run


def measure(dataset: str, data_dir: Path | None, nodes: int, repeats: int) -> dict[str, float]:
    """Memory in MB, times of a node in microseconds, and how many times as fast two threads are."""
    from refimpl.data.catalog import load
    from refimpl.data.deal import Iid
    from refimpl.data.partition import Partition, make_nodes
    from refimpl.experiments.experiment import NodeTasks
    from refimpl.nn.task import NetworkTask
    from refimpl.nn.zoo import MLP
    from refimpl.rng import SeedTree

    data, seeds = load(dataset, data_dir), SeedTree(0)
    sizes = (IMAGES,) * nodes
    network = MLP().build(data.shape, data.classes)
    w = network.layout.initialise(seeds)
    found, _ = make_nodes(data, Partition(Iid(), nodes=nodes, targets=0, sizes=sizes, test=0.0, support=0))
    del data
    first = NetworkTask(network, *found[0].train)
    many, few = NodeTasks(found, first), [NetworkTask(network, *node.train) for node in found[:FEW]]
    rounds(few, w, seeds, threads=2)()  # compiles, and starts the other thread
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of reading and dealing
    works = {"many": (rounds(many, w, seeds, 1), 1), "few": (rounds(few, w, seeds, 1), nodes // FEW)}
    each = {
        name: 1e6 * seconds.min() / nodes
        for name, seconds in in_turns(works, repeats, time.process_time).items()
    }
    works = {str(threads): (rounds(many, w, seeds, threads), 1) for threads in (1, 2)}
    works |= {f"kernel {threads}": (kernels(threads), 1) for threads in (1, 2)}
    wall = in_turns(works, repeats, time.perf_counter)
    return {
        "nodes": nodes,
        "images_mb": nodes * IMAGES * found[0].x[0].nbytes / MEGABYTE,
        "above_mb": (status("VmHWM") - before) / MEGABYTE,
        "node_us": each["many"],
        "node_of_ten_us": each["few"],
        "two_threads": float(np.median(wall["1"] / wall["2"])),
        "two_threads_of_kernels": float(np.median(wall["kernel 1"] / wall["kernel 2"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.many_nodes")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps(measure(options.dataset, options.data_dir, options.nodes, options.repeats), indent=1))


if __name__ == "__main__":
    main()
