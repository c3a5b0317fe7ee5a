"""One round of each method to compare with."""

from typing import Any

import numpy as np

from refimpl.crosscheck.template.head import Arrays, computes, named, vector
from refimpl.crosscheck.template.local import local_steps
from refimpl.crosscheck.template.numpy_network import loss_and_gradient, maml_gradient


@computes("baseline")
def baseline(given: Arrays, settings: Arrays) -> Arrays:
    """The answers of the nodes and the server's model."""
    start, method = vector(named(given, "param."), settings), settings["method"]
    if method == "maml" and maml_gradient is None:
        return {}
    found: Arrays = {}
    for node in range(settings["nodes"]):
        pairs = zip(given["x"][node], given["labels"][node], strict=True)
        batches: list[Any] = [(x, labels, {}) for x, labels in pairs]
        found[f"node{node}.w"] = answer(start, batches, method, settings)
    mean = np.mean(list(found.values()), axis=0)
    share = {"reptile": settings.get("eps"), "pfedme": settings.get("beta")}.get(method, 1)
    return found | {"w": start + share * (mean - start)}


def answer(w: Any, batches: list[Any], method: str, settings: Arrays) -> Any:
    """What a node returns; every outer step uses the next batches."""

    def g(at: Any, batch: Any) -> Any:
        x, labels, noise = batch
        return loss_and_gradient(at, x, labels, noise, settings)[1]

    def descend(at: Any, over: list[Any], eta: float, lam: float = 0.0) -> Any:
        return [end for _, _, end in local_steps(at, over, eta, lam, settings)][-1]

    if method in ("fedavg", "reptile"):
        return descend(w, batches, settings["eta"])
    if method == "pfedme":
        for batch in batches:
            t = descend(w, [batch] * settings["prox_steps"], settings["eta_prox"], settings["lam"])
            w = w - settings["eta"] * settings["lam"] * (w - t)
        return w
    alpha, beta, size = settings["alpha"], settings["beta"], len(batches) // settings["steps"]
    for first in range(0, len(batches), size):
        own = batches[first : first + size]
        if method == "maml":
            w = w - beta * maml_gradient(w, own, alpha, settings)
        elif method == "perfedavg-hf":
            delta, v = settings["delta"], g(w - alpha * g(w, own[0]), own[1])
            d = (g(w + delta * v, own[2]) - g(w - delta * v, own[2])) / (2 * delta)
            w = w - beta * (v - alpha * d)
        else:  # perfedavg and fomaml
            w = w - beta * g(descend(w, own[:-1], alpha), own[-1])
    return w
