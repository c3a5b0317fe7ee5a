"""Any case of a golden file (`golden/levels/`), computed by PyTorch: `run(case)`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refimpl.crosscheck.bridges.torch import fewshot, ops
from refimpl.crosscheck.bridges.torch.network import Batch, GatedNetwork, Objective
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
    """The case's outputs by name, in its order of execution and its dtype; masks stay booleans.

    The levels that have a template are computed by it, the others here.
    """
    computed = ops.template.KINDS
    if case.kind in KINDS:
        given = {name: tensor(value) for name, value in case.inputs.items()}
        found = KINDS[case.kind](given, case.settings)
        arrays = {name: array(found[name]) for name in case.outputs}
    elif case.kind in computed:
        outputs = computed[case.kind](dict(case.inputs), {**case.settings, "kind": case.kind})
        arrays = {name: np.asarray(outputs[name]) for name in case.outputs}
    else:
        raise InputError(f"PyTorch bridge: unknown kind of case {case.kind!r} ({case.name})")
    return {
        name: value if value.dtype == np.bool_ else value.astype(case.dtype, copy=False)
        for name, value in arrays.items()
    }


def model_of(given: Tensors, settings: Settings) -> GatedNetwork:
    """The case's layers, of which no gate learns, with the case's parameters."""
    params = {name: given[f"param.{name}"] for name, _ in settings["parameters"]}
    return GatedNetwork(settings["layers"], params, Gating(**settings["gating"]), ("theta",))


def run_cooperative(given: Tensors, settings: Settings) -> Tensors:
    """The logits of every part of a team, each term of the loss, their sum and its gradient."""
    leaves = {name: given[f"param.{name}"].requires_grad_() for name, _ in settings["parameters"]}
    said = {}
    for part, own in settings["parts"].items():
        params = {name: leaves[whole] for name, whole in own["parameters"]}
        said[part] = ops.template.Pass(params, settings["gating"], {}).chain(own["layers"], given["x"])
    terms = {}
    for lesson in settings["students"]:
        part, soft = lesson["part"], settings["temperature"]
        if lesson["labels"]:
            entropy = ops.template.cross_entropy(said[part], given["labels"])
            terms[f"{part}.labels.loss"] = lesson["labels"] * entropy
        for teacher, weight in lesson["teachers"].items():
            divergence = ops.divergence(said[teacher].detach(), said[part], soft)
            terms[f"{part}.from.{teacher}.loss"] = settings["weights"][weight] * divergence
    total = torch.stack(list(terms.values())).sum()
    found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    gradient = torch.cat([part.flatten() for part in found])
    logits = {f"logits.{part}": value for part, value in said.items()}
    return logits | terms | {"total.loss": total, "gradient": gradient}


def inner_steps(given: Tensors, settings: Settings) -> tuple[Tensor, list[Tensor], Tensor]:
    """Where an episode starts, the points after each step, and where w may be other than zero."""
    model, (what, exact) = model_of(given, settings), fewshot.plan(settings)
    moves, alive = fewshot.ones(model.shapes, what, ops.template.named(given, "mask."))
    whole = fewshot.flat({name: given[f"param.{name}"] for name in model.shapes})
    start = (whole * alive).requires_grad_()
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
    loss = Objective(model_of(given, settings), query).loss(end)
    (gradient,) = torch.autograd.grad(loss, start if exact else end)
    return steps | {"query.loss": loss, "gradient": gradient * alive}


def run_episode_test(given: Tensors, settings: Settings) -> Tensors:
    """The inner steps of a test, and the logits of its query samples."""
    _, points, _ = inner_steps(given, settings)
    support = len(given["support.x"]) if settings["statistics"] == "support" else 0
    shapes = {name: tuple(shape) for name, shape in settings["parameters"]}
    params = views(shapes, points[-1].detach())
    x = torch.cat([given["support.x"][:support], given["query.x"]])
    found = fewshot.normalised_together(settings["layers"], params, x, support or len(given["query.x"]))
    said = {"query.logits": found[support:]}
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
    "cooperative": run_cooperative,
    "episode": run_episode,
    "episode_test": run_episode_test,
    "ticket": run_ticket,
}
