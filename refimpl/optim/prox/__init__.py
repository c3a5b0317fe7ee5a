"""Proximal operators: value, prox, distance to the subdifferential, dual norm.

A penalty object is the whole R, its weight included (`contract`): `L1(0.1)` is 0.1 ||.||_1, and
`penalty.prox(v, step, out)` writes prox_{step R}(v) = argmin_u step R(u) + ||u - v||^2/2. All are closed
forms, without inner iteration; results are computed in float64 and rounded once to the vector's dtype.

Source: mathematics.md §5; Parikh & Boyd 2014, Proximal algorithms. Verified by test.
"""

from refimpl.contracts import Penalty
from refimpl.optim.prox.balls import L1Ball, L2Ball, LinfNorm, Simplex
from refimpl.optim.prox.contract import Norm
from refimpl.optim.prox.elementwise import L1, Box, ElasticNet, LinfBall, NonNegativeL1, SquaredL2, Zero
from refimpl.optim.prox.groups import BoundedGroupLasso, GroupLasso, Groups, SparseGroupLasso
from refimpl.optim.prox.separable import Rising, Separable

__all__ = [
    "L1",
    "BoundedGroupLasso",
    "Box",
    "ElasticNet",
    "GroupLasso",
    "Groups",
    "L1Ball",
    "L2Ball",
    "LinfBall",
    "LinfNorm",
    "NonNegativeL1",
    "Norm",
    "Penalty",
    "Rising",
    "Separable",
    "Simplex",
    "SparseGroupLasso",
    "SquaredL2",
    "Zero",
]
