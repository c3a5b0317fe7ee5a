"""What a network makes of data: an objective on a fixed batch, and the task that draws batches.

`NetworkObjective` is the contract every solver sees, `objective(w, grad_out) -> float`
(architecture.md §1). Source: mathematics.md §2.4 and §3 (L_i is the mean cross-entropy over D_i, or
over the mini-batch drawn from it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.context import Context, Gating
from refimpl.nn.network import Network, draw_gate_noise
from refimpl.nn.work import Work, executed_work


class NetworkObjective:
    """Mean cross-entropy of a network on a fixed batch, as `objective(w, grad_out) -> float`.

    x (N, *input_shape), y (N,) integer labels. After a call, `masks` holds the masks it used.
    """

    def __init__(
        self, network: Network, x: np.ndarray, y: np.ndarray, context: Context | None = None
    ) -> None:
        self.network = network
        self.context = context or Context(train=("theta", "phi"))
        x, y = np.asarray(x), np.asarray(y)
        if y.dtype.kind not in "iu":
            raise InputError(
                f"NetworkObjective: labels must be whole numbers, got {y.dtype}; use y.astype(int)"
            )
        self.x = network.check_batch("NetworkObjective", x, x.dtype)
        self.y = np.require(y, np.int64, ("C", "W"))
        self.masks: Mapping[str, np.ndarray] = {}
        if self.y.shape != (x.shape[0],):
            raise InputError(f"NetworkObjective: expected {x.shape[0]} labels, got shape {self.y.shape}")
        if self.y.min() < 0 or self.y.max() >= network.classes:
            raise InputError(
                f"NetworkObjective: labels must lie in 0..{network.classes - 1}, "
                f"got {self.y.min()}..{self.y.max()}"
            )

    def __call__(self, w: np.ndarray, grad_out: np.ndarray) -> float:
        """Loss at w; writes the whole gradient."""
        logits, trace = self.network.forward(w, self.x, self.context)
        self.masks = self.network.masks(trace)
        dlogits = np.empty_like(logits)
        loss = softmax_cross_entropy(logits, self.y, dlogits)
        self.network.backward(w, dlogits, trace, grad_out)
        return float(loss)

    @property
    def work(self) -> Work:
        """What the last evaluation of value and gradient cost."""
        return executed_work(self.network, self.masks, len(self.y), self.context)

    def measure(self) -> tuple[float, float]:
        """Executed FLOPs of the last evaluation, and the share of gated channels off in it."""
        closed = sum(int((mask == 0).sum()) for mask in self.masks.values())
        gated = sum(mask.size for mask in self.masks.values())
        return self.work.total, closed / max(gated, 1)

    def value(self, w: np.ndarray) -> float:
        """Loss at w alone."""
        logits, _ = self.network.forward(w, self.x, self.context)
        return float(softmax_cross_entropy(logits, self.y, np.empty_like(logits)))


@dataclass(frozen=True)
class NetworkTask:
    """Mini-batches (or all, batch_size 0) of samples x (n, *input_shape), labels y (n,).

    Gumbel noise is drawn with the batch, from the same stream.
    """

    network: Network
    x: np.ndarray
    y: np.ndarray
    gating: Gating = Gating()
    train: tuple[str, ...] = ("theta", "phi")
    batch_size: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 0:
            raise InputError(
                f"NetworkTask: batch_size must be at least 0 (0: all data), got {self.batch_size}"
            )

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.y)

    def draw(self, rng: np.random.Generator) -> NetworkObjective:
        """The objective on the next batch, drawn without replacement."""
        if 0 < self.batch_size < self.size:
            chosen = rng.choice(self.size, self.batch_size, replace=False)
            return self.objective(self.x[chosen], self.y[chosen], rng)
        return self.objective(self.x, self.y, rng)

    def objective(self, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> NetworkObjective:
        """The objective on given samples, with fresh noise where the mode wants it."""
        noise = draw_gate_noise(self.network, len(y), rng, x.dtype) if self.gating.mode == "gumbel" else {}
        return NetworkObjective(self.network, x, y, Context(self.gating, self.train, noise))
