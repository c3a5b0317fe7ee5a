"""Proximal operators by the name of their penalty. Source: mathematics.md §5. Derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.errors import one_of
from refimpl.optim import prox as operators

Table = Mapping[str, Any]

_SIMPLE: dict[str, Callable[[Table], operators.Penalty]] = {
    "zero": lambda p: operators.Zero(),
    "squared_l2": lambda p: operators.SquaredL2(p["rho"]),
    "l1": lambda p: operators.L1(p["rho"]),
    "elastic_net": lambda p: operators.ElasticNet(p["rho_l1"], p["rho_l2"]),
    "non_negative_l1": lambda p: operators.NonNegativeL1(p["rho"]),
    "box": lambda p: operators.Box(p["lower"], p["upper"]),
    "l2_ball": lambda p: operators.L2Ball(p["radius"]),
    "l1_ball": lambda p: operators.L1Ball(p["radius"]),
    "linf_norm": lambda p: operators.LinfNorm(p["rho"]),
    "simplex": lambda p: operators.Simplex(p["total"]),
}
_GROUPED: dict[str, Callable[[operators.Groups, Table], operators.Penalty]] = {
    "group_lasso": lambda groups, p: operators.GroupLasso(groups, p["rho"]),
    "bounded_group_lasso": lambda groups, p: operators.BoundedGroupLasso(groups, p["rho"], p["radius"]),
    "sparse_group_lasso": lambda groups, p: operators.SparseGroupLasso(groups, p["rho"], p["rho_l1"]),
}


def penalty_of(case: Case, size: int) -> operators.Penalty:
    """The case's penalty on vectors of `size` entries."""
    table = case.settings["penalty"]
    one_of("golden", "penalty", table["type"], (*_SIMPLE, *_GROUPED))
    power = table.get("step_power", 1)  # another power is a deliberate mistake, to compute what it leads to
    own = _named(case, table, size)
    return own if power == 1 else _OtherStep(own, power)


def _named(case: Case, table: Table, size: int) -> operators.Penalty:
    if table["type"] in _SIMPLE:
        return _SIMPLE[table["type"]](table)
    groups = operators.Groups(case.inputs["indptr"], case.inputs["indices"], size)
    return _GROUPED[table["type"]](groups, table)


class _OtherStep(NamedTuple):
    """A penalty whose prox is taken with a power of the step."""

    right: operators.Penalty
    power: int

    def value(self, u: np.ndarray) -> float:
        return self.right.value(u)

    def prox(self, v: np.ndarray, step: float, out: np.ndarray) -> float:
        return self.right.prox(v, step**self.power, out)

    def subdifferential_distance(self, s: np.ndarray, u: np.ndarray) -> float:
        return self.right.subdifferential_distance(s, u)


def prox(case: Case) -> Arrays:
    """The prox point and the penalty's value there."""
    v = case.inputs["v"]
    out = np.empty_like(v)
    value = penalty_of(case, v.size).prox(v, case.settings["step"], out)
    return {"prox": out, "value": np.array(value)}
