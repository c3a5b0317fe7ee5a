"""Level `local`: the iterates of a node's local problem.

Kind `local`. Inputs: param.* (the centre), x (S, B, *input_shape) and labels (S, B): the batch of every
step; noise.<gate> (S, B, K) in mode `gumbel`. Settings: those of a network (`levels/networks.py`), lam, eta,
steps S. Step s = 1..S, from w = centre: w <- w - eta (g(w) + lam (w - centre)), g the gradient of the mean
cross-entropy on the step's batch. Outputs, for every step: step<s>.loss at w before it, step<s>.gradient =
g(w), step<s>.w after it, as vectors.

Source: mathematics.md §3. Derived.
"""

from __future__ import annotations

from collections.abc import Iterator

from refimpl.crosscheck.golden.case import Case
from refimpl.crosscheck.golden.draw import Draw, gates_of, network_settings
from refimpl.crosscheck.golden.models import model, tiny
from refimpl.nn.context import MODES, Gating
from refimpl.nn.network import Network

STEPS, BATCH = 4, 5
LAM, ETA = 1.5, 0.1


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """Cases without gates, in every mode, and with a convolutional network."""
    yield _case(seed, dtype, "ungated", tiny(gated=False), Gating())
    for mode in MODES:
        yield _case(seed, dtype, mode, tiny(), Gating(mode))
    yield _case(seed, dtype, "active", tiny(), Gating(gate_grad="active"))
    yield _case(seed, dtype, "digits", model("digits"), Gating())


def _case(seed: int, dtype: str, title: str, network: Network, gating: Gating) -> Case:
    draw = Draw(seed, f"local {title}", dtype)
    inputs = draw.params(network.layout)
    inputs["x"] = draw.normal(STEPS, BATCH, *network.input_shape)
    inputs["labels"] = draw.labels(STEPS, BATCH, classes=network.classes)
    if gating.mode == "gumbel":
        inputs |= draw.noise(gates_of(network), STEPS, BATCH)
    settings = network_settings(network, gating) | {"lam": LAM, "eta": ETA, "steps": STEPS}
    outputs = tuple(f"step{s}.{what}" for s in range(1, STEPS + 1) for what in ("loss", "gradient", "w"))
    return Case(f"local/{title}", "local", dtype, inputs, settings, outputs)
