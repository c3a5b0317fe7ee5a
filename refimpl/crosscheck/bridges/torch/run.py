"""Any case of a golden file (`golden/levels/`), computed by PyTorch: `run(case)`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from refimpl.crosscheck.bridges.torch import fewshot, ops
from refimpl.crosscheck.bridges.torch import solve as solvers
from refimpl.crosscheck.bridges.torch.network import GatedNetwork
from refimpl.crosscheck.bridges.torch.prox import Penalty, groups_from, on_range, penalty_of
from refimpl.crosscheck.bridges.torch.solve import Batch, Objective, local_solution, logits
from refimpl.crosscheck.bridges.torch.weights import Tensors, array, tensor, views
from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.errors import InputError
from refimpl.nn.context import Gating

Settings = Mapping[str, Any]


def single_threaded() -> str:
    """PyTorch's name and version; from here on it uses one thread, so that sums have one order everywhere."""
    torch.set_num_threads(1)
    return f"PyTorch {torch.__version__}"


def run(case: Case) -> Arrays:
    """The case's outputs by name, in its order of execution and its dtype; masks stay booleans."""
    if case.kind not in KINDS:
        raise InputError(f"PyTorch bridge: unknown kind of case {case.kind!r} ({case.name})")
    given = {name: tensor(value) for name, value in case.inputs.items()}
    found = KINDS[case.kind](given, case.settings)
    arrays = {name: array(found[name]) for name in case.outputs}
    return {
        name: value if value.dtype == np.bool_ else value.astype(case.dtype, copy=False)
        for name, value in arrays.items()
    }


# --- single operations ------------------------------------------------------------------------------


def run_layer(kind: str, given: Tensors, settings: Settings) -> Tensors:
    """The result `y` of one layer, times the mask if there is one, and its gradients times `dy`."""
    sources = {name: given[name].requires_grad_() for name in ("x", "weight", "bias") if name in given}
    y = ops.LAYERS[kind](settings, given["x"], *ops.arguments(kind, given))
    if "mask" in given:
        y = y * ops.over_pixels(given["mask"].to(y.dtype), y)
    return {"y": y, **gradients(y, {f"grad.{name}": value for name, value in sources.items()}, given["dy"])}


def run_cross_entropy(given: Tensors, settings: Settings) -> Tensors:
    """The loss and its gradient."""
    loss = ops.cross_entropy(given["logits"].requires_grad_(), given["labels"])
    return {"loss": loss, **gradients(loss, {"grad.logits": given["logits"]})}


def run_gate_shaping(given: Tensors, settings: Settings) -> Tensors:
    """What batch-shaping adds to the loss, and its gradient."""
    loss = ops.shaping(given["d"].requires_grad_(), settings["tau"], *settings["shaping"])
    return {"loss": loss, **gradients(loss, {"grad.d": given["d"]})}


def gradients(result: Tensor, sources: Tensors, dy: Tensor | None = None) -> Tensors:
    """Of the result (times dy) in each source, by name; zero where it does not depend on the source."""
    connected = {name: source for name, source in sources.items() if source.requires_grad}
    found = torch.autograd.grad(result, list(connected.values()), dy, materialize_grads=True)
    outputs = {name: torch.zeros_like(source) for name, source in sources.items()}
    return outputs | dict(zip(connected, found, strict=True))


def run_prox(given: Tensors, settings: Settings) -> Tensors:
    """`prox` and the penalty's `value` there."""
    penalty = penalty_of(settings["penalty"], groups_from(given))
    u = penalty.rounded_prox(given["v"], settings["step"])
    return {"prox": u, "value": penalty.value(u.double()).to(u.dtype)}


# --- networks and iterations ------------------------------------------------------------------------


