"""A compiled program: the operations of a network, and the memory that its samples need.

`lowering.py` makes it from a plan; `kernels/program.py` runs it.

Source: mathematics.md §2.3b. Derived.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from refimpl.kernels import operation as code
from refimpl.kernels import tiled_linear
from refimpl.kernels.arrays import DOUBLE, INDICES, INTS
from refimpl.kernels.operation import Activations, Workspace
from refimpl.kernels.sparse_tables import sparse_scratch
from refimpl.kernels.tiled_conv import convolve_scratch
from refimpl.kernels.tiled_weight_grad import weight_grad_scratch
from refimpl.kernels.workspace import scratch, scratch_array

# Activations at work at a time, measured on 32x32 images. Gradients: 3 to 10 MB are equally good (weight
# gradients cost something for each part). Without them: what the second-level cache holds; 7 MB take up to
# 1.1 times as long. Where MANY samples of training are less than 7 MB, they too should lie in that cache: a
# step of an MLP on 1,875 MNIST images takes 8.6 ms in parts of 512 KB, 8.8 in parts of 1 MB, 12.9 of 5 MB.
# Every part reads all weights: where these are larger, parts are as large as they (resnet12, 25 images: 83
# instead of 106 ms on an AMD EPYC).
TRAINING_BYTES = 7 << 20
PREDICTION_BYTES = 3 << 19
CACHE_BYTES = 1 << 19
MANY = 64
SHARED_BYTES = 1 << 20  # of activations in a part, from which on it is worth handing to another thread
SHARED_CACHES = 4  # a part for threads may be so many times as large, since it costs the interpreter 0.2 ms
PARTS_PER_THREAD = 4  # so that threads that wait for their turn to add up wait for little


@dataclass(frozen=True)
class Program:
    """A network's operations and the workspace they need, in entries per sample."""

    operations: np.ndarray  # records `OPERATION`
    values: int
    masks: int
    where: int
    gates: int
    widest_gate: int
    wide: int = 0
    whole: bool = False  # whether samples depend on each other, so that a batch cannot be treated in parts
    before_gate: int = 0  # operations in front of those of the first gate
    through_gate: int = 0  # operations up to the first gate's product, where closed channels may be anything
    untouched: tuple[slice, ...] = ()  # entries of w whose gradients no operation writes
    kept: np.ndarray = field(default_factory=lambda: np.empty(0, INTS))  # tables of kept weights
    pruned: np.ndarray = field(default_factory=lambda: np.empty(0, INDICES))  # entries of w that are zero
    needs: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # known sizes of scratch

    @cached_property
    def widest(self) -> int:
        """The largest number of channels of an operation's output."""
        return int(self.operations["output"][:, 0].max())

    @cached_property
    def weights(self) -> int:
        """How many weights the convolutions and fully connected layers have."""
        count = 0
        for op in self.operations.view(np.recarray):
            if op.kind == code.CONV:
                count += int(op.input[0]) * int(op.output[0]) * int(op.window.prod()) // int(op.parts)
            elif op.kind == code.LINEAR:
                count += int(op.input[0]) * int(op.output[0])
        return count

    def part(self, batch: int, dtype: Any, gradients: bool, threads: int = 1) -> int:
        """How many of `batch` samples to treat at a time: equal parts whose activations the cache holds.

        With several threads there are some parts for each, if the parts are then still worth it.
        """
        if self.whole:
            return batch
        itemsize = np.dtype(dtype).itemsize
        size, weights = self.values * itemsize * (2 if gradients else 1), self.weights * itemsize
        fits = max(1, max(TRAINING_BYTES if gradients else PREDICTION_BYTES, weights) // size)
        if fits > MANY and gradients:
            fits = max(MANY, CACHE_BYTES * (SHARED_CACHES if threads > 1 else 1) // size)
        parts = math.ceil(batch / fits)
        if threads > 1:
            parts = max(parts, min(PARTS_PER_THREAD * threads, batch, batch * size // SHARED_BYTES))
        return math.ceil(batch / parts)

    def share_of(self, batch: int, dtype: Any, threads: int) -> int:
        """How many of `batch` samples a thread should predict: equal shares that are each worth a thread."""
        worth = math.ceil(batch * self.values * np.dtype(dtype).itemsize * 2 / SHARED_BYTES)
        return batch if self.whole else math.ceil(batch / max(1, min(threads, worth)))

    def workspace(self, batch: int, dtype: Any, own: Activations | None = None) -> Workspace:
        """This thread's workspace for `batch` samples at a time, around the `own` activations if given.

        Raises InputError where the batch is too large for the kernels' tables.
        """
        dtype = np.dtype(dtype)
        key = (batch, dtype.itemsize)
        if key not in self.needs:
            self.needs[key] = _scratch(self.operations.view(np.recarray), self.kept, *key)
        values, masks, where = own or (
            scratch_array("values", dtype, self.values * batch),
            scratch_array("masks", np.dtype(np.bool_), max(1, self.masks * batch)),
            scratch_array("where", INTS, max(1, self.where * batch)),
        )
        slopes = scratch_array("slopes", dtype, self.values * batch)
        wide = scratch_array("wide", DOUBLE, max(1, self.wide * batch))
        zeros, unused = np.zeros(self.widest, dtype), scratch_array("unused", dtype, 2 * self.widest)
        floats, ints = scratch(dtype, *self.needs[key])
        return Workspace(
            values, slopes, masks, where, floats, ints, wide, zeros, unused, self.kept, self.pruned
        )

    def stack_noise(self, steps: Sequence[Mapping[str, np.ndarray]], batch: int, dtype: Any) -> np.ndarray:
        """Noise by gate name for every step, as one array (steps, batch, gates, widest gate)."""
        noise = np.zeros((len(steps), batch, max(1, self.gates), self.widest_gate), dtype=dtype)
        if batch == 0:
            return noise
        for step, by_name in enumerate(steps):
            for gate, values in enumerate(by_name.values()):  # in the order of the network's gates
                noise[step, :, gate, : values.shape[1]] = values
        return noise


def _scratch(operations: np.recarray, kept: np.ndarray, batch: int, itemsize: int) -> tuple[int, int]:
    """Entries (floats, ints) that the kernels of the operations need for `batch` samples."""
    needs = [(1, 1)]
    for op in operations:
        channels, filters = int(op.input[0]), int(op.output[0])
        if op.kind == code.CONV:
            size, result = tuple(op.input[1:].tolist()), tuple(op.output[1:].tolist())
            fields, parts = (op.window, op.stride, op.pad, op.dilation), int(op.parts)
            window, stride, pad, dilation = (tuple(field.tolist()) for field in fields)
            inner, outer, moves = (channels, *size), (filters, *result), (stride, pad, dilation)
            needs += [
                convolve_scratch(inner, outer, window, moves, False, itemsize, parts),
                convolve_scratch(outer, inner, window, moves, True, itemsize, parts),
                weight_grad_scratch(
                    channels, filters, window, stride, pad, size, result, itemsize, dilation, parts
                ),
                sparse_scratch(kept[op.kept : op.kept_back], channels, filters, itemsize),
                sparse_scratch(kept[op.kept_back : op.kept_end], filters, channels, itemsize),
            ]
        elif op.kind == code.LINEAR:
            needs.append(tiled_linear.scratch(batch, channels, filters))
    return max(need[0] for need in needs), max(need[1] for need in needs)
