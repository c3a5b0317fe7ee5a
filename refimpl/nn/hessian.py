"""Hessian-vector products of networks, forward-over-reverse, by hand.

One plain forward pass; one pass forward along the direction; one pass backward that carries every
gradient together with its rate. Both passes follow the plan of the network; the rules of single layers are in
`tangent.py`.

Source: Pearlmutter 1994; mathematics.md §10 (exact MAML), §2.3 (soft gates). Derived.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import activation
from refimpl.kernels.loss import SoftTargets, add_losses, softmax_cross_entropy
from refimpl.nn.context import Context
from refimpl.nn.distillation import softened_rate
from refimpl.nn.layers import rule_of
from refimpl.nn.network import Network
from refimpl.nn.plan import Step
from refimpl.nn.run import Trace, carried_back
from refimpl.nn.tangent import RULES, Direction, Dual, Rate

LACKING = "hessian_vector: no second derivatives of a {}; add its rule to nn/tangent.py"


def hessian_vector(
    network: Network,
    w: np.ndarray,
    v: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    context: Context,
    soft: SoftTargets | None = None,
) -> np.ndarray:
    """H v (d,), H the Hessian of the mean cross-entropy on (x, y) in the trained parts of w.

    soft: what teachers add to the loss. Entries of v outside the trained parts, or pruned, are not read; H v
    is zero there. Gates must be `soft`: raises `InputError` for others, and for vectors that are not alike.
    Where ReLU or max-pooling switch, H is that of the branch taken.
    """
    network.layout.check_pair("hessian_vector", w, v, "v")
    _check_gates(network, context)
    x = network.check_batch("hessian_vector", x, w.dtype)
    y = network.check_labels("hessian_vector", y, len(x))
    product, layout = np.zeros_like(w), network.layout
    trained = frozenset(slot.name for slot in layout.slots if slot.parameter.part in context.train)
    if not trained:
        return product
    at, towards = layout.views(context.pruned(w)), layout.views(context.pruned(v))
    along = Direction(at, towards, layout.views(product), trained, context.gating, {})
    logits, trace = network.forward(w, x, context)
    rates = _forward(trace, along)
    logits_dot = rates[len(trace.steps)]
    assert logits_dot is not None  # some layer is trained
    dlogits = np.empty_like(logits)
    softmax_cross_entropy.kernel(logits, y, dlogits)
    rate = loss_rate(dlogits, logits_dot, y)
    if soft is not None and (soft.weights.size or soft.labels != 1):
        rate = rate.dtype.type(soft.labels) * rate + softened_rate(logits, logits_dot, soft)
        add_losses(0.0, logits, y, soft, np.arange(len(y)), len(y), dlogits)
    dual = Dual(dlogits, rate)
    _backward(trace, dual, rates, along)
    return context.pruned(product)


def _check_gates(network: Network, context: Context) -> None:
    if network.gates and (context.gating.mode != "soft" or context.anchors):
        raise InputError(
            f"hessian_vector: gates decide by mode {context.gating.mode!r}, whose gradient is a surrogate "
            "without a Hessian; use Gating('soft') or a network without gates"
        )
    if context.shapes_gates:
        raise InputError("hessian_vector: batch-shaping has no second derivatives; set its weight to 0")


def loss_rate(dlogits: np.ndarray, logits_dot: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rate of dlogits = (p - onehot)/N: p (logits_dot - <p, logits_dot>)/N for each sample.

    Source: mathematics.md §2.4. Derived.
    """
    samples = len(labels)
    p = dlogits * dlogits.dtype.type(samples)
    p[np.arange(samples), labels] += 1
    mean = np.empty((samples, 1), dtype=p.dtype)
    activation.channel_products(p[:, None], logits_dot[:, None], mean)
    return p * (logits_dot - mean) / p.dtype.type(samples)


def _forward(trace: Trace, along: Direction) -> dict[int, Rate]:
    """The rate at which each value of the plan moves."""
    rates: dict[int, Rate] = {0: None}
    for step, cache in zip(trace.steps, trace.caches, strict=True):
        rule, moves = rule_of(step.layer, RULES, LACKING), step.need_dw or any(step.moves)
        rates[step.output] = rule.forward(step.layer, cache, step.given(rates), along) if moves else None
    return rates


def _backward(trace: Trace, dual: Dual, rates: dict[int, Rate], along: Direction) -> None:
    """Carry the loss's gradient and its rate back, down to the lowest step that moves."""

    def backward(step: Step, above: Dual, cache: Any) -> Any:
        rule, needed = rule_of(step.layer, RULES, LACKING), any(step.needs)
        return rule.backward(step.layer, above, cache, step.given(rates), along, needed)

    carried_back(trace, dual, backward)
