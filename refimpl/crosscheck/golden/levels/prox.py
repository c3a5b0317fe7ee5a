"""Level `prox`: proximal operators.

Kind `prox`. Inputs: v (d,); for groups indptr (G+1,) and indices: group g holds the entries
indices[indptr[g]:indptr[g+1]] and weighs sqrt of its size. Settings: penalty, a table with `type` and the
numbers below, and step. Outputs: prox = argmin_u step R(u) + ||u - v||^2/2, and value = R(prox).

| type | R(u) |
| --- | --- |
| zero | 0 |
| squared_l2 | rho/2 sum u^2 |
| l1 | rho sum abs(u) |
| elastic_net | rho_l1 sum abs(u) + rho_l2/2 sum u^2 |
| non_negative_l1 | rho sum u, u >= 0 |
| box | 0 for lower <= u <= upper |
| l2_ball, l1_ball | 0 for norm at most radius |
| linf_norm | rho max abs(u) |
| simplex | 0 for u >= 0 with sum total |
| group_lasso | rho sum_g sqrt(size_g) norm(u_g) |
| bounded_group_lasso | the same, and every norm(u_g) <= radius |
| sparse_group_lasso | the same as group_lasso, plus rho_l1 sum abs(u) |

Source: mathematics.md §5. Derived.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import Case
from refimpl.crosscheck.golden.draw import Draw

SIZE = 14
STEP = 0.7
GROUP_SIZES = (1, 4, 2, 3)  # four entries belong to no group

PENALTIES: tuple[dict[str, Any], ...] = (
    {"type": "zero"},
    {"type": "squared_l2", "rho": 0.8},
    {"type": "l1", "rho": 0.6},
    {"type": "elastic_net", "rho_l1": 0.4, "rho_l2": 0.9},
    {"type": "non_negative_l1", "rho": 0.3},
    {"type": "box", "lower": -0.5, "upper": 0.8},
    {"type": "l2_ball", "radius": 1.5},
    {"type": "l1_ball", "radius": 2.0},
    {"type": "linf_norm", "rho": 1.1},
    {"type": "simplex", "total": 2.0},
    {"type": "group_lasso", "rho": 0.9},
    {"type": "bounded_group_lasso", "rho": 0.5, "radius": 0.6},
    {"type": "sparse_group_lasso", "rho": 0.4, "rho_l1": 0.3},
)


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """One case for each penalty."""
    for penalty in PENALTIES:
        draw = Draw(seed, penalty["type"], dtype)
        inputs = {"v": draw.normal(SIZE)}
        if "group" in penalty["type"]:
            inputs["indptr"] = np.concatenate([[0], np.cumsum(GROUP_SIZES)]).astype(np.int64)
            inputs["indices"] = draw.rng.permutation(SIZE)[: sum(GROUP_SIZES)].astype(np.int64)
        settings = {"penalty": penalty, "step": STEP}
        yield Case(f"prox/{penalty['type']}", "prox", dtype, inputs, settings, ("prox", "value"))
