"""Proximal operators on tensors: prox_{step R}(v) = argmin_u R(u) + ||u - v||^2/(2 step).

Each is written from the optimality condition or from another identity than the one the package uses where
there is one: the l1 ball by bisection on its threshold, the l-infinity norm by Moreau's decomposition, the
simplex through the dual variable of its sum. All work in float64 and round once.

Source: mathematics.md §5; Parikh & Boyd 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from refimpl.bridges.torch.rules import OURS, Rules

Prox = Callable[[Tensor, float], Tensor]  # (v, step) -> prox_{step R}(v)
Groups = Sequence[Tensor]  # indices of each group, int64


def threshold(step: float, weight: float, rules: Rules) -> float:
    """What a soft threshold takes off: step times weight."""
    return step * weight if rules.prox == "step-weight" else weight


def rounded_once(prox: Prox) -> Prox:
    """The operator evaluated in float64, its result in the dtype of v."""
    return lambda v, step: prox(v.double(), step).to(v.dtype)


def zero() -> Prox:
    """R = 0."""
    return lambda v, step: v.clone()


def squared_l2(rho: float) -> Prox:
    """R = rho/2 ||u||^2: 0 = rho u + (u - v)/step."""
    return rounded_once(lambda v, step: v / (1 + step * rho))


def soft(v: Tensor, level: float) -> Tensor:
    """v moved towards 0 by `level`, and not beyond."""
    return v.sign() * (v.abs() - level).clamp(min=0)


def l1(rho: float, rules: Rules = OURS) -> Prox:
    """R = rho ||u||_1."""
    return rounded_once(lambda v, step: soft(v, threshold(step, rho, rules)))


def elastic_net(rho: float, ridge: float, rules: Rules = OURS) -> Prox:
    """R = rho ||u||_1 + ridge/2 ||u||^2."""
    return rounded_once(lambda v, step: soft(v, threshold(step, rho, rules)) / (1 + step * ridge))


def non_negative_l1(rho: float, rules: Rules = OURS) -> Prox:
    """R = rho sum(u) for u >= 0."""
    return rounded_once(lambda v, step: (v - threshold(step, rho, rules)).clamp(min=0))


def box(lower: float | Tensor, upper: float | Tensor) -> Prox:
    """Indicator of lower <= u <= upper, entry by entry; bounds are rounded to the dtype of v."""

    def clip(v: Tensor, step: float) -> Tensor:
        low, high = (torch.as_tensor(bound, dtype=v.dtype) for bound in (lower, upper))
        return torch.minimum(torch.maximum(v, low), high)

    return clip


def l2_ball(radius: float) -> Prox:
    """Indicator of ||u|| <= radius."""
    return rounded_once(lambda v, step: v * min(1.0, radius / max(float(v.norm()), 1e-300)))


def onto_l1_ball(v: Tensor, radius: float) -> Tensor:
    """Projection on ||u||_1 <= radius: the soft threshold whose result has that norm, by bisection."""
    if float(v.abs().sum()) <= radius:
        return v.clone()
    low, high = 0.0, float(v.abs().max())
    while low < (middle := (low + high) / 2) < high:
        if float(soft(v, middle).abs().sum()) > radius:
            low = middle
        else:
            high = middle
    return soft(v, high)


def l1_ball(radius: float) -> Prox:
    """Indicator of ||u||_1 <= radius."""
    return rounded_once(lambda v, step: onto_l1_ball(v, radius))


def linf_norm(rho: float) -> Prox:
    """R = rho ||u||_inf: v minus its projection on the l1 ball of radius step rho (Moreau)."""
    return rounded_once(lambda v, step: v - onto_l1_ball(v, step * rho))


def simplex(total: float) -> Prox:
    """Indicator of u >= 0, sum(u) = total: u = max(v - t, 0), t by bisection on the sum."""

    def project(v: Tensor, step: float) -> Tensor:
        low, high = float(v.max()) - total, float(v.max())
        while low < (middle := (low + high) / 2) < high:
            if float((v - middle).clamp(min=0).sum()) > total:
                low = middle
            else:
                high = middle
        return (v - high).clamp(min=0)

    return rounded_once(project)


def group_lasso(
    groups: Groups,
    rho: float,
    rho_l1: float = 0.0,
    radius: float = float("inf"),
    weights: Sequence[float] | None = None,
    rules: Rules = OURS,
) -> Prox:
    """R = rho sum_g w_g ||u_g|| (w_g = sqrt(|g|) unless given), and more if asked for.

    rho_l1: plus rho_l1 ||u||_1, over all entries (sparse group lasso); radius: and ||u_g|| <= radius for
    every group (bounded group lasso).
    """
    chosen = [len(group) ** 0.5 for group in groups] if weights is None else list(weights)

    def shrink(v: Tensor, step: float) -> Tensor:
        u = soft(v, threshold(step, rho_l1, rules))
        for group, weight in zip(groups, chosen, strict=True):
            norm = float(u[group].norm())
            wanted = min(max(norm - threshold(step, rho * weight, rules), 0.0), radius)
            u[group] = u[group] * (wanted / norm) if norm > 0 else u[group]
        return u

    return rounded_once(shrink)


def on_range(where: slice, prox: Prox) -> Prox:
    """The operator on one range of the vector; the identity elsewhere."""

    def apply(v: Tensor, step: float) -> Tensor:
        return torch.cat([v[: where.start], prox(v[where], step), v[where.stop :]])

    return apply
