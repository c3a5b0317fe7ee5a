"""Per-FedAvg, Hessian-free variant: the Hessian's product with v as a difference of two gradients.

On quadratics the difference is exact for any delta. On smooth losses its error is O(delta^2), plus rounding
of order 1/delta. If a kink of ReLU or max-pooling lies between w + delta v and w - delta v, the gradient
jumps, and the jump is divided by delta as well. So no delta is small enough for all batches: a smaller one
meets fewer kinks, but has more rounding. `python -m bench.delta` measures both against exact products. With
delta 1e-4 on batches of 100, the error exceeds the term itself in 9 % of the steps, in either dtype.

`DELTA` was chosen by these measurements. In float32, 1e-5 has a median error of 2 %, and an error above the
term itself in 2.5 % of the steps; with 1e-6 these would be 17 % and 1 %. In float64, 1e-7 has a median
error of 5e-9, and none was above the term. So the second-order term is rough in float32; it is right in
float64, and with `maml`, which has exact products.

Source: mathematics.md §10; Fallah et al. 2020, section 5 (HF-MAML).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.contracts import Objective
from refimpl.federated.local import Tally
from refimpl.federated.methods.meta import LookingAhead, gradient_at
from refimpl.registry import METHODS, key

DELTA = {"float32": 1e-5, "float64": 1e-7}  # by dtype, if none is asked for


@METHODS.register("perfedavg-hf")
@dataclass(frozen=True, kw_only=True)
class PerFedAvgHF(LookingAhead):
    """w~ = w - alpha g(w; D); v = g(w~; D'); w <- w - eta (v - alpha d), with d as below.

    d = [g(w + delta v; D'') - g(w - delta v; D'')]/(2 delta), D, D', D'' independent batches.
    """

    delta: float = key(
        0.0, "step of the difference of gradients (0: 1e-5 in float32, 1e-7 in float64)", at_least=0.0
    )

    @property
    def batches(self) -> int:
        """The inner batch, the outer one, and the one of the difference."""
        return 3

    def meta_gradient(
        self, w: np.ndarray, batches: Sequence[Objective], tally: Tally
    ) -> tuple[float, np.ndarray]:
        """The loss after the inner step, and v - alpha d."""
        *first, curve = batches
        loss, v = super().meta_gradient(w, first, tally)
        d = difference(curve, w, v, self.delta or DELTA[w.dtype.name], tally)
        return loss, v - w.dtype.type(self.alpha) * d


def difference(objective: Objective, w: np.ndarray, v: np.ndarray, delta: float, tally: Tally) -> np.ndarray:
    """[g(w + delta v) - g(w - delta v)]/(2 delta), which stands for the Hessian's product with v."""
    scalar = w.dtype.type
    step = scalar(delta) * v
    _, above = gradient_at(objective, w + step, tally)
    _, below = gradient_at(objective, w - step, tally)
    return (above - below) / scalar(2 * delta)
