"""Level `networks`: whole networks with their loss: activations, masks, gradients.

Kind `network`. Inputs: x (N, *input_shape), labels (N,), param.*, noise.<gate> (N, K) in mode `gumbel`.
Settings: layers (`describe.py`), input_shape, parameters ([name, shape] in the order of w),
backbone_size (entries of w that are no gate's), gating (mode, tau, gate_grad, detach_gate_input).
Both parts are trained. Outputs: `names.py`.

Source: mathematics.md §2. Derived.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from refimpl.crosscheck.golden.case import Case
from refimpl.crosscheck.golden.draw import Draw, gates_of, network_settings
from refimpl.crosscheck.golden.models import NAMES, model
from refimpl.crosscheck.golden.names import network_outputs
from refimpl.nn.context import GATE_GRADS, MODES, Gating

BATCH = 3


def cases(seed: int, dtype: str, models: Collection[str] = NAMES, full: bool = False) -> Iterator[Case]:
    """Cases of every model without gates, and with every mode and gate gradient."""
    for name in models:
        yield network_case(seed, dtype, name, None, full)
        for mode in MODES:
            for gate_grad in GATE_GRADS:
                yield network_case(seed, dtype, name, Gating(mode, gate_grad=gate_grad), full)


def network_case(seed: int, dtype: str, name: str, gating: Gating | None, full: bool = False) -> Case:
    """One model in one mode, or without gates."""
    network = model(name, gating is not None, full)
    title = f"{name}-{f'{gating.mode}-{gating.gate_grad}' if gating else 'ungated'}"
    draw = Draw(seed, title, dtype)
    # Batch normalisation would divide a constant channel by the square root of eps.
    inputs = draw.params(network.layout, zeros=name != "residual")
    inputs["x"] = draw.normal(BATCH, *network.input_shape)
    inputs["labels"] = draw.labels(BATCH, classes=network.classes)
    if gating and gating.mode == "gumbel":
        inputs |= draw.noise(gates_of(network), BATCH)
    settings = network_settings(network, gating or Gating())
    outputs = network_outputs(settings["layers"], settings["gating"]["gate_grad"])
    return Case(f"networks/{title}", "network", dtype, inputs, settings, outputs)
