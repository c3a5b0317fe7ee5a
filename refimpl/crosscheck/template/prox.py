"""Proximal operators: argmin_u step R(u) + ||u - v||^2/2."""

from itertools import pairwise
from typing import Any

import numpy as np

from refimpl.crosscheck.template.head import Arrays, computes


def soft(v: Any, level: float) -> Any:
    """V moved towards 0 by `level`, and not beyond."""
    return np.sign(v) * np.maximum(np.abs(v) - level, 0)


def onto_simplex(v: Any, total: float) -> Any:
    """The nearest u >= 0 whose sum is `total`: max(v - t, 0) with the t that makes it so."""
    ordered = np.sort(v)[::-1]
    levels = (np.cumsum(ordered) - total) / np.arange(1, v.size + 1)
    return np.maximum(v - levels[np.flatnonzero(ordered > levels)[-1]], 0)


def onto_l1_ball(v: Any, radius: float) -> Any:
    """The nearest u with ||u||_1 <= radius."""
    return v if np.abs(v).sum() <= radius else np.sign(v) * onto_simplex(np.abs(v), radius)


def groups_of(given: Arrays) -> list[Any]:
    """The entries of every group."""
    return [given["indices"][start:stop] for start, stop in pairwise(given["indptr"])]


def shrink(v: Any, step: float, penalty: Arrays, given: Arrays) -> Any:
    """The penalties on groups, which weigh the root of their size; `radius` bounds their norms."""
    u = soft(v, step * penalty.get("rho_l1", 0.0))
    for group in groups_of(given):
        norm = np.linalg.norm(u[group])
        wanted = min(
            max(norm - step * penalty["rho"] * np.sqrt(len(group)), 0), penalty.get("radius", np.inf)
        )
        u[group] *= wanted / norm if norm > 0 else 1
    return u


def prox_of(v: Any, step: float, penalty: Arrays, given: Arrays) -> Any:
    """The prox of a penalty, computed in float64."""
    kind, p, wide = penalty["type"], penalty, v.astype(np.float64)
    if "group" in kind:
        u = shrink(wide, step, p, given)
    else:
        u = {
            "zero": lambda: wide,
            "squared_l2": lambda: wide / (1 + step * p["rho"]),
            "l1": lambda: soft(wide, step * p["rho"]),
            "elastic_net": lambda: soft(wide, step * p["rho_l1"]) / (1 + step * p["rho_l2"]),
            "non_negative_l1": lambda: np.maximum(wide - step * p["rho"], 0),
            "box": lambda: np.clip(wide, p["lower"], p["upper"]),
            "l2_ball": lambda: wide * min(p["radius"] / np.linalg.norm(wide), 1),
            "l1_ball": lambda: onto_l1_ball(wide, p["radius"]),
            "linf_norm": lambda: wide - onto_l1_ball(wide, step * p["rho"]),
            "simplex": lambda: onto_simplex(wide, p["total"]),
        }[kind]()
    return u.astype(v.dtype)


def value_of(u: Any, penalty: Arrays, given: Arrays) -> Any:
    """R(u), for a u at which it is finite."""
    kind, p = penalty["type"], penalty
    if "group" in kind:
        norms = sum(np.sqrt(len(group)) * np.linalg.norm(u[group]) for group in groups_of(given))
        return p["rho"] * norms + p.get("rho_l1", 0.0) * np.abs(u).sum()
    if kind == "linf_norm":
        return p["rho"] * np.abs(u).max()
    first, second = {"l1": ("rho", ""), "non_negative_l1": ("rho", ""), "squared_l2": ("", "rho")}.get(
        kind, ("rho_l1", "rho_l2")
    )
    return p.get(first, 0.0) * np.abs(u).sum() + p.get(second, 0.0) / 2 * np.square(u).sum()


@computes("prox")
def prox(given: Arrays, settings: Arrays) -> Arrays:
    """A prox by itself, and the penalty's value there."""
    u = prox_of(given["v"], settings["step"], settings["penalty"], given)
    return {"prox": u, "value": value_of(u.astype(np.float64), settings["penalty"], given)}
