"""What a network makes of data: an objective on a fixed batch.

`NetworkObjective` has the only form that solvers know: `objective(w, grad_out) -> float`.
Source: mathematics.md §2.4 and §3 (L_i is the mean cross-entropy over D_i, or over the mini-batch drawn
from it). Derived.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refimpl.kernels.loss import SoftTargets, add_losses
from refimpl.nn.context import Context
from refimpl.nn.distillation import check_soft_targets
from refimpl.nn.gate import Decision
from refimpl.nn.hessian import hessian_vector
from refimpl.nn.network import Network
from refimpl.nn.run import Trace
from refimpl.nn.work import Work, executed_work


def checked_samples(
    who: str, network: Network, x: np.ndarray, y: np.ndarray, soft: SoftTargets | None
) -> tuple[np.ndarray, np.ndarray, SoftTargets]:
    """Samples, labels and soft targets as compiled code takes them; raises `InputError` unless they fit."""
    x = network.check_batch(who, x)
    y = network.check_labels(who, y, len(x))
    return x, y, check_soft_targets(who, soft, len(x), network.classes, x.dtype)


class NetworkObjective:
    """Mean cross-entropy of a network on a fixed batch, as `objective(w, grad_out) -> float`.

    x (N, *input_shape), y (N,) integer labels; soft: what teachers add to the loss (`distillation.py`). After
    a call, `masks` holds the masks it used.
    """

    def __init__(
        self,
        network: Network,
        x: np.ndarray,
        y: np.ndarray,
        context: Context | None = None,
        soft: SoftTargets | None = None,
    ) -> None:
        self.network = network
        self.context = context or Context(train=("theta", "phi"))
        self.x, self.y, self.soft = checked_samples("NetworkObjective", network, x, y, soft)
        self.masks: Mapping[str, np.ndarray] = {}
        self._second = False  # whether the last evaluation was a Hessian-vector product

    def __call__(self, w: np.ndarray, grad_out: np.ndarray) -> float:
        """Loss at w; writes the whole gradient."""
        self.network.layout.check(f"{self.network.name}: grad_out", grad_out)
        self._second = False
        logits, trace = self.network.forward(w, self.x, self.context)
        self.masks = self.network.masks(trace)
        dlogits = np.empty_like(logits)
        loss = self._mean_loss(logits, dlogits, trace)
        self.network.backward(w, dlogits, trace, grad_out)
        return loss

    def _mean_loss(self, logits: np.ndarray, dlogits: np.ndarray, trace: Trace) -> float:
        """The loss of logits (N, K), and what shapes gates; writes the gradient of the former."""
        count = len(self.y)
        total = add_losses(0.0, logits, self.y, self.soft, np.arange(count), count, dlogits)
        for cache in trace.caches:
            total += cache.shaping if isinstance(cache, Decision) else 0.0
        return total / count

    def hessian_vector(self, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """H v (d,), H the Hessian at w in the trained parts, without forming H: see `nn/hessian.py`.

        v (d,) has the dtype of w. Gates must be `soft` (`InputError`).
        """
        product = hessian_vector(self.network, w, v, self.x, self.y, self.context, self.soft)
        self._second = True
        self.masks = {
            block.gate.name: np.ones((len(self.y), block.gate.out_channels), w.dtype)
            for block in self.network.gates  # soft: nothing was closed
        }
        return product

    @property
    def work(self) -> Work:
        """What the last evaluation (value and gradient, or a Hessian-vector product) cost."""
        return executed_work(self.network, self.masks, len(self.y), self.context, self._second)

    def measure(self) -> tuple[float, float]:
        """Executed FLOPs of the last evaluation, and the share of gated channels off in it."""
        closed = sum(int((mask == 0).sum()) for mask in self.masks.values())
        gated = sum(mask.size for mask in self.masks.values())
        return self.work.total, closed / max(gated, 1)

    def value(self, w: np.ndarray) -> float:
        """Loss at w alone."""
        logits, trace = self.network.forward(w, self.x, self.context)
        return self._mean_loss(logits, np.empty_like(logits), trace)
