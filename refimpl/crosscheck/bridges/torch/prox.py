"""Proximal operators on tensors: prox_{step R}(v) = argmin_u R(u) + ||u - v||^2/(2 step).

Each is written from its optimality condition or, where possible, from another identity than the package uses:
the l1 ball by bisection on its threshold, the l-infinity norm by Moreau's decomposition, the
simplex through the dual variable of its sum. All work in float64 and round once.
A penalty is R with its weight, as a prox and a value, which is needed only where R is finite.

Source: mathematics.md §5; Parikh & Boyd 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refimpl.crosscheck.bridges.torch.rules import OURS, Rules
from refimpl.errors import InputError, one_of

Groups = Sequence[Tensor]  # indices of each group, int64


class Penalty(NamedTuple):
    """R as two functions on float64 tensors: prox(v, step), and value(u) where it is finite."""

    prox: Callable[[Tensor, float], Tensor]
    value: Callable[[Tensor], Tensor]

    def rounded_prox(self, v: Tensor, step: float) -> Tensor:
        """The prox of v in any precision, computed in float64."""
        return self.prox(v.double(), step).to(v.dtype)


def threshold(step: float, weight: float, rules: Rules) -> float:
    """What a soft threshold subtracts: step times weight."""
    return step * weight if rules.prox == "step-weight" else weight


def nothing(u: Tensor) -> Tensor:
    """The value of an indicator on its set, and of the zero penalty."""
    return u.new_zeros(())


def soft(v: Tensor, level: float) -> Tensor:
    """v moved towards 0 by `level`, and not beyond."""
    return v.sign() * (v.abs() - level).clamp(min=0)


def zero(rules: Rules) -> Penalty:
    """R = 0."""
    return Penalty(lambda v, step: v, nothing)


def squared_l2(rules: Rules, rho: float) -> Penalty:
    """R = rho/2 ||u||^2: 0 = rho u + (u - v)/step."""
    return Penalty(lambda v, step: v / (1 + step * rho), lambda u: rho / 2 * u.square().sum())


def l1(rules: Rules, rho: float) -> Penalty:
    """R = rho ||u||_1."""
    return Penalty(lambda v, step: soft(v, threshold(step, rho, rules)), lambda u: rho * u.abs().sum())


def elastic_net(rules: Rules, rho_l1: float, rho_l2: float) -> Penalty:
    """R = rho_l1 ||u||_1 + rho_l2/2 ||u||^2."""
    return Penalty(
        lambda v, step: soft(v, threshold(step, rho_l1, rules)) / (1 + step * rho_l2),
        lambda u: rho_l1 * u.abs().sum() + rho_l2 / 2 * u.square().sum(),
    )


def non_negative_l1(rules: Rules, rho: float) -> Penalty:
    """R = rho sum(u) for u >= 0."""
    return Penalty(lambda v, step: (v - threshold(step, rho, rules)).clamp(min=0), lambda u: rho * u.sum())


def box(rules: Rules, lower: float, upper: float) -> Penalty:
    """Indicator of lower <= u <= upper, entry by entry."""
    return Penalty(lambda v, step: v.clamp(lower, upper), nothing)


def l2_ball(rules: Rules, radius: float) -> Penalty:
    """Indicator of ||u|| <= radius."""
    return Penalty(lambda v, step: v * (radius / v.norm()).clamp(max=1), nothing)


def bisect(too_low: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest number found not too low, between two that bracket it."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return high


def onto_l1_ball(v: Tensor, radius: float) -> Tensor:
    """Projection on ||u||_1 <= radius: the soft threshold whose result has that norm."""
    if float(v.abs().sum()) <= radius:
        return v
    level = bisect(lambda t: float(soft(v, t).abs().sum()) > radius, 0.0, float(v.abs().max()))
    return soft(v, level)


def l1_ball(rules: Rules, radius: float) -> Penalty:
    """Indicator of ||u||_1 <= radius."""
    return Penalty(lambda v, step: onto_l1_ball(v, radius), nothing)


def linf_norm(rules: Rules, rho: float) -> Penalty:
    """R = rho ||u||_inf: v minus its projection on the l1 ball of radius step rho (Moreau)."""
    return Penalty(
        lambda v, step: v - onto_l1_ball(v, threshold(step, rho, rules)), lambda u: rho * u.abs().max()
    )


def simplex(rules: Rules, total: float) -> Penalty:
    """Indicator of u >= 0, sum(u) = total: u = max(v - t, 0) with the t that makes the sum right."""

    def project(v: Tensor, step: float) -> Tensor:
        top = float(v.max())
        level = bisect(lambda t: float((v - t).clamp(min=0).sum()) > total, top - total, top)
        return (v - level).clamp(min=0)

    return Penalty(project, nothing)


def group_lasso(
    rules: Rules, groups: Groups, rho: float, rho_l1: float = 0.0, radius: float = float("inf")
) -> Penalty:
    """R = rho sum_g sqrt(|g|) ||u_g||, and more if asked for.

    rho_l1: plus rho_l1 ||u||_1, over all entries (sparse group lasso); radius: and ||u_g|| <= radius for
    every group (bounded group lasso).
    """
    weights = [rho * len(group) ** 0.5 for group in groups]

    def shrink(v: Tensor, step: float) -> Tensor:
        u = soft(v, threshold(step, rho_l1, rules)) if rho_l1 else v.clone()
        for group, weight in zip(groups, weights, strict=True):
            norm = float(u[group].norm())
            wanted = min(max(norm - threshold(step, weight, rules), 0.0), radius)
            u[group] *= wanted / norm if norm > 0 else 1.0
        return u

    def value(u: Tensor) -> Tensor:
        norms = sum(weight * u[group].norm() for group, weight in zip(groups, weights, strict=True))
        return rho_l1 * u.abs().sum() + norms

    return Penalty(shrink, value)


PENALTIES: dict[str, Callable[..., Penalty]] = {
    "zero": zero,
    "squared_l2": squared_l2,
    "l1": l1,
    "elastic_net": elastic_net,
    "non_negative_l1": non_negative_l1,
    "box": box,
    "l2_ball": l2_ball,
    "l1_ball": l1_ball,
    "linf_norm": linf_norm,
    "simplex": simplex,
    "group_lasso": group_lasso,
    "bounded_group_lasso": group_lasso,
    "sparse_group_lasso": group_lasso,
}


def penalty_of(table: Mapping[str, Any], groups: Groups = (), rules: Rules = OURS) -> Penalty:
    """The penalty that `type` and numbers of a golden case describe (`golden/levels/prox.py`)."""
    kind, numbers = table["type"], {key: value for key, value in table.items() if key != "type"}
    one_of("PyTorch bridge", "penalty", kind, tuple(PENALTIES))
    if "group" in kind:
        numbers["groups"] = groups
    try:
        return PENALTIES[kind](rules, **numbers)
    except TypeError as error:
        raise InputError(f"PyTorch bridge: penalty {kind}: {error}") from None


def groups_from(indptr: Tensor, indices: Tensor) -> Groups:
    """Groups from CSR arrays."""
    return indices.split(indptr.diff().tolist())


def on_range(where: slice, penalty: Penalty) -> Penalty:
    """The penalty on one range of the vector, none elsewhere."""
    return Penalty(
        lambda v, step: torch.cat([v[: where.start], penalty.prox(v[where], step), v[where.stop :]]),
        lambda u: penalty.value(u[where]),
    )
