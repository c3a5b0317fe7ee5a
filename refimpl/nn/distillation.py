"""Soft targets: a network learns from labels and from the logits of other networks, its teachers.

    loss = labels * cross-entropy + sum_m weight_m T^2 KL(softmax(t_m/T) || softmax(z/T)), mean over the batch

with logits z, a teacher's logits t_m and the temperature T. Teachers get no gradient.

Source: mathematics.md §2.4b; Hinton et al. 2015, §2. Derived: gradient and Hessian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels.arrays import FLOATS, tidy
from refimpl.kernels.loss import SoftTargets, softmax


def soft_targets(
    logits: Sequence[np.ndarray] | np.ndarray,
    weights: Sequence[float],
    temperature: float = 1.0,
    labels: float = 1.0,
) -> SoftTargets:
    """The logits (N, K) of several teachers for the same N samples, and the weight of each one's divergence.

    labels: the weight of the cross-entropy; 0 to learn from the teachers alone. Raises `InputError` unless
    all arrays have one shape and dtype, weights are finite and not negative, and the temperature is positive.
    """
    arrays = [np.asarray(array) for array in logits]
    shapes, dtypes = {array.shape for array in arrays}, {array.dtype for array in arrays}
    if len(shapes) != 1 or len(dtypes) != 1 or len(arrays[0].shape) != 2 or arrays[0].dtype not in FLOATS:
        got = ", ".join(f"{array.shape} {array.dtype}" for array in arrays) or "none"
        raise InputError(f"soft_targets: expected logits (N, K) of one shape, float32 or float64, got {got}")
    numbers = np.array([*weights, labels], dtype=np.float64)
    if len(numbers) != len(arrays) + 1 or not np.isfinite(numbers).all() or numbers.min() < 0:
        raise InputError(
            f"soft_targets: expected a finite weight >= 0 for each of {len(arrays)} teachers and for the "
            f"labels, got {numbers[:-1].tolist()} and {labels}"
        )
    if not 0 < temperature < np.inf:
        raise InputError(f"soft_targets: expected a positive temperature, got {temperature}")
    return SoftTargets(tidy(np.stack(arrays)), numbers[:-1], float(temperature), float(labels))


def check_soft_targets(
    who: str, soft: SoftTargets | None, samples: int, classes: int, dtype: Any
) -> SoftTargets:
    """The soft targets, or those of no teacher for None; `InputError` unless they fit samples and dtype."""
    if soft is None or not soft.weights.size:
        return SoftTargets(np.zeros((0, 0, classes), dtype), np.zeros(0), 1.0, 1.0)
    found = soft.logits
    if found.shape[1:] != (samples, classes) or found.dtype != dtype:
        raise InputError(
            f"{who}: expected teachers' logits of shape {(samples, classes)} and {np.dtype(dtype)}, got "
            f"{found.shape[1:]} and {found.dtype}"
        )
    return soft


def softened_rate(logits: np.ndarray, logits_dot: np.ndarray, soft: SoftTargets) -> np.ndarray:
    """Rate of the divergences' gradient, sum_m weight_m T (q - p_m)/N, as the logits (N, K) move.

    It is sum_m weight_m q (logits_dot - <q, logits_dot>)/N with q = softmax(logits/T): teachers do not move.
    Source: mathematics.md §2.4b. Derived.
    """
    q = np.empty_like(logits)
    softmax(logits, soft.temperature, q)
    mean = (q * logits_dot).sum(axis=1, keepdims=True)
    return logits.dtype.type(soft.weights.sum() / len(logits)) * q * (logits_dot - mean)
