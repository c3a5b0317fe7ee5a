"""Where values meet or part: the layers that plans put between those a network declares.

Source: mathematics.md §2.1 (product with the mask), §2.3b; He et al. 2016, eq. 1 (sum). Derived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refimpl.kernels import activation
from refimpl.kernels.arrays import check_like, tidy, tidy_float
from refimpl.nn.layers import Arrays, Back, Flow, Mask, Plain
from refimpl.nn.pointwise import as_maps


@dataclass(frozen=True)
class Fork(Plain):
    """y = x, for a second reader of x."""

    keeps_zero: ClassVar[bool] = True

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, None]:
        """The input itself."""
        return x, flow.reads, None

    def backward(self, dy: np.ndarray, cache: None, params: Arrays, grads: Arrays, back: Back) -> np.ndarray:
        """What is to be added to the gradient that the first reader gave."""
        return dy


@dataclass(frozen=True)
class Add(Plain):
    """y = a + b, of two values of one shape; all its channels are open."""

    def forward(
        self, params: Arrays, x: tuple[np.ndarray, np.ndarray], flow: Flow
    ) -> tuple[np.ndarray, Mask, np.ndarray]:
        """The sum."""
        y = x[0] + x[1]
        return y, None, y

    def backward(
        self, dy: np.ndarray, cache: np.ndarray, params: Arrays, grads: Arrays, back: Back
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both summands get the gradient of the sum."""
        dy = tidy_float("Add", "dy", dy)
        check_like("Add", "dy", dy, cache)
        return dy, dy


@dataclass(frozen=True)
class Product(Plain):
    """y = M * z for each channel; M is a gate's decision, and what it cannot decide is NaN.

    Where closed channels of z were skipped, z is already the product and is changed in place.
    """

    name: str
    keeps_zero: ClassVar[bool] = True

    def forward(
        self, params: Arrays, x: tuple[np.ndarray, Any], flow: Flow
    ) -> tuple[np.ndarray, Mask, tuple[np.ndarray, np.ndarray]]:
        """The product, and what its gradient is computed from."""
        z, decision = x
        y = z if flow.reads is not None else scaled(z, decision.mask)
        activation.spread_nan(decision.relaxed, as_maps(y))
        return y, flow.writes, (z, decision.mask)

    def backward(
        self,
        dy: np.ndarray,
        cache: tuple[np.ndarray, np.ndarray],
        params: Arrays,
        grads: Arrays,
        back: Back,
    ) -> tuple[np.ndarray, np.ndarray]:
        """dz = M dy (a 0/1 mask is left to the layers that read dz) and dM = sum of dy z over pixels."""
        z, mask = cache
        dy = tidy(dy)
        check_like(self.name, "dy", dy, z)
        return (dy if mask.dtype == np.bool_ else scaled(dy, mask)), products(dy, z)


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum over pixels of a * b, (N,C)."""
    out = np.empty(a.shape[:2], dtype=a.dtype)
    activation.channel_products(as_maps(a), as_maps(b), out)
    return out


def scaled(maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """mask[n,c] * maps[n,c,...] in the dtype of the maps."""
    out = np.empty_like(maps)
    activation.scale_channels(as_maps(maps), mask.astype(maps.dtype), as_maps(out))
    return out
