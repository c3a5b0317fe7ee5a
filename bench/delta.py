"""How wrong the second-order term of Per-FedAvg HF is, by its delta: `python -m bench.delta`.

Along a training with exact products (MAML), the difference of gradients is compared with the exact
Hessian-vector product at every step, on embedded digits: an MLP and the digits network, batches of 20 and
of 100. Shown by dtype and delta: the median and the 90 % quantile of the relative error, and how often the
error is larger than the term itself, which is what a kink of ReLU or max-pooling between the two points does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from refimpl.data import Partition, load, make_nodes
from refimpl.federated.local import Tally
from refimpl.federated.methods.meta import gradient_at, look_ahead
from refimpl.federated.methods.perfedavg_hf import difference
from refimpl.files.tables import table
from refimpl.kernels.vector import norm
from refimpl.nn import zoo
from refimpl.nn.network import Network
from refimpl.nn.task import NetworkTask
from refimpl.rng import SeedTree

DELTAS = tuple(10.0**-power for power in range(1, 10))
RATE = 0.05  # inner and outer rate
HEADER = ("dtype", "batch", "delta", "median", "90 %", "above 1")


def networks() -> list[Network]:
    """The networks compared, without gates, whose hard decisions have no second derivatives."""
    return [zoo.mlp((64, 100, 10), ()), zoo.digits(classes=10, gates=())]


def errors(
    network: Network, dtype: str, batch: int, seed: int, steps: int, deltas: Sequence[float] = DELTAS
) -> Iterator[list[float]]:
    """The relative error at every delta, one list a step of training."""
    nodes, _ = make_nodes(load("digits"), Partition(nodes=1, targets=0, sizes=(100,)), seed, np.dtype(dtype))
    w, scalar = network.layout.initialise(SeedTree(seed), dtype), np.dtype(dtype).type
    task = NetworkTask(network, nodes[0].train.x, nodes[0].train.y, batch_size=batch)
    drawn = iter(task.draw(np.random.default_rng(seed), 3 * steps))
    for inner, outer, curve in zip(drawn, drawn, drawn, strict=True):
        _, ahead = look_ahead(w, [inner], RATE, Tally())
        _, v = gradient_at(outer, ahead, Tally())
        exact = curve.hessian_vector(w, v)
        offs = [difference(curve, w, v, delta, Tally()) - exact for delta in deltas]
        yield [float(norm(off)) / float(norm(exact)) for off in offs]
        w = w - scalar(RATE) * (v - scalar(RATE) * exact)


def measure(dtype: str, batch: int, seeds: int, steps: int) -> list[tuple[str, ...]]:
    """The lines of the table for one dtype and size of batch."""
    found = np.array(
        [row for net in networks() for seed in range(seeds) for row in errors(net, dtype, batch, seed, steps)]
    )
    lines = zip(DELTAS, np.median(found, 0), np.quantile(found, 0.9, 0), np.mean(found > 1, 0), strict=True)
    return [(dtype, str(batch), f"{d:.0e}", f"{m:.1e}", f"{q:.1e}", f"{a:.1%}") for d, m, q, a in lines]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.delta", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one seed and two steps, to see that it works")
    seeds, steps = (1, 2) if parser.parse_args().smoke else (5, 40)
    found = [measure(dtype, batch, seeds, steps) for dtype in ("float32", "float64") for batch in (20, 100)]
    print(table(HEADER, list(chain.from_iterable(found))))


if __name__ == "__main__":
    main()
