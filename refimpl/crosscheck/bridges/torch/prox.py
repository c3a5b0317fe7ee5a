"""Proximal operators on tensors: prox_{step R}(v) = argmin_u R(u) + ||u - v||^2/(2 step).

Each is written from its optimality condition or, where possible, from another identity than the package uses:
the l1 ball by bisection on its threshold, the l-infinity norm by Moreau's decomposition, the
simplex through the dual variable of its sum. All work in float64 and round once.
A penalty is R with its weight, as a prox and a value, which is needed only where R is finite.

Source: mathematics.md §5; Parikh & Boyd 2014.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refimpl.crosscheck.bridges.torch.weights import Tensors
from refimpl.errors import InputError, one_of

Groups = Sequence[Tensor]  # indices of each group, int64


def nothing(u: Tensor) -> Tensor:
    """The value of an indicator on its set, and of the zero penalty."""
    return u.new_zeros(())


class Penalty(NamedTuple):
    """R as two functions on float64 tensors: prox(v, step), and value(u) where it is finite."""

    prox: Callable[[Tensor, float], Tensor]
    value: Callable[[Tensor], Tensor] = nothing

    def rounded_prox(self, v: Tensor, step: float) -> Tensor:
        """The prox of v in any precision, computed in float64."""
        return self.prox(v.double(), step).to(v.dtype)


def soft(v: Tensor, level: float) -> Tensor:
    """v moved towards 0 by `level`, and not beyond."""
    return v.sign() * (v.abs() - level).clamp(min=0)


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


def onto_simplex(v: Tensor, total: float) -> Tensor:
    """Projection on u >= 0 with sum(u) = total: max(v - t, 0) with the t that makes the sum right."""
    top = float(v.max())
    level = bisect(lambda t: float((v - t).clamp(min=0).sum()) > total, top - total, top)
    return (v - level).clamp(min=0)


def group_lasso(groups: Groups, rho: float, rho_l1: float = 0.0, radius: float = float("inf")) -> Penalty:
    """R = rho sum_g sqrt(|g|) ||u_g||, and more if asked for.

    rho_l1: plus rho_l1 ||u||_1, over all entries (sparse group lasso); radius: and ||u_g|| <= radius for
    every group (bounded group lasso).
    """
    weights = [rho * len(group) ** 0.5 for group in groups]

    def shrink(v: Tensor, step: float) -> Tensor:
        u = soft(v, step * rho_l1) if rho_l1 else v.clone()
        for group, weight in zip(groups, weights, strict=True):
            norm = float(u[group].norm())
            wanted = min(max(norm - step * weight, 0.0), radius)
            u[group] *= wanted / norm if norm > 0 else 1.0
        return u

    def value(u: Tensor) -> Tensor:
        norms = sum(weight * u[group].norm() for group, weight in zip(groups, weights, strict=True))
        return rho_l1 * u.abs().sum() + norms

    return Penalty(shrink, value)


# By type, from the penalty's numbers; `golden/levels/prox.py` says what each R is.
PENALTIES: dict[str, Callable[..., Penalty]] = {
    "zero": lambda: Penalty(lambda v, step: v),
    "squared_l2": lambda rho: Penalty(  # 0 = rho u + (u - v)/step
        lambda v, step: v / (1 + step * rho), lambda u: rho / 2 * u.square().sum()
    ),
    "l1": lambda rho: Penalty(lambda v, step: soft(v, step * rho), lambda u: rho * u.abs().sum()),
    "elastic_net": lambda rho_l1, rho_l2: Penalty(
        lambda v, step: soft(v, step * rho_l1) / (1 + step * rho_l2),
        lambda u: rho_l1 * u.abs().sum() + rho_l2 / 2 * u.square().sum(),
    ),
    "non_negative_l1": lambda rho: Penalty(
        lambda v, step: (v - step * rho).clamp(min=0), lambda u: rho * u.sum()
    ),
    "box": lambda lower, upper: Penalty(lambda v, step: v.clamp(lower, upper)),
    "l2_ball": lambda radius: Penalty(lambda v, step: v * (radius / v.norm()).clamp(max=1)),
    "l1_ball": lambda radius: Penalty(lambda v, step: onto_l1_ball(v, radius)),
    "linf_norm": lambda rho: Penalty(  # by Moreau, v minus its projection on the ball of the dual norm
        lambda v, step: v - onto_l1_ball(v, step * rho), lambda u: rho * u.abs().max()
    ),
    "simplex": lambda total: Penalty(lambda v, step: onto_simplex(v, total)),
    "group_lasso": group_lasso,
    "bounded_group_lasso": group_lasso,
    "sparse_group_lasso": group_lasso,
}


def penalty_of(table: Mapping[str, Any], groups: Groups) -> Penalty:
    """The penalty that `type` and numbers of a golden case describe."""
    kind, numbers = table["type"], {key: value for key, value in table.items() if key != "type"}
    one_of("PyTorch bridge", "penalty", kind, tuple(PENALTIES))
    own = {"groups": groups} if "group" in kind else {}
    try:
        return PENALTIES[kind](**own, **numbers)
    except TypeError:
        raise InputError(
            f"PyTorch bridge: {', '.join(numbers)} are not the numbers of penalty {kind}"
        ) from None


def groups_from(given: Tensors) -> Groups:
    """The groups of a case, from the CSR arrays `indptr` and `indices`; none where it has no such arrays."""
    return given["indices"].split(given["indptr"].diff().tolist()) if "indptr" in given else ()


def on_range(where: slice, penalty: Penalty) -> Penalty:
    """The penalty on one range of the vector, none elsewhere."""
    return Penalty(
        lambda v, step: torch.cat([v[: where.start], penalty.prox(v[where], step), v[where.stop :]]),
        lambda u: penalty.value(u[where]),
    )
