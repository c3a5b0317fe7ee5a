"""Single operations of golden files (`golden/levels/ops.py`, `prox.py`), computed by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from refimpl.crosscheck.bridges.torch import ops
from refimpl.crosscheck.bridges.torch.prox import groups_from, penalty_of
from refimpl.crosscheck.bridges.torch.rules import Rules
from refimpl.crosscheck.bridges.torch.weights import Tensors

Settings = Mapping[str, Any]
Operation = Callable[[Tensors, Settings, Rules], Tensor]


def conv2d(given: Tensors, settings: Settings, rules: Rules) -> Tensor:
    """Mask * (conv + bias)."""
    stride, padding = tuple(settings["stride"]), tuple(settings["padding"])
    y = ops.conv(given["x"], given["weight"], given.get("bias"), stride, padding, rules)
    return y * ops.over_pixels(given["mask"].to(y.dtype), y) if "mask" in given else y


def linear(given: Tensors, settings: Settings, rules: Rules) -> Tensor:
    """x W^T + bias."""
    return ops.linear(given["x"], given["weight"], given["bias"], rules)


def batch_norm2d(given: Tensors, settings: Settings, rules: Rules) -> Tensor:
    """Normalised by the batch's statistics."""
    return ops.batch_norm(given["x"], given["weight"], given["bias"], settings["eps"], rules)


def max_pool2d(given: Tensors, settings: Settings, rules: Rules) -> Tensor:
    """Largest of each window."""
    return ops.max_pool(given["x"], tuple(settings["kernel"]), tuple(settings["stride"]), rules)


def avg_pool2d(given: Tensors, settings: Settings, rules: Rules) -> Tensor:
    """Mean of each window."""
    return ops.average_pool(given["x"], tuple(settings["kernel"]), tuple(settings["stride"]))


def global_avg_pool2d(given: Tensors, settings: Settings, rules: Rules) -> Tensor:
    """Mean of each channel."""
    return ops.summary(given["x"])


def cross_entropy(given: Tensors, settings: Settings, rules: Rules) -> Tensor:
    """The loss."""
    return ops.cross_entropy(given["logits"], given["labels"], rules)


def pointwise(kind: str) -> Operation:
    """An activation function."""
    return lambda given, settings, rules: ops.ACTIVATIONS[kind](given["x"], rules)


OPERATIONS: dict[str, Operation] = {
    "conv2d": conv2d,
    "linear": linear,
    "batch_norm2d": batch_norm2d,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "global_avg_pool2d": global_avg_pool2d,
    "cross_entropy": cross_entropy,
    **{kind: pointwise(kind) for kind in ops.ACTIVATIONS},
}


def run_operation(kind: str, given: Tensors, settings: Settings, rules: Rules) -> Tensors:
    """The result, as `y` or `loss`, and `grad.<input>` for every input that can have one.

    A loss is differentiated itself, other results times the cotangent `dy`.
    """
    inputs = {
        name: value.requires_grad_() if value.is_floating_point() and name != "dy" else value
        for name, value in given.items()
    }
    result = OPERATIONS[kind](inputs, settings, rules)
    wanted = {name: value for name, value in inputs.items() if value.requires_grad}
    gradients = torch.autograd.grad(result, list(wanted.values()), given.get("dy"))
    named = {f"grad.{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}
    return {"loss" if "labels" in given else "y": result, **named}


def run_prox(given: Tensors, settings: Settings, rules: Rules) -> Tensors:
    """`prox` and the penalty's `value` there."""
    groups = groups_from(given["indptr"], given["indices"]) if "indptr" in given else ()
    penalty = penalty_of(settings["penalty"], groups, rules)
    u = penalty.rounded_prox(given["v"], settings["step"])
    return {"prox": u, "value": penalty.value(u.double()).to(u.dtype)}
