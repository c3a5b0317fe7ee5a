"""A tiny team for checks: resnet20 of few channels, at a point away from the special start."""

from __future__ import annotations

import numpy as np

from refimpl.cooperative.schemes import Weights, divide
from refimpl.cooperative.team import Team
from refimpl.nn import zoo
from refimpl.registry import SCHEMES
from refimpl.rng import SeedTree

NETWORK = zoo.network("resnet20", (), (2, 8, 8), 3, widths=[2, 3, 4])
WEIGHTS = Weights(0.7, 1.3, 0.4)


def team(scheme="cooperative", own_norms=True, complementary=False, weights=WEIGHTS):
    """A team of that scheme, and its students."""
    made, depths = SCHEMES.make(scheme, {}), divide(range(1, 3), 3, complementary)
    built = Team(NETWORK, made.parts(depths, weights), own_norms)
    return built, made.students(depths, weights, np.random.default_rng(0))


def point(built: Team, seed=1):
    """Parameters w, samples x and labels y, in float64."""
    rng = np.random.default_rng(seed)
    w = built.layout.initialise(SeedTree(seed), "float64")
    w[built.layout.theta] += 0.1 * rng.standard_normal(w[built.layout.theta].size)
    return w, rng.standard_normal((5, 2, 8, 8)), rng.integers(0, 3, 5)
