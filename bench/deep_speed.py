"""Normalised models against PyTorch on one thread: `python -m bench.deep_speed`.

One gradient with autograd, and the logits of the same samples without gradients, of resnet20, conv4 and
resnet12 in float32. PyTorch runs the network as its users write it, with the statistics of the batch, in
both memory layouts. Gradients and logits must be near this package's in float64 before anything is timed.
Every candidate then takes its turn; "PyTorch / ours" is the time of PyTorch's faster layout divided by ours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from refimpl.bench.process import pin

# Name, samples' shape, batch size.
CASES = (
    ("resnet20", (3, 32, 32), 64),
    ("conv4", (3, 32, 32), 25),
    ("conv4", (1, 28, 28), 25),
    ("resnet12", (3, 32, 32), 25),
)
LAYOUTS = ("NCHW", "channels-last")
HEADER = ("network", "pass", "ours ms", *(f"{layout} ms" for layout in LAYOUTS), "PyTorch / ours")
NEAR = 5e-3  # of the reference's length; where a sum is nearly 0, rounding decides which way ReLU goes


def theirs(network, w, x, y, channels_last: bool) -> dict[str, Callable]:
    """PyTorch's gradient and logits."""
    import torch
    from torch.nn import functional

    from refimpl.crosscheck.bridges.torch.network import build

    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = build(network, w).to(memory_format=layout)
    images, labels = torch.from_numpy(x).to(memory_format=layout), torch.from_numpy(y)
    names = [slot.name for slot in network.layout.slots]
    parameters = [module.get_parameter(name) for name in names]

    def gradient():
        loss = functional.cross_entropy(module(images), labels)
        return torch.autograd.grad(loss, parameters)

    return {"gradient": gradient, "inference": torch.inference_mode()(lambda: module(images))}


def ours(network, w, x, y) -> dict[str, Callable]:
    """This package's gradient and logits."""
    import numpy as np

    from refimpl.nn.predict import Predictor
    from refimpl.nn.task import NetworkTask

    (objective,) = NetworkTask(network, x, y).draw(np.random.default_rng(0), 1)
    gradient, predictor = np.empty_like(w), Predictor(network, w)

    def run():
        objective(w, gradient)
        return gradient

    return {"gradient": run, "inference": lambda: predictor(x).logits}


def flat(result):
    """A result of either side as one vector."""
    import numpy as np

    parts = result if isinstance(result, tuple) else (result,)
    return np.concatenate([np.asarray(part).ravel() for part in parts])


def measure(name: str, shape, batch: int, effort) -> list[dict[str, object]]:
    """Both passes of one network; raises `AssertionError` where the sides differ."""
    import numpy as np

    from refimpl.bench.timing import interleave
    from refimpl.nn import zoo
    from refimpl.rng import SeedTree

    network, rng = zoo.network(name, (), shape), np.random.default_rng(0)
    w = network.layout.initialise(SeedTree(0), "float32")
    x = rng.standard_normal((batch, *shape)).astype("float32")
    y = rng.integers(0, network.classes, batch)
    mine = ours(network, w, x, y)
    others = {layout: theirs(network, w, x, y, layout == "channels-last") for layout in LAYOUTS}
    exact = ours(network, w.astype("float64"), x.astype("float64"), y)
    found = []
    for what, run in mine.items():
        runs = {"ours": run, **{layout: passes[what] for layout, passes in others.items()}}
        reference = flat(exact[what]())
        for key, one in runs.items():
            error = np.linalg.norm(flat(one()) - reference) / np.linalg.norm(reference)
            assert error < NEAR, f"{name}, {what}: {key} is {error:.1e} from float64"
        times = {key: timing.seconds for key, timing in interleave(runs, effort).items()}
        side = "x".join(map(str, shape))
        found.append({"network": f"{name}, {side}, batch {batch}", "pass": what, **times})
    return found


def line(found: dict[str, object]) -> tuple[str, ...]:
    own, *other = (float(found[key]) for key in ("ours", *LAYOUTS))
    milliseconds = (f"{1e3 * seconds:.1f}" for seconds in (own, *other))
    return str(found["network"]), str(found["pass"]), *milliseconds, f"{min(other) / own:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.deep_speed", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--smoke", action="store_true", help="two samples only, to see that it works")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    options = parser.parse_args()
    pin(1)
    import torch

    torch.set_num_threads(1)
    from refimpl.bench.timing import SMOKE, Effort
    from refimpl.files.tables import table

    effort = SMOKE if options.smoke else Effort(rounds=7, seconds=3.0, clock=options.clock)
    found = [one for case in CASES for one in measure(*case, effort)]
    print(json.dumps(found) if options.json else table(HEADER, [line(one) for one in found]))


if __name__ == "__main__":
    main()
