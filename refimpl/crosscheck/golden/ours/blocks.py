"""Compute gated blocks and networks, and record their arrays. Source: mathematics.md §2. Derived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import NOISE, Arrays, Case
from refimpl.crosscheck.golden.describe import build
from refimpl.crosscheck.golden.ours.watch import watched
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.chain import chain_backward, chain_forward
from refimpl.nn.context import Context, Gating
from refimpl.nn.layers import Back, Flow

BOTH = ("theta", "phi")


def gated(case: Case) -> Arrays:
    """Run a chain without a loss; the backward pass begins with the given dy."""
    return _through(case, lambda y, notes: case.inputs["dy"])


def network(case: Case) -> Arrays:
    """Run a chain with cross-entropy on its logits."""

    def loss_gradient(logits: np.ndarray, notes: Arrays) -> np.ndarray:
        dlogits = np.empty_like(logits)
        notes["loss"] = np.array(softmax_cross_entropy(logits, case.inputs["labels"], dlogits))
        return dlogits

    return _through(case, loss_gradient)


def _through(case: Case, loss_gradient: Callable[[np.ndarray, Arrays], np.ndarray]) -> Arrays:
    """Run forward, then backward from the gradient that `loss_gradient` gives for the last output."""
    notes: Arrays = {}
    layers = watched(build(case.settings["layers"]), case.settings["layers"], notes)
    params, context = case.params(), context_of(case, case.named(NOISE))
    grads = {name: np.full_like(array, np.nan) for name, array in params.items()}
    y, _, links = chain_forward(layers, params, case.inputs["x"], Flow(context))
    dx = chain_backward(layers, loss_gradient(y, notes), links, params, grads, Back(context))
    if dx is not None:
        notes["grad.x"] = dx
    return notes | {f"grad.{name}": array for name, array in grads.items()}


def context_of(case: Case, noise: Arrays, train: tuple[str, ...] = BOTH) -> Context:
    """The gating of the case, with the given noise."""
    settings: dict[str, Any] = case.settings["gating"]
    return Context(Gating(**settings), train, noise)
