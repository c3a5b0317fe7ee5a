"""Switches for the points in which implementations of gated networks most often differ.

The defaults follow mathematics.md. Every other value is a usual mistake. Tests set one at a time, to see that
the check of golden files finds the mistake and names it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """The choices of one implementation.

    transposed: weights are used with their two channel axes exchanged, where shapes allow it;
    relu_slope_at_zero: ReLU'(0); pool_tie: who gets the gradient where a window has equal maxima, `first`,
    `last` or `shared`; gate_tie: a channel with d = 0 is `off` or `on`; loss: `mean` or `sum` over the
    batch; mask: applied `after` or `before` the ReLU of a gated layer (the forward pass is the same, the
    gradient of a closed channel's gate is not); logits: order of a channel's two rows, `off-on` or `on-off`;
    prox: threshold `step-weight` (step times weight) or the `weight` alone; half_lambda: the local
    problem's proximal term is (lam/2)||w - v||^2, or lam ||w - v||^2 if False;
    variance: batch normalisation divides by the `biased` or the `unbiased` variance.
    """

    transposed: bool = False
    relu_slope_at_zero: float = 0.0
    pool_tie: str = "first"
    gate_tie: str = "off"
    loss: str = "mean"
    mask: str = "after"
    logits: str = "off-on"
    prox: str = "step-weight"
    half_lambda: bool = True
    variance: str = "biased"


OURS = Rules()