def named(given: Tensors, prefix: str) -> Tensors:
    """The inputs whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}


def model_of(given: Tensors, settings: Settings, train: Sequence[str] = ("theta", "phi")) -> GatedNetwork:
    """The case's layers with the case's parameters."""
    params = named(given, "param.")
    order = [name for name, _ in settings.get("parameters", ())] or list(params)
    shapes = {name: tuple(params[name].shape) for name in order}
    model = GatedNetwork(settings["layers"], shapes, Gating(**settings["gating"]), train)
    model.to(params[order[0]].dtype)
    model.load_state_dict(params)
    return model


def start_of(given: Tensors, model: GatedNetwork) -> Tensor:
    """The parameters as one vector."""
    return torch.cat([given[f"param.{name}"].flatten() for name in model.shapes])


def run_network(given: Tensors, settings: Settings) -> Tensors:
    """Every activation, mask and gradient of a network with its loss, or of a gated block under `dy`."""
    model, x = model_of(given, settings), given["x"].requires_grad_()
    seen: Tensors = {}
    y = model(x, named(given, "noise."), seen.__setitem__)
    result = ops.cross_entropy(y, given["labels"]) if "labels" in given else y
    sources = {"grad.x": x}
    sources |= {f"backward.{name.removesuffix('.mask')}": value for name, value in seen.items()}
    sources |= {f"grad.{name}": value for name, value in model.named_parameters()}
    whole = model.gating.mode != "soft"  # 0/1 masks become booleans
    outputs = {
        f"forward.{name}": value != 0 if whole and name.endswith(".mask") else value
        for name, value in seen.items()
    }
    return {**outputs, "loss": result, **gradients(result, sources, given.get("dy"))}


def run_local(given: Tensors, settings: Settings) -> Tensors:
    """Every iterate of a node's local problem."""
    model, noise = model_of(given, settings), named(given, "noise.")
    objectives = [
        Objective(model, Batch(x, labels, {gate: value[step] for gate, value in noise.items()}))
        for step, (x, labels) in enumerate(zip(given["x"], given["labels"], strict=True))
    ]
    steps = solvers.local_steps(start_of(given, model), objectives, settings["eta"], settings["lam"])
    return {f"step{s}.{name}": value for s, step in enumerate(steps, 1) for name, value in step.items()}


def run_algorithm(given: Tensors, settings: Settings) -> Tensors:
    """The four vectors of every round of Algorithm 1."""
    noise, lam, gating = named(given, "noise."), settings["lam"], settings["gating"]
    cooling = (settings.get("tau_end", gating["tau"]) / gating["tau"]) ** (1 / max(1, settings["rounds"] - 1))
    taus = [gating["tau"] * cooling**k for k in range(settings["rounds"])]
    models = [model_of(given, {**settings, "gating": {**gating, "tau": tau}}) for tau in taus]
    start, groups = start_of(given, models[0]), groups_from(given)
    phi = slice(settings["backbone_size"], len(start))
    rates = torch.full_like(start, settings["eta"])
    rates[phi] = settings.get("eta_gate", settings["eta"])

    def penalty(k: int) -> Penalty:
        """Of a round, from 1."""
        rising = min(1.0, k / settings.get("rho_rise", 1.0))
        own = {key: value * rising if key == "rho" else value for key, value in settings["penalty"].items()}
        return on_range(phi, penalty_of(own, groups))

    def objective(*at: int) -> Objective:
        """Of a round, from 0, a node and a step."""
        node, chosen = f"node{at[1]}", given["batches"][at]
        own = {gate: value[at] for gate, value in noise.items()}
        return Objective(
            models[at[0]], Batch(given[f"{node}.x"][chosen], given[f"{node}.labels"][chosen], own)
        )

    def solve(k: int, md: Tensor) -> list[Tensor]:
        nodes, steps = range(settings["nodes"]), range(settings["steps"])
        batches = [[objective(k - 1, node, step) for step in steps] for node in nodes]
        return [local_solution(md, own, rates, lam) for own in batches]

    rounds = solvers.accelerated_rounds(start, settings["rounds"], solve, lam, settings["schedule"], penalty)
    return {f"round{k}.{name}": value for k, found in enumerate(rounds, 1) for name, value in found.items()}


