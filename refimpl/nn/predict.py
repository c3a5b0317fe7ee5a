"""Logits of many samples without gradients, and what their gates left open.

Where the network has a compiled program (`lowering.py`) it runs on so few samples at a time that their
activations stay in the cache; otherwise the layers run. Both give the same bits: a sample's logits do not
depend on the others (batch normalisation, which has no program, apart).

Source: mathematics.md §2 (forward), §9 (executed work). Derived.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.kernels.operation import Decisions
from refimpl.kernels.program import predict as run
from refimpl.nn.context import Context, Gating
from refimpl.nn.lowering import MODES, Program, lower
from refimpl.nn.network import Network
from refimpl.nn.work import context_tables

CACHED_BYTES = 1 << 20  # activations of the samples treated together: half a second-level cache
LAYERS_BATCH = 256


class Prediction(NamedTuple):
    """logits (n, classes); opened (n, gates): channels each gate left open; flops: executed, in total."""

    logits: np.ndarray
    opened: np.ndarray
    flops: int


def predict(network: Network, w: np.ndarray, x: np.ndarray, gating: Gating | None = None) -> Prediction:
    """Prediction for x (n, *input_shape) in the dtype of w. Gate mode `gumbel` needs noise: not here."""
    gating = gating or Gating()
    x = network.check_batch(f"{network.name}: predict", x, w.dtype)
    network.layout.check(f"{network.name}: predict", w)
    program = lower(network, gating, ())
    if program is None:
        logits, opened = _by_layers(network, w, x, gating)
    else:
        logits, opened = _by_program(program, w, x, gating)
    counts = np.concatenate([np.ones((len(x), 1), dtype=np.int64), opened], axis=1)
    tables = context_tables(network, Context(gating))
    return Prediction(logits, opened, int((tables[:3] * (counts.T @ counts)).sum()))


def _by_program(
    program: Program, w: np.ndarray, x: np.ndarray, gating: Gating
) -> tuple[np.ndarray, np.ndarray]:
    classes = int(program.operations[-1].output[0])
    batch = min(len(x), max(1, CACHED_BYTES // (program.values * w.itemsize)))
    logits = np.empty((len(x), classes), dtype=w.dtype)
    opened = np.zeros((len(x), program.gates), dtype=np.int64)
    how = Decisions(gating.tau, MODES[gating.mode], program.stack_noise([{}], batch, w.dtype)[0])
    space, w = program.workspace(batch, w.dtype), np.require(w, requirements=("C", "W"))
    run(program.operations, x.reshape(len(x), -1), w, how, batch, space, logits, opened)
    return logits, opened


def _by_layers(
    network: Network, w: np.ndarray, x: np.ndarray, gating: Gating
) -> tuple[np.ndarray, np.ndarray]:
    logits, opened = [], []
    for start in range(0, len(x), LAYERS_BATCH):
        part, trace = network.forward(w, x[start : start + LAYERS_BATCH], Context(gating))
        masks = network.masks(trace)
        logits.append(part)
        counts = [(masks[block.gate.name] != 0).sum(axis=1) for block in network.gates]
        opened.append(np.array(counts, dtype=np.int64).reshape(len(counts), len(part)).T)
    return np.concatenate(logits), np.concatenate(opened)
