"""Memory in which one descent leaves activations to the next, and the parameters they were computed from.

The memory belongs to the two descents alone, so no call in between can change it, on whatever thread; and
what lies in it counts only for the theta it was computed from. Source: mathematics.md §6. Derived.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.kernels.arrays import INTS
from refimpl.kernels.operation import NOTHING_KEPT, Activations, Kept
from refimpl.kernels.workspace import acquire, release


class Handover:
    """Room for the activations of `samples` samples, of which `kept` has the entries per sample."""

    def __init__(self, kept: Kept, samples: int, dtype: np.dtype[Any]) -> None:
        self.parts = (
            ("kept values", dtype, kept.values * samples),
            ("kept masks", np.dtype(np.bool_), max(1, kept.masks * samples)),
            ("kept where", INTS, max(1, kept.where * samples)),
        )
        self.memory: Activations | None = None
        self.theta: np.ndarray | None = None  # what the activations were computed from; None: they are not

    def begin(self, kept: Kept, theta: np.ndarray) -> tuple[Kept, Activations | None]:
        """What a descent from theta may take as known, and where its activations are (None: as usual).

        kept.first > 0 says that the descent wants to find activations; otherwise it leaves them.
        """
        if kept.first and (self.theta is None or not _same_bits(self.theta, theta)):
            return NOTHING_KEPT, None
        self.theta = None  # until the descent is done: one that is broken off leaves nothing
        self.memory = self.memory or Activations(*(acquire(*part) for part in self.parts))
        return kept, self.memory

    def end(self, kept: Kept, theta: np.ndarray) -> None:
        """The descent that `begin` told `kept` is done: it has left activations of theta, or used them up."""
        if not kept.first:
            self.theta = theta.copy()
        elif self.memory is not None:
            for (use, *_), array in zip(self.parts, self.memory, strict=True):
                release(use, array)
            self.memory = None


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two vectors hold the same bytes: as numbers, NaN would differ from itself."""
    return a.dtype == b.dtype and np.array_equal(a.view(np.uint8), b.view(np.uint8))
