"""How close two correct implementations come: one table, with a reason for each entry.

The measure is the relative norm error ||theirs - expected|| / ||expected||; masks must be equal. In float64
every level has a limit for two implementations of the same formulae that is far above rounding errors.
In float32 a sum of n terms is off by up to n 2**-24 relative to the sum of their magnitudes, an array of
such sums in the norm by about sqrt(n) 2**-24. No entry of the table is larger than the reason beside it.

If the expected numbers are nearly zero, rounding errors are relative to the larger terms of their sums. So
||expected|| counts as at least that of an array whose root mean square is the *floor*: `FLOOR` times that of
the case's largest array of the same kind, values or gradients.
"""

from typing import NamedTuple

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.names import is_gradient

RELATIVE = {
    # Sums have at most some thousand terms and go through at most seven layers, which gives 1e-12 at worst.
    ("float64", "ops"): 1e-10,
    ("float64", "networks"): 1e-10,
    ("float64", "prox"): 1e-10,
    ("float64", "local"): 1e-10,
    ("float64", "adapt"): 1e-10,
    # A difference of gradients over 0.02 |v| loses two digits at most.
    ("float64", "baselines"): 1e-10,
    ("float64", "cooperative"): 1e-10,
    ("float64", "fewshot"): 1e-10,
    # Ten rounds feed their rounding back twenty times through gates and losses.
    ("float64", "algorithm"): 1e-8,
    # A kernel's gradient over 3 samples of 6x5 pixels has at most 90 terms: 90 * 2**-24 = 5.4e-6 (36 terms
    # forward, 3x3 windows of 4 channels; 24 in a statistic of batch normalisation).
    ("float32", "ops"): 5e-6,
    # A norm or threshold takes a sum of 14 entries, a square, a root and a quotient: 17 * 2**-24 = 1.0e-6.
    ("float32", "prox"): 1e-6,
    # At the zoo's own widths a kernel's gradient has 3 * 32 * 32 = 3072 terms: sqrt(3072) 2**-24 = 3.3e-6,
    # for each of 7 layers forward and 7 backward: 4.6e-5.
    ("float32", "networks"): 4e-5,
    # A gradient of at most 320 terms (5 samples of 8x8 pixels) through 5 layers (a gate's two are among them)
    # forward and 5 backward: 10 sqrt(320) 2**-24 = 1.1e-5, times rates below one.
    ("float32", "local"): 1e-5,
    ("float32", "adapt"): 1e-5,
    # A difference of two gradients over 0.02 |v| multiplies the rounding of one, 1e-6, by up to 100, and
    # enters with alpha beta = 0.03 in each of two steps: 6e-6.
    ("float32", "baselines"): 6e-6,
    # A divergence sums p d with d = log p - log q, and these terms cancel to about p d^2/2. Where d is 0.01,
    # the rounding of the logits, 2**-24, counts 2/d = 200 times, for each of three classes: 3.6e-5.
    ("float32", "cooperative"): 3e-5,
    # Sums of at most 64 terms (4 samples of 4x4 pixels) go through 5 layers forward and 5 backward, for two
    # inner steps and the query loss: 30 sqrt(64) 2**-24 = 1.4e-5.
    ("float32", "fewshot"): 1e-5,
    # g = lam (md - mean) subtracts nearby points, in the last rounds |g| / |md| is 0.04: 25 times the
    # rounding of the nodes' answers (two steps, five roundings: 3e-7), which each of the ten rounds adds:
    # 7.5e-5.
    ("float32", "algorithm"): 7e-5,
}
FLOOR = 1e-3


class Expected(NamedTuple):
    """The expected array of an output, and the largest relative norm error that is allowed (0: none).

    floor: the least root mean square that `value` counts as having.
    """

    value: np.ndarray
    relative: float
    floor: float


def expected_of(case: Case, outputs: Arrays) -> dict[str, Expected]:
    """A case's outputs, in the order of execution, with the tolerance of each."""
    largest = {True: 0.0, False: 0.0}
    for name, value in outputs.items():
        if value.dtype != np.bool_:
            kind = is_gradient(name)
            square = np.mean(np.square(value, dtype=np.float64)) if value.size else 0.0
            largest[kind] = max(largest[kind], float(np.sqrt(square)))
    # Two digits suffice. Where all entries are zero, the floor is that of inputs, which are about 1.
    floors = {kind: float(f"{FLOOR * (size or 1.0):.1e}") for kind, size in largest.items()}
    limits = {True: 0.0, False: RELATIVE[case.dtype, case.level]}
    return {
        name: Expected(outputs[name], limits[outputs[name].dtype == np.bool_], floors[is_gradient(name)])
        for name in case.outputs
    }