def run_adapt(given: Tensors, settings: Settings) -> Tensors:
    """Both stages at a target node (mathematics.md §6): phi with theta fixed, then theta; without noise."""
    mode = "hard" if settings["gating"]["mode"] == "gumbel" else settings["gating"]["mode"]
    settings = {**settings, "gating": {**settings["gating"], "mode": mode}}
    phi_model, theta_model = (model_of(given, settings, (part,)) for part in ("phi", "theta"))
    batch, steps, lam = Batch(given["x"], given["labels"]), settings["steps"], settings["lam"]
    w = first = start_of(given, phi_model)
    if settings["backbone_size"] < len(w):
        first = local_solution(w, [Objective(phi_model, batch)] * steps, settings["eta_phi"], lam)
    second = local_solution(first, [Objective(theta_model, batch)] * steps, settings["eta_theta"], lam)
    return {
        "before.logits": logits(theta_model, w, given["x_test"]),
        "stage1.w": first,
        "stage2.w": second,
        "after.logits": logits(theta_model, second, given["x_test"]),
    }


def run_baseline(given: Tensors, settings: Settings) -> Tensors:
    """One round of a comparison method: every node's answer, and the server's new model."""
    model, method = model_of(given, settings), settings["method"]
    w = start_of(given, model)
    if method not in solvers.METHODS:
        raise InputError(f"PyTorch bridge: unknown method {method!r}")
    answer, names = solvers.METHODS[method]
    numbers = {name: settings[name] for name in names}
    answers = []
    for x, labels in zip(given["x"], given["labels"], strict=True):
        objectives = [Objective(model, Batch(*batch)) for batch in zip(x, labels, strict=True)]
        answers.append(answer(w, objectives, **numbers))
    server = torch.stack(answers).mean(0)
    if method in solvers.SHARES:
        share = settings[solvers.SHARES[method]]
        server = (1 - share) * w + share * server
    return {f"node{node}.w": found for node, found in enumerate(answers)} | {"w": server}


def run_cooperative(given: Tensors, settings: Settings) -> Tensors:
    """The logits of every part of a team, each term of the loss, their sum and its gradient."""
    leaves = {name: given[f"param.{name}"].requires_grad_() for name, _ in settings["parameters"]}
    said = {}
    for part, own in settings["parts"].items():
        params = {name: leaves[whole] for name, whole in own["parameters"]}
        shapes = {name: tuple(value.shape) for name, value in params.items()}
        model = GatedNetwork(own["layers"], shapes, Gating(**settings["gating"]))
        said[part] = functional_call(model, params, (given["x"],))
    terms = {}
    for lesson in settings["students"]:
        part, soft = lesson["part"], settings["temperature"]
        if lesson["labels"]:
            terms[f"{part}.labels.loss"] = lesson["labels"] * ops.cross_entropy(said[part], given["labels"])
        for teacher, weight in lesson["teachers"].items():
            divergence = ops.divergence(said[teacher].detach(), said[part], soft)
            terms[f"{part}.from.{teacher}.loss"] = settings["weights"][weight] * divergence
    total = torch.stack(list(terms.values())).sum()
    found = gradients(total, leaves)
    gradient = torch.cat([found[name].flatten() for name in leaves])
    return {f"logits.{part}": value for part, value in said.items()} | {
        **terms,
        "total.loss": total,
        "gradient": gradient,
    }


