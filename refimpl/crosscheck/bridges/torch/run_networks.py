"""Whole networks and iterations of golden files (`golden/levels/`), computed by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from refimpl.crosscheck.bridges.torch import methods, ops
from refimpl.crosscheck.bridges.torch.network import GatedNetwork
from refimpl.crosscheck.bridges.torch.prox import groups_from, on_range, penalty_of
from refimpl.crosscheck.bridges.torch.rules import Rules
from refimpl.crosscheck.bridges.torch.solve import (
    SCHEDULES,
    Batch,
    Objective,
    accelerated_rounds,
    local_solution,
    local_steps,
    logits,
)
from refimpl.crosscheck.bridges.torch.weights import Tensors
from refimpl.errors import InputError
from refimpl.nn.context import Gating

Settings = Mapping[str, Any]
BOTH = ("theta", "phi")


def named(given: Tensors, prefix: str) -> Tensors:
    """The inputs whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}


def model_of(given: Tensors, settings: Settings, rules: Rules, train: Sequence[str] = BOTH) -> GatedNetwork:
    """The case's layers with the case's parameters."""
    params = named(given, "param.")
    order = [name for name, _ in settings.get("parameters", ())] or list(params)
    shapes = {name: tuple(params[name].shape) for name in order}
    model = GatedNetwork(settings["layers"], shapes, Gating(**settings["gating"]), train, rules)
    model.to(params[order[0]].dtype)
    model.load_state_dict(params)
    return model


def start_of(given: Tensors, model: GatedNetwork) -> Tensor:
    """The parameters as one vector."""
    return torch.cat([given[f"param.{name}"].flatten() for name in model.shapes])


def run_network(given: Tensors, settings: Settings, rules: Rules) -> Tensors:
    """Every activation, mask and gradient of a network with its loss, or of a gated block under `dy`."""
    model, x = model_of(given, settings, rules), given["x"].requires_grad_()
    seen: Tensors = {}
    y = model(x, named(given, "noise."), seen.__setitem__)
    result = ops.cross_entropy(y, given["labels"], rules) if "labels" in given else y
    sources = {"grad.x": x}
    for name, value in seen.items():
        sources[f"backward.{name.removesuffix('.mask')}"] = value
    sources |= {f"grad.{name}": value for name, value in model.named_parameters()}
    outputs = {f"forward.{name}": _as_mask(model, name, value) for name, value in seen.items()}
    return {**outputs, "loss": result, **gradients(result, sources, given.get("dy"))}


def gradients(result: Tensor, sources: Tensors, dy: Tensor | None) -> Tensors:
    """Of the result (times dy) in each source, by name; zero where it does not depend on the source."""
    connected = {name: source for name, source in sources.items() if source.requires_grad}
    found = torch.autograd.grad(result, list(connected.values()), dy, materialize_grads=True)
    outputs = {name: torch.zeros_like(source) for name, source in sources.items()}
    return outputs | dict(zip(connected, found, strict=True))


def _as_mask(model: GatedNetwork, name: str, value: Tensor) -> Tensor:
    """0/1 masks as booleans; anything else as it is."""
    return value != 0 if name.endswith(".mask") and model.gating.mode != "soft" else value


def run_local(given: Tensors, settings: Settings, rules: Rules) -> Tensors:
    """Every iterate of a node's local problem."""
    model = model_of(given, settings, rules)
    noise = named(given, "noise.")
    objectives = [
        Objective(model, Batch(x, labels, {gate: value[step] for gate, value in noise.items()}))
        for step, (x, labels) in enumerate(zip(given["x"], given["labels"], strict=True))
    ]
    outputs: Tensors = {}
    steps = local_steps(start_of(given, model), objectives, settings["eta"], settings["lam"], rules)
    for number, step in enumerate(steps, 1):
        outputs |= {f"step{number}.{name}": value for name, value in step._asdict().items()}
    return outputs


