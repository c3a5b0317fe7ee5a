"""A meter that walks each sample of a batch and ticks once for every operation.

It shares no formula with the package: it loops over the channels that are open in one sample, over positions
and taps, and adds 2 for a multiply-add, 1 for anything else (mathematics.md §9).
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

from refimpl.nn.chain import Residual, chain_shape
from refimpl.nn.context import Context
from refimpl.nn.gate import Gated
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.pooling import Flatten
from refimpl.nn.work import Work

BOTH = ("theta", "phi")
PASSES = ("forward", "input_grad", "weight_grad")


class Meter:
    """Ticks for one sample. `masks` are its gates' open channels, or None for gates that multiply."""

    def __init__(self, masks: dict[str, list[int] | None], context: Context) -> None:
        self.masks, self.train = masks, context.train
        self.gates_learn = "phi" in context.train or context.gating.mode == "soft"
        self.dense = self.gates_learn and context.gating.gate_grad == "dense"
        self.detached = context.gating.detach_gate_input
        self.ticks: Counter[str] = Counter()
        self.inside_gate = False

    def tick(self, kind: str, amount: int) -> None:
        self.ticks[kind] += amount
        if self.inside_gate:
            self.ticks["gate"] += amount

    def once(self, kind: str, channels, positions) -> None:
        for _ in itertools.product(channels, positions):
            self.tick(kind, 1)

    def multiply_adds(self, kind: str, outs, ins, positions, taps=(0,)) -> None:
        for _ in itertools.product(outs, ins, positions, taps):
            self.tick(kind, 2)
            self.ticks[f"{kind} by kernels"] += 2

    def gradient_channels(self, channels, everything):
        """Channels of a gradient that are worked on: all where off channels' gates learn from them."""
        return everything if self.dense else channels

    def walk(self, layers, shape, opened, below=False):
        """A chain outside of gates; `below`: whether something under it is trained."""
        for layer in layers:
            opened = self.visit(layer, shape, opened, below)
            below = below or any(p.part in self.train for p in layer.parameters())
            shape = layer.output_shape(shape)
        return opened

    def visit(self, layer, shape, opened, below):
        out = layer.output_shape(shape)
        everything, positions = range(out[0]), range(int(np.prod(out[1:])))
        match layer:
            case Flatten():
                size = int(np.prod(shape[1:]))
                return [c * size + i for c in opened for i in range(size)]
            case Residual():
                self.walk(layer.body, shape, opened, below)
                self.walk(layer.shortcut, shape, opened, below)
                self.once("forward", everything, positions)
                if below:
                    self.once("input_grad", range(shape[0]), range(int(np.prod(shape[1:]))))
                return everything
            case Gated():
                return self.gated(layer, shape, opened, below)
            case Conv2d() | Linear():
                self.weighted(layer, shape, opened, everything, everything, below)
                return everything
        stays_closed = layer.keeps_zero
        computed = opened if stays_closed else everything
        live = self.gradient_channels(computed, everything)
        self.elementwise(layer, computed, live, positions, below)
        return computed

    def elementwise(self, layer, computed, live, positions, below):
        self.once("forward", computed, positions)
        if below:
            self.once("input_grad", live, positions)
        if layer.parameters() and "theta" in self.train:
            self.once("weight_grad", live, positions)

    def weighted(self, layer, shape, opened, computed, live, below):
        positions = range(int(np.prod(layer.output_shape(shape)[1:])))
        taps = list(itertools.product(*map(range, layer.window))) if isinstance(layer, Conv2d) else [0]
        has_bias = len(layer.parameters()) == 2
        self.multiply_adds("forward", computed, opened, positions, taps)
        if has_bias:
            self.once("forward", computed, positions)
        if below:
            wanted = self.gradient_channels(opened, range(shape[0]))
            self.multiply_adds("input_grad", live, wanted, positions, taps)
        if "theta" in self.train:
            self.multiply_adds("weight_grad", live, opened, positions, taps)
            if has_bias:
                self.once("weight_grad", live, positions)

    def gated(self, layer, shape, opened, below):
        body, out = layer.body, chain_shape(layer.body, shape)
        everything, positions = range(out[0]), range(int(np.prod(out[1:])))
        mask = self.masks[layer.gate.name]
        multiplies = mask is None
        live = everything if multiplies else mask
        skips = not multiplies and not self.dense
        computed = live if skips else everything
        inner, trained = shape, below
        for part in body:
            if isinstance(part, (Conv2d, Linear)):
                self.weighted(part, inner, opened, computed, live, trained)
                trained = trained or "theta" in self.train
            else:
                places = range(int(np.prod(part.output_shape(inner)[1:])))
                self.elementwise(part, computed, live, places, trained)
            inner = part.output_shape(inner)
        self.inside_gate = True
        if not skips:
            self.once("forward", live, positions)  # mask times map
        if multiplies and trained:
            self.once("input_grad", everything, positions)  # mask times its gradient
        passes_on = below and not self.detached
        if self.gates_learn and (passes_on or "phi" in self.train):
            read = everything if self.dense else live
            for _ in itertools.product(read, positions):
                self.tick("input_grad", 2)  # dL/dM
        self.gate_mlp(layer.gate, shape, opened, passes_on)
        self.inside_gate = False
        return live

    def gate_mlp(self, gate, shape, opened, passes_on):
        hidden, logits, here = range(gate.hidden), range(2 * gate.out_channels), [0]
        pools = len(shape) == 3
        if pools:
            self.once("forward", opened, here)
        self.multiply_adds("forward", hidden, opened, here)
        self.once("forward", hidden, here)  # bias
        self.once("forward", hidden, here)  # ReLU
        self.multiply_adds("forward", logits, hidden, here)
        self.once("forward", logits, here)
        if not self.gates_learn or not (passes_on or "phi" in self.train):
            return
        self.multiply_adds("input_grad", hidden, logits, here)
        self.once("input_grad", hidden, here)
        if passes_on:
            wanted = self.gradient_channels(opened, range(shape[0]))
            self.multiply_adds("input_grad", wanted, hidden, here)
            if pools:
                self.once("input_grad", wanted, here)
        if "phi" in self.train:
            self.multiply_adds("weight_grad", logits, hidden, here)
            self.once("weight_grad", logits, here)
            self.multiply_adds("weight_grad", hidden, opened, here)
            self.once("weight_grad", hidden, here)


def metered(network, masks, batch, context) -> Work:
    """The meter's reading over a batch."""
    total = ticks(network, masks, batch, context)
    return Work(*(total[kind] for kind in PASSES), total["gate"])


def ticks(network, masks, batch, context) -> Counter[str]:
    total: Counter[str] = Counter()
    for n in range(batch):
        opened = {
            name: [int(c) for c in np.flatnonzero(mask[n])] if mask.dtype == bool else None
            for name, mask in masks.items()
        }
        meter = Meter(opened, context)
        meter.walk(network.layers, network.input_shape, range(network.input_shape[0]))
        total += meter.ticks
    return total
