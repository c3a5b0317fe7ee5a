"""Families of local losses whose constants are known in closed form, each for several different nodes.

A `Problem` is what a theory check needs: one loss for each node, with the constants that the loss was built
to have, and a penalty. `spread` says how much the nodes differ; with spread 0 all nodes are the same.
Everything is float64 and drawn from the generator given.

Source: mathematics.md §8 (families and their constants). Derived; verified by test.
"""

from refimpl.theory.problems.contract import ClosedForm, Loss, Problem
from refimpl.theory.problems.cosines import Cosines, cosines
from refimpl.theory.problems.logistic import Logistic, logistic_regression
from refimpl.theory.problems.network import NetworkLoss, soft_network
from refimpl.theory.problems.quadratic import (
    Quadratic,
    attained,
    envelope_minimiser,
    quadratics,
    sparse_least_squares,
)

__all__ = [
    "ClosedForm",
    "Cosines",
    "Logistic",
    "Loss",
    "NetworkLoss",
    "Problem",
    "Quadratic",
    "attained",
    "cosines",
    "envelope_minimiser",
    "logistic_regression",
    "quadratics",
    "soft_network",
    "sparse_least_squares",
]
