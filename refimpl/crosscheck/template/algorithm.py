"""Rounds of Algorithm 1."""

from typing import Any

import numpy as np

from refimpl.crosscheck.template.head import Arrays, computes, named, vector
from refimpl.crosscheck.template.local import local_steps
from refimpl.crosscheck.template.prox import prox_of


def steps_of(schedule: Arrays, k: int) -> tuple[float, float, float]:
    """The numbers a, b and l of round k, which is counted from 1."""
    beta = schedule["beta"]
    long = {"ghadimi-lan": k * beta / 2, "nesterov": (k + 1) * beta / 2, "proximal-gradient": beta}
    return 1.0 if schedule["name"] == "proximal-gradient" else 2 / (k + 1), beta, long[schedule["name"]]


def cooled(settings: Arrays, k: int) -> Arrays:
    """The settings with the temperature of round k, which goes geometrically to tau_end if there is one."""
    gating, share = settings["gating"], (k - 1) / max(1, settings["rounds"] - 1)
    tau = gating["tau"] * (settings.get("tau_end", gating["tau"]) / gating["tau"]) ** share
    return {**settings, "gating": {**gating, "tau": tau}}


@computes("algorithm")
def algorithm(given: Arrays, settings: Arrays) -> Arrays:
    """The points md, x and xag of every round, and g."""
    x = xag = vector(named(given, "param."), settings)
    noise, lam, phi = named(given, "noise."), settings["lam"], slice(settings["backbone_size"], len(x))

    eta = np.full_like(x, settings["eta"])
    eta[phi] = settings.get("eta_gate", settings["eta"])

    def prox(v: Any, step: float, k: int) -> Any:
        u, risen = v.copy(), min(1, k / settings.get("rho_rise", k))
        u[phi] = prox_of(v[phi], step * risen, settings["penalty"], given)
        return u

    def answer(md: Any, k: int, node: int) -> Any:
        batches = []
        for s, chosen in enumerate(given["batches"][k - 1, node]):
            own = {gate: values[k - 1, node, s] for gate, values in noise.items()}
            batches.append((given[f"node{node}.x"][chosen], given[f"node{node}.labels"][chosen], own))
        return [w for _, _, w in local_steps(md, batches, eta, lam, cooled(settings, k))][-1]

    found: Arrays = {}
    for k in range(1, settings["rounds"] + 1):
        a, b, l = steps_of(settings["schedule"], k)
        md = (1 - a) * xag + a * x
        g = lam * (md - np.mean([answer(md, k, node) for node in range(settings["nodes"])], axis=0))
        x, xag = prox(x - l * g, l, k), prox(md - b * g, b, k)
        found |= {f"round{k}.{name}": v for name, v in (("md", md), ("g", g), ("x", x), ("xag", xag))}
    return found
