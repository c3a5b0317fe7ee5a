"""How close two correct implementations come: one table, one reason for each entry.

The measure is the relative norm error ||theirs - expected|| / ||expected||; masks must be equal. In float64
every level has the limit that is asked of two implementations of the same formulae, far above rounding.
In float32 a sum of n terms of one sign is off by up to n 2**-24 relative, in the norm by about its root.
"""

from __future__ import annotations

import numpy as np

RELATIVE = {
    # Sums of at most some thousand terms, through at most seven layers: 1e-12 at worst.
    ("float64", "ops"): 1e-10,
    ("float64", "networks"): 1e-10,
    ("float64", "prox"): 1e-10,
    ("float64", "local"): 1e-10,
    ("float64", "adapt"): 1e-10,
    # A difference of gradients over 0.02 |v| loses two digits at most.
    ("float64", "baselines"): 1e-10,
    # Ten rounds feed their rounding back twenty times through gates and losses.
    ("float64", "algorithm"): 1e-8,
    # At most 36 terms (3x3 windows, 4 channels; 24 in a statistic): 36 * 2**-24 = 2e-6, twice for
    # the mean that batch normalisation subtracts.
    ("float32", "ops"): 5e-6,
    # 14 entries, each rounded once; a sum for a norm or a threshold.
    ("float32", "prox"): 2e-6,
    # At most 7 layers forward and 7 backward, each with an error like that of a single operation.
    ("float32", "networks"): 7e-5,
    # A few gradient steps: gradients as above, through two or three layers, times rates below one.
    ("float32", "local"): 3e-5,
    ("float32", "adapt"): 3e-5,
    # A difference of two gradients over 0.02 |v| multiplies the rounding of one, 1e-6, by up to 100,
    # and enters with alpha beta = 0.03.
    ("float32", "baselines"): 3e-5,
    # g = lam (md - mean) subtracts nearby points, |g| / |md| is about 0.1: ten times the rounding of the
    # nodes' answers, fed back over ten rounds.
    ("float32", "algorithm"): 3e-4,
}
FLOOR = 1e-3  # where zero is expected: the limit times this, root mean square, as inputs are about 1


def relative(level: str, dtype: str, expected: np.ndarray) -> float:
    """The limit of an output; 0 where it must be equal."""
    return 0.0 if expected.dtype == np.bool_ else RELATIVE[dtype, level]
