"""Logits of many samples without gradients, and what their gates left open.

Where the network has a compiled program (`program.py`) it runs on so few samples at a time that their
activations stay in the cache; otherwise the layers run. Both give the same bits: a sample's logits do not
depend on the others. Where they do (batch normalisation), all samples are one batch.

Source: mathematics.md §2 (forward), §9 (executed work). Derived.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from threading import local
from typing import Any, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels.arrays import tidy
from refimpl.kernels.operation import Decisions, Workspace
from refimpl.kernels.program import predict as run
from refimpl.kernels.workspace import aligned_copy
from refimpl.nn.context import Context, FixedShare, Gating
from refimpl.nn.lowering import MODES, lower
from refimpl.nn.network import Network, draw_gate_noise
from refimpl.nn.norms import fold, folded
from refimpl.nn.program import Program
from refimpl.nn.weightmask import WeightMask
from refimpl.nn.work import total_table
from refimpl.threads import share

LAYERS_BATCH = 256  # samples at a time where the layers run


class Prediction(NamedTuple):
    """logits (n, classes); opened (n, gates): channels each gate left open; flops: executed, in total."""

    logits: np.ndarray
    opened: np.ndarray
    flops: int


class Predictor:
    """A network with its parameters, ready to predict: all that does not depend on the samples is done once.

    Prepare one for many small batches. w (d,) is copied, so that its later changes have no effect; the gating
    is `hard` for None; `weights` says which entries of w are kept. Samples of a large batch are divided among
    `threads`. Several threads may call the same predictor at a time: each has a workspace of its own. Results
    are those of `predict`, bit for bit.
    Raises `InputError` where the gating wants random noise.
    """

    def __init__(
        self,
        network: Network,
        w: np.ndarray,
        gating: Gating | None = None,
        threads: int = 1,
        weights: WeightMask | None = None,
    ) -> None:
        self.who = f"{network.name}: predict"
        network.layout.check(self.who, w)
        self.gating = _without_noise(self.who, network, gating)
        self.context = Context(self.gating, weights=weights)
        self.network, self.threads, self.runs, own = network, threads, network, self.context.pruned(tidy(w))
        if weights is None:  # a mask is one of this network's own layout
            self.runs, own = folded(network), fold(network, own)
        self.w, self.program = aligned_copy(own), lower(self.runs, self.gating, (), weights)
        self.how = Decisions(self.gating.tau, MODES[self.gating.mode], np.empty((1, 1, 1), dtype=w.dtype))
        self.table = total_table(network, self.context)
        self.memory = local()
        self.sizes: dict[int, tuple[int, int]] = {}

    def __call__(self, x: np.ndarray) -> Prediction:
        """Prediction for x (n, *input_shape) in the dtype of w."""
        x = self.network.check_batch(self.who, x, self.w.dtype)
        opened = np.zeros((len(x), len(self.network.gates)), dtype=np.int64)
        if self.program is None:
            logits = self._by_layers(x, opened)
        else:
            logits = self._by_program(self.program, x, opened)
        return Prediction(logits, opened, self._flops(opened))

    def _flops(self, opened: np.ndarray) -> int:
        """The work of samples whose gates opened so many channels."""
        if not opened.shape[1]:
            return len(opened) * int(self.table[0, 0])
        counts = np.ones((len(opened), 1 + opened.shape[1]), dtype=np.int64)
        counts[:, 1:] = opened
        return int(np.vdot(self.table, counts.T @ counts))

    def _by_program(self, program: Program, x: np.ndarray, opened: np.ndarray) -> np.ndarray:
        logits = np.empty((len(x), self.network.classes), dtype=x.dtype)
        x, (each, part) = x.reshape(len(x), -1), self._sizes(program, len(x))
        noise = self._noise(program, len(x))

        def fill(number: int) -> None:
            first, last = number * each, min((number + 1) * each, len(x))
            size = last - first if noise is None else part  # a part's masks are its own
            for start in range(first, last, size):
                own, space = slice(start, min(start + size, last)), self._space(program, part)
                how = self.how if noise is None else self.how._replace(noise=noise[own])
                run(program.operations, x[own], self.w, how, part, space, logits[own], opened[own])

        share(fill, math.ceil(len(x) / each), self.threads)
        return logits

    def _sizes(self, program: Program, samples: int) -> tuple[int, int]:
        """How many of so many samples a thread predicts, and how many of these at a time."""
        if samples not in self.sizes:  # a call with one sample takes as little as 50 microseconds
            each = program.share_of(samples, self.w.dtype, self.threads)
            self.sizes[samples] = each, program.part(each, self.w.dtype, gradients=False)
        return self.sizes[samples]

    def _noise(self, program: Program, samples: int) -> np.ndarray | None:
        """The gates' noise for so many samples, as the program reads it; None where no gate reads any."""
        noise = fixed_noise(self.network, self.gating, samples, self.w.dtype)
        return program.stack_noise([noise], samples, self.w.dtype)[0] if noise else None

    def _space(self, program: Program, part: int) -> Workspace:
        """This thread's workspace for so many samples at a time."""
        kept: tuple[int, Workspace] | None = getattr(self.memory, "kept", None)
        if kept is None or kept[0] != part:
            kept = self.memory.kept = (part, program.workspace(part, self.w.dtype))
        return kept[1]

    def _by_layers(self, x: np.ndarray, opened: np.ndarray) -> np.ndarray:
        logits = []
        for part, result, masks in _by_parts(self.runs, self.w, x, self.context):
            for number, mask in enumerate(masks.values()):  # in the order of the network's gates
                opened[part, number] = (mask != 0).sum(axis=1)
            logits.append(result)
        return np.concatenate(logits)


def _without_noise(who: str, network: Network, gating: Gating | None) -> Gating:
    """The gating, `hard` for None; raises `InputError` where gates want noise, which nobody gives here."""
    gating = gating or Gating()
    if network.gates and gating.mode == "gumbel" and not isinstance(gating, FixedShare):
        raise InputError(
            f"{who}: mode 'gumbel' decides with noise, and predictions have none; use mode 'hard', or "
            "network.forward with noise in its context"
        )
    return gating


def fixed_noise(network: Network, gating: Gating, samples: int, dtype: Any) -> dict[str, np.ndarray]:
    """The noise by gate of a `FixedShare` for so many samples; nothing for other gatings."""
    if not isinstance(gating, FixedShare):
        return {}
    return draw_gate_noise(network, samples, np.random.default_rng(0), dtype, gating)


def _by_parts(
    network: Network, w: np.ndarray, x: np.ndarray, context: Context
) -> Iterator[tuple[slice, np.ndarray, dict[str, np.ndarray]]]:
    """Run the layers on some of the samples at a time: which ones, their logits, and their masks by gate.

    All of them are run together where they depend on each other.
    """
    noise = fixed_noise(network, context.gating, len(x), x.dtype)
    size = len(x) if network.mixes_samples else LAYERS_BATCH
    for part in (slice(start, start + size) for start in range(0, len(x), size)):
        own = replace(context, noise={name: values[part] for name, values in noise.items()})
        logits, trace = network.forward(w, x[part], own)
        yield part, logits, network.masks(trace)


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
    found = [masks for _, _, masks in _by_parts(network, w, x, context)]
    names = [block.gate.name for block in network.gates]
    return {name: np.concatenate([~(masks[name] <= 0.5) for masks in found]) for name in names}


def predict(
    network: Network, w: np.ndarray, x: np.ndarray, gating: Gating | None = None, threads: int = 1
) -> Prediction:
    """`Predictor`, for a single use."""
    return Predictor(network, w, gating, threads)(x)
