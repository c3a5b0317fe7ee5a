"""Wrong rules of losses, local problems and prox steps. Source: mathematics.md §2.4, §3-§5, §10. Derived."""

from collections.abc import Iterator
from typing import Any

from refimpl.crosscheck.golden.case import Case
from refimpl.crosscheck.golden.names import is_gradient
from refimpl.crosscheck.suspects.contract import Seen, Suspect, altered, scaled, suspect

_NETWORKS = ("network", "cross_entropy")
# Settings that are rates of steps along a gradient.
_RATES = ("eta", "alpha", "beta", "delta", "eta_prox", "eta_phi", "eta_theta")
_WEIGHTS = ("rho", "rho_l1", "rho_l2")


def summed_loss(case: Case) -> Iterator[Suspect]:
    """The loss is the sum over the batch instead of the mean, which is like N times the rates."""
    samples = case.inputs.get("batches", case.inputs.get("labels"))
    count = 0 if samples is None else int(samples.shape[-1])  # over which the loss is the mean
    if count < 2:
        return

    def times(output: str) -> float:
        return float(count) if output.split(".")[-1] == "loss" or is_gradient(output) else 1.0

    hint = f"the loss was summed over the {count} samples of a batch; it is their mean"
    yield suspect("mean against sum loss", hint, altered(case, **_faster(case, count)), scaled(times))


def _faster(case: Case, count: int) -> dict[str, Any]:
    """Settings that step along `count` g + lam (w - v): rates times `count`, lam divided by it."""
    if case.kind in _NETWORKS:
        return {}
    own = "beta" if case.settings.get("method") == "pfedme" else ""  # whose beta mixes models
    rates = [key for key in _RATES if key in case.settings and key != own]
    changed = {key: case.settings[key] * count for key in rates}
    changed |= {"lam": case.settings["lam"] / count} if "lam" in case.settings else {}
    return changed | _server(case, count)


def _server(case: Case, factor: float) -> dict[str, Any]:
    """Settings that make the server of Algorithm 1 step along `factor` g, with the same prox."""
    if case.kind != "algorithm":
        return {}
    schedule, penalty = case.settings["schedule"], case.settings["penalty"]
    weights = {key: penalty[key] / factor for key in _WEIGHTS if key in penalty}
    return {
        "schedule": {**schedule, "beta": schedule["beta"] * factor},
        "penalty": {**penalty, **weights},
    }


def lambda_factor(case: Case) -> Iterator[Suspect]:
    """Lambda is doubled or halved in the gradient of (lambda/2) ||w - v||^2, or everywhere."""
    lam = case.settings.get("lam", 0.0)
    if not lam:
        return
    for factor, done in ((2.0, "twice lambda"), (0.5, "half of lambda")):
        hint = f"{done} in the proximal term's gradient; that of (lambda/2) ||w - v||^2 is lambda (w - v)"
        changed = altered(case, lam=lam * factor)
        if case.settings.get("method") == "pfedme":  # lam is also a factor in the step of w
            changed = altered(changed, eta=case.settings["eta"] / factor)
        if case.kind == "algorithm":
            local = altered(changed, **_server(case, 1 / factor))  # the server uses the right lambda
            yield suspect("lambda vs lambda/2", hint, local, _of_g(1 / factor))
            hint = f"{done}, in the local problem and in g = lambda (md - mean)"
        yield suspect("lambda vs lambda/2", hint, changed)
    if case.kind == "algorithm":
        for factor in (2.0, 0.5):
            hint = f"g is {factor:g} times lambda (md - mean of the nodes)"
            stepped = altered(case, **_server(case, factor))
            yield suspect("lambda vs lambda/2", hint, stepped, _of_g(factor))
            yield suspect("lambda vs lambda/2", f"{hint}, where it is stored only", case, _of_g(factor))


def _of_g(factor: float) -> Seen:
    """Multiply a round's g by the factor, and leave other outputs as they are."""
    return scaled(lambda output: factor if output.endswith(".g") else 1.0)


def prox_weight(case: Case) -> Iterator[Suspect]:
    """The prox confuses its step with the penalty's weight, or leaves the step out."""
    penalty = case.settings.get("penalty", {})
    weights = [key for key in _WEIGHTS if key in penalty]
    if not weights:
        return
    for done, wrong in (
        ("prox was taken with the weight rho alone", {"step_power": 0}),
        ("prox was taken with the step alone", dict.fromkeys(weights, 1.0)),
        ("the step was taken twice in a prox", {"step_power": 2}),
    ):
        hint = f"{done}; the threshold is step times the weight rho"
        yield suspect("prox step vs weight", hint, altered(case, penalty={**penalty, **wrong}))