def inner_steps(given: Tensors, settings: Settings) -> tuple[Tensor, list[Tensor], Tensor]:
    """Where an episode starts, the points after each step, and where w may be other than zero."""
    model, (what, exact) = model_of(given, settings, ("theta",)), fewshot.plan(settings)
    moves, alive = fewshot.ones(model.shapes, what, named(given, "mask."))
    start = (start_of(given, model) * alive).requires_grad_()
    parts = ("support", "query") if settings["method"] == "reptile" else ("support",)
    batch = Batch(*(torch.cat([given[f"{part}.{own}"] for part in parts]) for own in ("x", "labels")))
    steps, alpha = settings["inner_steps"], settings["alpha"]
    points = fewshot.inner_loop(start, Objective(model, batch), steps, alpha, moves, exact)
    return start, list(points), alive


def run_episode(given: Tensors, settings: Settings) -> Tensors:
    """The inner steps of an episode and the method's answer."""
    start, points, alive = inner_steps(given, settings)
    steps = {f"step{s}.w": point for s, point in enumerate(points, 1)}
    if settings["method"] == "reptile":
        return steps | {"gradient": start - points[-1]}
    _, exact = fewshot.plan(settings)
    end = points[-1] if exact else points[-1].detach().requires_grad_()
    query = Batch(given["query.x"], given["query.labels"])
    loss = Objective(model_of(given, settings, ("theta",)), query).loss(end)
    (gradient,) = torch.autograd.grad(loss, start if exact else end)
    return steps | {"query.loss": loss, "gradient": gradient * alive}


def run_episode_test(given: Tensors, settings: Settings) -> Tensors:
    """The inner steps of a test, and the logits of its query samples."""
    _, points, _ = inner_steps(given, settings)
    support = len(given["support.x"]) if settings["statistics"] == "support" else 0
    shapes = {name: tuple(shape) for name, shape in settings["parameters"]}
    model = fewshot.NormalisedTogether(settings["layers"], shapes, Gating(**settings["gating"]))
    model.first = support or len(given["query.x"])
    x = torch.cat([given["support.x"][:support], given["query.x"]])
    said = {"query.logits": logits(model, points[-1].detach(), x)[support:]}
    return {f"step{s}.w": point for s, point in enumerate(points, 1)} | said


def run_ticket(given: Tensors, settings: Settings) -> Tensors:
    """The decisions of a finder of tickets."""
    shapes = {name: torch.Size(shape) for name, shape in settings["parameters"]}
    weights, names, found = given["weights"], fewshot.prunable(shapes), Tensors()
    if settings["finder"] == "mwt":
        last = views(shapes, weights[-1].abs())
        sizes = {name: last[name] for name in names}
        masks, first = fewshot.by_magnitude(sizes, settings["scope"], settings["pruned"]), settings["rewind"]
    else:
        rows = torch.stack([views(shapes, row.abs())[names[0]] for row in weights])
        counts = fewshot.smart_counts([shapes[name].numel() for name in names], settings["pruned"])
        queue, stopped, mask = fewshot.first_masks(rows, counts[0], settings)
        found = {"overlaps": tensor(np.array(queue)), "stopped": torch.tensor(stopped).double()}
        scores = zip(names, counts, strict=True)
        masks = {name: fewshot.largest(given[f"random.{name}"], count) for name, count in scores}
        masks[names[0]], first = mask, 0
    start = {name: part * masks.get(name, 1) for name, part in views(shapes, weights[first]).items()}
    named_masks = {f"mask.{name}": mask for name, mask in masks.items()}
    return found | named_masks | {"start": fewshot.flat(start)}


KINDS: dict[str, Callable[[Tensors, Settings], Tensors]] = {
    **{kind: partial(run_layer, kind) for kind in ops.LAYERS},
    "cross_entropy": run_cross_entropy,
    "gate_shaping": run_gate_shaping,
    "gated": run_network,
    "network": run_network,
    "prox": run_prox,
    "local": run_local,
    "algorithm": run_algorithm,
    "adapt": run_adapt,
    "baseline": run_baseline,
    "cooperative": run_cooperative,
    "episode": run_episode,
    "episode_test": run_episode_test,
    "ticket": run_ticket,
}
