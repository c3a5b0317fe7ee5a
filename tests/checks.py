"""How close is close enough: one table, one reason per entry, and the comparisons that use it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refimpl.nn.gradcheck import SlotError

# (dtype, kind) -> largest error relative to the largest magnitude expected.
TOLERANCES = {
    # Fourth-order central differences: rounding 1e-16 over a step of about 1e-4 leaves 1e-9 to 1e-12;
    # 1e-6 is what is required of a correct gradient.
    ("float64", "gradient"): 1e-6,
    # The same formula summed in another order over at most a few thousand terms.
    ("float64", "reference"): 1e-12,
    # A whole network: the errors above, amplified. Batch normalisation of a channel that is closed nearly
    # everywhere divides by sqrt(eps) = 0.003, forward and backward: up to 1e5 times 1e-15.
    ("float64", "network"): 1e-10,
    # Sums of at most a few hundred float32 terms, rounded at each: 100 * 2**-24 at worst, with cancellation.
    ("float32", "reference"): 2e-5,
    # A whole network in float32 against float64: the layer errors above, amplified layer by layer.
    ("float32", "network"): 2e-4,
    # Numbers printed by another framework with 12 significant digits or more.
    ("float64", "golden"): 1e-11,
    ("float32", "golden"): 2e-5,
}


def relative_error(actual: np.ndarray, expected: np.ndarray, scale: float = 0.0) -> float:
    """Largest difference relative to the largest expected magnitude, or to `scale` if that is larger.

    NaN if either array has one.
    """
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"shapes differ: {actual.shape} and {expected.shape}"
    if actual.size == 0:
        return 0.0
    scale = max(scale, float(np.abs(expected).max()), np.finfo(np.float64).tiny)
    return float(np.abs(actual - expected).max() / scale)


def assert_close(
    actual: np.ndarray,
    expected: np.ndarray,
    kind: str,
    dtype: str = "float64",
    what: str = "arrays",
    scale: float = 0.0,
) -> None:
    """Fail unless `actual` is as close to `expected` as the table says (a NaN fails)."""
    error, limit = relative_error(actual, expected, scale), TOLERANCES[dtype, kind]
    assert error <= limit, f"{what} differ by {error:.3g} relative, allowed {limit:.3g} ({kind})"


def assert_gradients(errors: Sequence[SlotError]) -> None:
    """Fail if any directional error exceeds the table's (a NaN fails too)."""
    limit = TOLERANCES["float64", "gradient"]
    bad = [e for e in errors if not e.error <= limit]
    assert not bad, f"gradients differ from finite differences: {bad}"


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, what: str = "arrays") -> None:
    """Fail unless dtype, shape and every byte agree (so 0.0 and -0.0 differ, NaN equals itself)."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    same = np.ascontiguousarray(actual).tobytes() == np.ascontiguousarray(expected).tobytes()
    assert same, f"{what} differ in some bit; largest difference {np.abs(actual - expected).max()}"
