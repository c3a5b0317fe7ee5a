"""Logits of many samples without gradients, and what their gates left open.

Where the network has a compiled program (`lowering.py`) it runs on so few samples at a time that their
activations stay in the cache; otherwise the layers run. Both give the same bits: a sample's logits do not
depend on the others. Where they do (batch normalisation, which has no program), all samples are one batch.

Source: mathematics.md §2 (forward), §9 (executed work). Derived.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels.operation import Decisions
from refimpl.kernels.program import predict as run
from refimpl.nn.context import Context, Gating
from refimpl.nn.lowering import MODES, Program, lower
from refimpl.nn.network import Network
from refimpl.nn.work import context_tables

LAYERS_BATCH = 256


class Prediction(NamedTuple):
    """logits (n, classes); opened (n, gates): channels each gate left open; flops: executed, in total."""

    logits: np.ndarray
    opened: np.ndarray
    flops: int


class Predictor:
    """A network ready to predict under a gating; all that does not depend on w and x is done once."""

    def __init__(self, network: Network, gating: Gating | None = None) -> None:
        self.network = network
        self.gating = _without_noise(f"{network.name}: predict", network, gating)
        self.program = lower(network, self.gating, ())
        self.tables = context_tables(network, Context(self.gating))[:3].sum(axis=0)

    def __call__(self, w: np.ndarray, x: np.ndarray) -> Prediction:
        """Prediction for x (n, *input_shape) in the dtype of w."""
        who = f"{self.network.name}: predict"
        self.network.layout.check(who, w)
        x = self.network.check_batch(who, x, w.dtype)
        opened = np.zeros((len(x), len(self.network.gates)), dtype=np.int64)
        if self.program is None:
            logits = self._by_layers(w, x, opened)
        else:
            logits = self._by_program(self.program, w, x, opened)
        counts = np.ones((len(x), 1 + opened.shape[1]), dtype=np.int64)
        counts[:, 1:] = opened
        return Prediction(logits, opened, int(np.vdot(self.tables, counts.T @ counts)))

    def _by_program(self, program: Program, w: np.ndarray, x: np.ndarray, opened: np.ndarray) -> np.ndarray:
        part = program.part(len(x), w.dtype, gradients=False)
        logits = np.empty((len(x), self.network.classes), dtype=w.dtype)
        how = Decisions(self.gating.tau, MODES[self.gating.mode], np.empty((1, 1, 1), dtype=w.dtype))
        space = program.workspace(part, w.dtype)
        run(program.operations, x.reshape(len(x), -1), w, how, part, space, logits, opened)
        return logits

    def _by_layers(self, w: np.ndarray, x: np.ndarray, opened: np.ndarray) -> np.ndarray:
        logits = []
        for part in _parts(self.network, len(x)):
            result, trace = self.network.forward(w, x[part], Context(self.gating))
            masks = self.network.masks(trace)
            for number, block in enumerate(self.network.gates):
                opened[part, number] = (masks[block.gate.name] != 0).sum(axis=1)
            logits.append(result)
        return np.concatenate(logits)


def _without_noise(who: str, network: Network, gating: Gating | None) -> Gating:
    """The gating, `hard` for None; raises `InputError` where gates want noise, which nobody gives here."""
    gating = gating or Gating()
    if network.gates and gating.mode == "gumbel":
        raise InputError(
            f"{who}: mode 'gumbel' decides with noise, and predictions have none; use mode 'hard', or "
            "network.forward with noise in its context"
        )
    return gating


def _parts(network: Network, count: int) -> list[slice]:
    """Few enough samples at a time; all of them where they depend on each other."""
    size = count if network.mixes_samples else LAYERS_BATCH
    return [slice(start, start + size) for start in range(0, count, size)]


def open_channels(
    network: Network, w: np.ndarray, x: np.ndarray, gating: Gating | None = None
) -> dict[str, np.ndarray]:
    """Which channels each gate opens for x (n, *input_shape): gate name -> bool (n, K).

    Open is d > 0, or NaN, in every mode (for `soft` the mask is then above one half, or NaN).
    """
    who = f"{network.name}: open_channels"
    context = Context(_without_noise(who, network, gating))
    network.layout.check(who, w)
    x = network.check_batch(who, x, w.dtype)
    parts = _parts(network, len(x))
    found = [network.masks(network.forward(w, x[part], context)[1]) for part in parts]
    names = [block.gate.name for block in network.gates]
    return {name: np.concatenate([~(masks[name] <= 0.5) for masks in found]) for name in names}


def predict(network: Network, w: np.ndarray, x: np.ndarray, gating: Gating | None = None) -> Prediction:
    """`Predictor`, for a single use."""
    return Predictor(network, gating)(w, x)
