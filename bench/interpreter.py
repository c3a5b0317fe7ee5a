"""The interpreter's share of a local solve: `python -m bench run --only interpreter`.

What is not spent inside the one compiled call of a node's solve: drawing batches, checks, Numba's dispatch,
copies of the parameters. One thread, medians over the nodes of some rounds. The stream of random numbers is
handed to a solve, as the server's loop does it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from refimpl.bench.process import emit, pin

ROUNDS = 30


def solves() -> Iterator[tuple[str, object, object]]:
    """Names, rounds and networks' gatings: the MNIST MLP, the digits and the CIFAR network."""
    from refimpl.bench.programs import MLP_ROUND, Model, Round

    yield "mlp 784-100-10, 20 steps", MLP_ROUND
    yield "digits, gated, 5 steps", Round(Model("digits", ("conv2",), 0.5), nodes=5, steps=5, batch=20)
    yield "cnn3, gated, 1 step", Round(Model("cnn3", ("conv3",), 0.5), nodes=5, steps=1, batch=20)


def measure(program) -> tuple[float, float]:
    """Median seconds of a node's solve, and of the compiled call in it."""
    import time

    import numpy as np

    from refimpl.federated.local import LocalSettings, solve_local
    from refimpl.nn import course as module
    from refimpl.nn.task import NetworkTask

    compiled, inside = module.descend, []

    def timed(*arguments):
        start = time.perf_counter()
        result = compiled(*arguments)
        inside.append(time.perf_counter() - start)
        return result

    w, settings = program.model.parameters(), LocalSettings(program.lam, program.eta, program.steps)
    nodes = [
        NetworkTask(program.model.network, x, y, train=program.train, batch_size=program.batch)
        for x, y in zip(*program.data(), strict=True)
    ]
    solve_local(nodes[0], w, settings, np.random.default_rng(0))
    module.descend, total = timed, []
    try:
        for _ in range(ROUNDS):
            for node in nodes:
                stream = np.random.default_rng(0)
                start = time.perf_counter()
                solve_local(node, w, settings, stream)
                total.append(time.perf_counter() - start)
    finally:
        module.descend = compiled
    return float(np.median(total)), float(np.median(inside))


def rows() -> Iterator[dict[str, object]]:
    """A row for each solve: seconds in all, seconds inside the compiled call, the share of the rest."""
    for name, program in solves():
        total, inside = measure(program)
        yield {"solve": name, "seconds": total, "inside": inside, "share": 1 - inside / total}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.interpreter", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, choices=(1,), help="cores to use")
    options = parser.parse_args()
    pin(options.threads)
    emit(("interpreter", row) for row in rows())


if __name__ == "__main__":
    main()
