"""A network on a node's data, as the task federated methods and solvers see.

Source: mathematics.md §3 (L_i is the mean cross-entropy over D_i or over the mini-batch drawn from it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refimpl.errors import InputError
from refimpl.nn.context import Context, Gating
from refimpl.nn.network import Network, NetworkObjective, draw_gate_noise


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
            raise InputError(f"NetworkTask: batch_size must be at least 0 (0: all data), got {self.batch_size}")

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
