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

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Penalty
from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.draw import Draw
from refimpl.crosscheck.golden.subject import Subject
from refimpl.errors import one_of
from refimpl.optim import prox

SIZE = 14
STEP = 0.7
GROUP_SIZES = (1, 4, 2, 3)  # four entries belong to no group

# By type: the penalty, and the numbers of its case in the order in which it takes them, after any groups.
PENALTIES: dict[str, tuple[Callable[..., Penalty], dict[str, float]]] = {
    "zero": (prox.Zero, {}),
    "squared_l2": (prox.SquaredL2, {"rho": 0.8}),
    "l1": (prox.L1, {"rho": 0.6}),
    "elastic_net": (prox.ElasticNet, {"rho_l1": 0.4, "rho_l2": 0.9}),
    "non_negative_l1": (prox.NonNegativeL1, {"rho": 0.3}),
    "box": (prox.Box, {"lower": -0.5, "upper": 0.8}),
    "l2_ball": (prox.L2Ball, {"radius": 1.5}),
    "l1_ball": (prox.L1Ball, {"radius": 2.0}),
    "linf_norm": (prox.LinfNorm, {"rho": 1.1}),
    "simplex": (prox.Simplex, {"total": 2.0}),
    "group_lasso": (prox.GroupLasso, {"rho": 0.9}),
    "bounded_group_lasso": (prox.BoundedGroupLasso, {"rho": 0.5, "radius": 0.6}),
    "sparse_group_lasso": (prox.SparseGroupLasso, {"rho": 0.4, "rho_l1": 0.3}),
}


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """One case for each penalty."""
    for kind, (_, numbers) in PENALTIES.items():
        draw = Draw(seed, kind, dtype)
        inputs = {"v": draw.normal(SIZE)}
        if "group" in kind:
            inputs["indptr"] = np.concatenate([[0], np.cumsum(GROUP_SIZES)]).astype(np.int64)
            inputs["indices"] = draw.rng.permutation(SIZE)[: sum(GROUP_SIZES)].astype(np.int64)
        yield _case(kind, kind, numbers, dtype, inputs)


def own_cases(own: Subject, seed: int, dtype: str) -> Iterator[Case]:
    """The penalties on groups, at a vector as long as phi and with the groups of a user's gated network."""
    for kind, (_, numbers) in PENALTIES.items():
        if own.gated and "group" in kind:
            indptr, indices = own.network.gate_groups
            phi, title = own.network.layout.phi, f"{own.name}-{kind}"
            v = own.draw(f"prox {title}", seed, dtype).normal(phi.stop - phi.start)
            yield _case(title, kind, numbers, dtype, {"v": v, "indptr": indptr, "indices": indices})


def _case(title: str, kind: str, numbers: dict[str, float], dtype: str, inputs: Arrays) -> Case:
    settings = {"penalty": {"type": kind, **numbers}, "step": STEP}
    return Case(f"prox/{title}", "prox", dtype, inputs, settings, ("prox", "value"))


# --- what this package computes ---------------------------------------------------------------------


def compute(case: Case) -> Arrays:
    """The prox point and the penalty's value there."""
    v = case.inputs["v"]
    out = np.empty_like(v)
    value = penalty_of(case, v.size).prox(v, case.settings["step"], out)
    return {"prox": out, "value": np.array(value)}


def penalty_of(case: Case, size: int) -> Penalty:
    """The case's penalty on vectors of `size` entries."""
    table = case.settings["penalty"]
    one_of("golden", "penalty", table["type"], tuple(PENALTIES))
    make, names = PENALTIES[table["type"]]
    numbers = [table[name] for name in names]
    # A power of the step other than 1 and a weight of all groups are mistakes, to compute what they lead to.
    power, weight, own = table.get("step_power", 1), table.get("group_weight"), {}
    if "group" in table["type"]:
        groups = prox.Groups(case.inputs["indptr"], case.inputs["indices"], size)
        numbers.insert(0, groups)
        own = {} if weight is None else {"weights": np.full(len(groups), float(weight))}
    return make(*numbers, **own) if power == 1 else _OtherStep(make(*numbers, **own), power)


class _OtherStep(NamedTuple):
    """A penalty whose prox is taken with a power of the step."""

    right: Penalty
    power: int

    def value(self, u: np.ndarray) -> float:
        return self.right.value(u)

    def prox(self, v: np.ndarray, step: float, out: np.ndarray) -> float:
        return self.right.prox(v, step**self.power, out)

    def subdifferential_distance(self, s: np.ndarray, u: np.ndarray) -> float:
        return self.right.subdifferential_distance(s, u)


KINDS = {"prox": compute}
