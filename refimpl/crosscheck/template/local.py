"""The local problem of a node."""

from collections.abc import Iterator, Sequence
from typing import Any

from refimpl.crosscheck.template.head import Arrays, computes, named, vector
from refimpl.crosscheck.template.numpy_network import loss_and_gradient


def local_steps(
    centre: Any, batches: Sequence[Any], eta: Any, lam: float, settings: Arrays
) -> Iterator[tuple[Any, Any, Any]]:
    """From w = centre, for each batch: loss and gradient at w, and the next w; eta may be one an entry."""
    w = centre
    for x, labels, noise in batches:
        loss, gradient = loss_and_gradient(w, x, labels, noise, settings)
        w = w - eta * (gradient + lam * (w - centre))
        yield loss, gradient, w


@computes("local")
def local(given: Arrays, settings: Arrays) -> Arrays:
    """Every step of the local problem whose centre the parameters are."""
    start, noise = vector(named(given, "param."), settings), named(given, "noise.")
    count = range(len(given["x"]))
    batches = [(given["x"][s], given["labels"][s], {g: n[s] for g, n in noise.items()}) for s in count]
    found: Arrays = {}
    steps = local_steps(start, batches, settings["eta"], settings["lam"], settings)
    for s, (loss, gradient, w) in enumerate(steps, 1):
        found |= {f"step{s}.loss": loss, f"step{s}.gradient": gradient, f"step{s}.w": w}
    return found
