"""Softmax cross-entropy and its gradient. Source: mathematics.md §2.4."""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import elementary
from refimpl.kernels.arrays import INDICES
from refimpl.kernels.checked import checked, given, written
from refimpl.kernels.jit import kernel, large_kernel


def _check_labels(who: str, sizes: dict[str, int], arguments: dict[str, Any]) -> None:
    """Raise InputError unless there are samples, and labels are classes."""
    labels, classes = arguments["labels"], sizes["K"]
    if not labels.size:
        raise InputError(f"{who}: expected at least one sample")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"{who}: labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}")


@checked(_check_labels, logits=given("NK"), labels=given("N", INDICES), dlogits=written("NK"))
@kernel
def softmax_cross_entropy(logits, labels, dlogits):
    """Mean over the batch of -log softmax(logits)[label], with the log-sum-exp shift, in float64.

    logits (N, classes), labels (N,) integers; writes dlogits = (softmax - onehot)/N.
    """
    return add_cross_entropy(0.0, logits, labels, labels.size, dlogits) / labels.size


@checked(_check_labels, logits=given("NK"), labels=given("N", INDICES), dlogits=written("NK"))
@large_kernel
def add_cross_entropy(total, logits, labels, count, dlogits):
    """total + the losses of a part of a batch of `count` samples; dlogits is divided by `count`."""
    n_samples, classes = logits.shape
    powers = np.empty(classes, dtype=np.float64)
    for n in range(n_samples):
        top = np.float64(logits[n, 0])
        for c in range(1, classes):
            top = max(top, np.float64(logits[n, c]))
        for c in range(classes):  # by itself this loop runs on vectors
            powers[c] = elementary.exp(np.float64(logits[n, c]) - top)
        normaliser = 0.0
        for c in range(classes):
            normaliser += powers[c]
        for c in range(classes):
            dlogits[n, c] = (powers[c] / normaliser - (1.0 if labels[n] == c else 0.0)) / count
        total += elementary.log(normaliser) - (np.float64(logits[n, labels[n]]) - top)
    return total
