"""Random operands of a convolution, for the tests of several kernels."""

from __future__ import annotations

import numpy as np

from refimpl.kernels import conv


def operands(
    rng: np.random.Generator, shape: tuple, samples: int, dtype: str, x_mask: np.ndarray, dy_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal numbers for x, the weight and dy; zero in closed channels. An empty mask closes none.

    shape: channels, filters, size, kernel, stride, pad, dilation.
    """
    channels, filters, size, window, *moves = shape

    def drawn(*lengths: int) -> np.ndarray:
        return rng.standard_normal(lengths).astype(dtype)

    def closed(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return values * mask[:, :, None, None] if mask.size else values

    x, weight = closed(drawn(samples, channels, *size), x_mask), drawn(filters, channels, *window)
    return x, weight, closed(drawn(samples, filters, *conv.output_size(size, window, *moves)), dy_mask)
