"""A small smooth gated network in `soft` mode, whose constants can only be estimated.

Source: mathematics.md §8 (last family) and §2.3 (soft gates). The constants are estimates, not proven.
"""

import numpy as np

from refimpl.nn.context import Context, Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import Linear
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pointwise import Softplus
from refimpl.rng import SeedTree
from refimpl.theory.measured import curvature_range
from refimpl.theory.problems import Problem, Vector, WithConstants, check_family

FEATURES, HIDDEN, CLASSES, GATE_HIDDEN = 4, 3, 2, 2
SAMPLES = 20  # of a node
SPREAD = 0.5  # how far the directions of a node's classes are from the common ones
RADIUS = 0.3  # around w, within which the network is smooth
PROBES = 6  # points at which curvature is sampled
LANCZOS_STEPS = 20
MARGIN = 1.5  # the estimate is the largest curvature found, times this
ACTIVE_BIAS = 3.0  # of the gate's rectified units: far from their kink for inputs of norm 1


def soft_network(rng: np.random.Generator, nodes: int = 3) -> tuple[Problem, Vector]:
    """The problem, and the point w (51,) around which it is smooth; the gate is on the hidden units.

    Each node has two classes of points of norm 1 around directions of its own. L is estimated near w
    (`estimate_curvature`); nothing is proven. The gate's own hidden units are rectified, so the loss has
    kinks. Their biases keep all units active within `RADIUS` of w, so that no kink is met there.
    """
    check_family("soft_network", nodes, SPREAD)
    gate = ChannelGate("fc1.gate", FEATURES, HIDDEN, hidden=GATE_HIDDEN)
    hidden = Gated(gate, (Linear("fc1", FEATURES, HIDDEN), Softplus()))
    network = Network("soft", (hidden, Linear("fc2", HIDDEN, CLASSES, gain=1.0)), (FEATURES,))
    w = network.layout.initialise(SeedTree(int(rng.integers(2**31))), "float64")
    views = network.layout.views(w)
    views["fc1.gate.fc1.weight"] *= 0.5
    views["fc1.gate.fc1.bias"][:] = ACTIVE_BIAS
    towards = rng.standard_normal((CLASSES, FEATURES))
    losses = []
    for _ in range(nodes):
        labels = rng.integers(CLASSES, size=SAMPLES)
        moved = towards + SPREAD * rng.standard_normal(towards.shape)
        x = moved[labels] + 0.5 * rng.standard_normal((SAMPLES, FEATURES))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        soft = Context(Gating("soft"), train=("theta", "phi"))
        objective = NetworkObjective(network, x, labels, soft)
        found = estimate_curvature(objective, w, rng)
        losses.append(WithConstants(objective, found, found))  # it may be as concave as it is convex
    return Problem("soft network", tuple(losses), w.size), w


def estimate_curvature(objective: NetworkObjective, w: Vector, rng: np.random.Generator) -> float:
    """1.5 times the largest |eigenvalue| of the Hessian found at a few points within `RADIUS` of w."""
    largest = 0.0
    for _ in range(PROBES):
        offset = rng.standard_normal(w.size)
        at = w + RADIUS * rng.random() * offset / np.linalg.norm(offset)
        low, high = curvature_range(objective, at, rng, LANCZOS_STEPS)
        largest = max(largest, -low, high)
    return MARGIN * largest