def run_algorithm(given: Tensors, settings: Settings, rules: Rules) -> Tensors:
    """The four vectors of every round of Algorithm 1."""
    model, noise = model_of(given, settings, rules), named(given, "noise.")
    groups = groups_from(given["indptr"], given["indices"])
    penalty = penalty_of(settings["penalty"], groups, rules)
    phi = slice(settings["backbone_size"], sum(value.numel() for value in model.parameters()))

    def objective(k: int, node: int, step: int) -> Objective:
        chosen = given["batches"][k - 1, node, step]
        own = {gate: value[k - 1, node, step] for gate, value in noise.items()}
        return Objective(
            model, Batch(given[f"node{node}.x"][chosen], given[f"node{node}.labels"][chosen], own)
        )

    def solve(k: int, md: Tensor) -> list[Tensor]:
        return [
            local_solution(
                md,
                [objective(k, node, step) for step in range(settings["steps"])],
                settings["eta"],
                settings["lam"],
                rules,
            )
            for node in range(settings["nodes"])
        ]

    schedule = SCHEDULES[settings["schedule"]["name"]](settings["schedule"]["beta"])
    start, lam = start_of(given, model), settings["lam"]
    rounds = accelerated_rounds(start, settings["rounds"], solve, lam, schedule, on_range(phi, penalty))
    outputs: Tensors = {}
    for k, vectors in enumerate(rounds, 1):
        outputs |= {f"round{k}.{name}": value for name, value in vectors._asdict().items()}
    return outputs


def run_adapt(given: Tensors, settings: Settings, rules: Rules) -> Tensors:
    """Both stages at a target node (mathematics.md §6): phi with theta fixed, then theta; without noise."""
    mode = "hard" if settings["gating"]["mode"] == "gumbel" else settings["gating"]["mode"]
    settings = {**settings, "gating": {**settings["gating"], "mode": mode}}
    phi_model, theta_model = (model_of(given, settings, rules, (part,)) for part in ("phi", "theta"))
    batch, steps, lam = Batch(given["x"], given["labels"]), settings["steps"], settings["lam"]
    w = first = start_of(given, phi_model)
    if settings["backbone_size"] < len(w):
        first = local_solution(w, [Objective(phi_model, batch)] * steps, settings["eta_phi"], lam, rules)
    second = local_solution(first, [Objective(theta_model, batch)] * steps, settings["eta_theta"], lam, rules)
    return {
        "before.logits": logits(theta_model, w, given["x_test"]),
        "stage1.w": first,
        "stage2.w": second,
        "after.logits": logits(theta_model, second, given["x_test"]),
    }


def run_baseline(given: Tensors, settings: Settings, rules: Rules) -> Tensors:
    """One round of a comparison method: every node's answer, and the server's new model."""
    model = model_of(given, settings, rules)
    w = start_of(given, model)
    answers = []
    for x, labels in zip(given["x"], given["labels"], strict=True):
        objectives = [Objective(model, Batch(*batch)) for batch in zip(x, labels, strict=True)]
        answers.append(_answer(w, objectives, settings, rules))
    mean = torch.stack(answers).mean(0)
    share = {"reptile": "eps", "pfedme": "beta"}.get(settings["method"])
    server = mean if share is None else methods.towards(w, mean, settings[share])
    return {**{f"node{node}.w": answer for node, answer in enumerate(answers)}, "w": server}


def _answer(w: Tensor, objectives: list[Objective], settings: Settings, rules: Rules) -> Tensor:
    """What one node sends back."""
    method, take = settings["method"], settings.__getitem__
    if method in ("fedavg", "reptile"):
        return local_solution(w, objectives, take("eta"))
    if method == "perfedavg":
        return methods.perfedavg(w, objectives, take("alpha"), take("beta"))
    if method == "perfedavg-hf":
        return methods.perfedavg_hf(w, objectives, take("alpha"), take("beta"), take("delta"))
    if method in ("fomaml", "maml"):
        solve = methods.maml if method == "maml" else methods.fomaml
        return solve(w, objectives, take("alpha"), take("beta"), take("inner_steps"))
    if method == "pfedme":
        numbers = {name: take(name) for name in ("lam", "eta_prox", "prox_steps", "eta")}
        return methods.pfedme(w, objectives, **numbers, rules=rules)
    raise InputError(f"PyTorch bridge: unknown method {method!r}")
