"""Networks in PyTorch: every result is noted under its name, and gradients are PyTorch's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from refimpl.crosscheck.template.head import Arrays, computes, named, parameters

LAYERS: dict[str, Callable[[Arrays, Any, Arrays], Any]] = {
    "conv2d": lambda e, x, p: F.conv2d(
        x, p["weight"], p.get("bias"), e["stride"], e["padding"], e.get("dilation", 1), e.get("groups", 1)
    ),
    "linear": lambda e, x, p: F.linear(x, p["weight"], p.get("bias")),
    "max_pool2d": lambda e, x, p: F.max_pool2d(x, e["kernel"], e["stride"], e.get("padding", 0)),
    "avg_pool2d": lambda e, x, p: F.avg_pool2d(x, e["kernel"], e["stride"], e.get("padding", 0)),
    "global_avg_pool2d": lambda e, x, p: summary(x),
    "flatten": lambda e, x, p: x.flatten(1),
    "relu": lambda e, x, p: F.relu(x),
    "leaky_relu": lambda e, x, p: F.leaky_relu(x, e["slope"]),
    "softplus": lambda e, x, p: torch.logaddexp(x, torch.zeros_like(x)),  # PyTorch's is linear above 20
    "tanh": lambda e, x, p: torch.tanh(x),
    "batch_norm2d": lambda e, x, p: F.batch_norm(x, None, None, p["weight"], p["bias"], True, eps=e["eps"]),
    "frozen_norm2d": lambda e, x, p: F.batch_norm(
        x, p["running_mean"].detach(), p["running_var"].detach(), p["weight"], p["bias"], eps=e["eps"]
    ),
    "group_norm": lambda e, x, p: F.group_norm(x, e["groups"], p["weight"], p["bias"], e["eps"]),
}


class Pass:
    """One pass through a network; notes: results by name, with their gradients to come."""

    def __init__(self, p: Arrays, gating: Arrays, noise: Arrays, gates_learn: bool = True) -> None:
        self.p, self.gating, self.noise, self.notes = p, gating, noise, dict[str, Any]()
        self.gates_learn = gates_learn or gating["mode"] == "soft"

    def chain(self, layers: Sequence[Arrays], x: Any, mask: Any = None) -> Any:
        """One layer after the other; a mask closes channels behind each of them."""
        for entry in layers:
            x = self.layer(entry, x)
            x = x if mask is None else x * over_pixels(mask.detach(), x)
            self.notes[entry["name"]] = x
        return x

    def layer(self, entry: Arrays, x: Any) -> Any:
        """One layer, gated and residual blocks included."""
        if entry["type"] == "gated":
            return self.gated(entry, x)
        if entry["type"] == "residual":
            return self.chain(entry["body"], x) + self.chain(entry["shortcut"], x)
        return LAYERS[entry["type"]](entry, x, named(self.p, f"{entry['name']}."))

    def gated(self, entry: Arrays, x: Any) -> Any:
        """M(x) * body(x). With gate gradient `active` closed channels are zero from the first layer on."""
        mask = self.gate(entry["gate"], x)
        active = self.gating["gate_grad"] == "active" and self.gating["mode"] != "soft"
        z = self.chain(entry["body"], x, mask if active else None)
        return z * over_pixels(mask if self.gates_learn else mask.detach(), z)

    def gate(self, gate: Arrays, x: Any) -> Any:
        """The mask (N, K) that a gate decides on, with the derivative of its mode."""
        name, mode = gate["name"], self.gating["mode"]
        s = summary(x.detach() if self.gating["detach_gate_input"] else x)
        s = self.layer(gate["norm"], s) if "norm" in gate else s
        hidden = F.relu(F.linear(s, self.p[f"{name}.fc1.weight"], self.p[f"{name}.fc1.bias"]))
        logits = F.linear(hidden, self.p[f"{name}.fc2.weight"], self.p[f"{name}.fc2.bias"])
        d = margin(logits) + self.noise.get(name, 0)
        soft = d if mode == "ste" else sigmoid(d / self.gating["tau"])
        mask = soft if mode == "soft" else (d > 0).to(d.dtype) + (soft - soft.detach())
        found = {"summary": s, "hidden": hidden, "logits": logits, "mask": mask}
        self.notes.update({f"{name}.{key}": value for key, value in found.items()})
        return mask


def summary(x: Any) -> Any:
    """The mean of every channel; vectors are their own summary."""
    return x.mean((2, 3)) if x.dim() == 4 else x


def margin(logits: Any) -> Any:
    """On minus off, from a channel's two logits side by side."""
    return logits[:, 1::2] - logits[:, 0::2]


def sigmoid(t: Any) -> Any:
    """1 / (1 + exp(-t)); the derivative of PyTorch's own, y (1 - y), has no digits where y is nearly 1."""
    return F.logsigmoid(t).exp()


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The mean loss over the batch."""
    return F.cross_entropy(logits, labels)


def over_pixels(mask: Any, like: Any) -> Any:
    """The mask (N, K) with as many axes as `like`."""
    return mask.reshape(*mask.shape, *(1 for _ in like.shape[2:]))


def tensors(arrays: Arrays, wanted: bool = False) -> Arrays:
    """The arrays as tensors; `wanted`: with gradients."""
    found = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    return {name: value.requires_grad_(wanted) for name, value in found.items()}


def gradients(result: Any, sources: Arrays, dy: Any = None) -> Arrays:
    """The gradient of a result, times dy, in every source that has one."""
    own = {name: source for name, source in sources.items() if source.requires_grad}
    found = torch.autograd.grad(result, list(own.values()), dy, materialize_grads=True)
    return {name: value.numpy() for name, value in zip(own, found, strict=True)}


@computes("network", "gated")
def network(given: Arrays, settings: Arrays) -> Arrays:
    """Everything of a network with its loss, or of a gated block under dy."""
    p, x = tensors(named(given, "param."), True), tensors({"x": given["x"]}, True)["x"]
    run = Pass(p, settings["gating"], tensors(named(given, "noise.")))
    y = run.chain(settings["layers"], x)
    labelled = "labels" in given
    result = cross_entropy(y, torch.from_numpy(given["labels"])) if labelled else y
    sources = {f"backward.{name.removesuffix('.mask')}": value for name, value in run.notes.items()}
    sources |= {f"grad.{name}": value for name, value in p.items()} | {"grad.x": x}
    whole = settings["gating"]["mode"] != "soft"
    notes = {name: value.detach().numpy() for name, value in run.notes.items()}
    found = {f"forward.{n}": v != 0 if whole and n.endswith(".mask") else v for n, v in notes.items()}
    dy = None if labelled else torch.from_numpy(given["dy"])
    return {**found, "loss": result.detach().numpy(), **gradients(result, sources, dy)}


@computes(*LAYERS)
def one_layer(given: Arrays, settings: Arrays) -> Arrays:
    """A layer by itself: y and its gradients; a mask closes channels of y."""
    sources = tensors({name: given[name] for name in ("x", "weight", "bias") if name in given}, True)
    p = tensors(given) | sources
    y = LAYERS[settings["kind"]](settings, p["x"], p)
    y = y * over_pixels(p["mask"].to(y.dtype), y) if "mask" in given else y
    found = gradients(y, {f"grad.{name}": value for name, value in sources.items()}, p["dy"])
    return {"y": y.detach().numpy(), **found}


@computes("cross_entropy")
def only_loss(given: Arrays, settings: Arrays) -> Arrays:
    """The loss by itself."""
    (logits,) = tensors({"logits": given["logits"]}, True).values()
    loss = cross_entropy(logits, torch.from_numpy(given["labels"]))
    return {"loss": loss.detach().numpy(), **gradients(loss, {"grad.logits": logits})}


def loss_at(w: Any, batch: tuple[Any, Any, Arrays], settings: Arrays, gates_learn: bool = True) -> Any:
    """The loss of the network with parameters w, a tensor, on a batch: x, labels, noise."""
    x, labels, noise = batch
    run = Pass(parameters(w, settings), settings["gating"], tensors(noise), gates_learn)
    return cross_entropy(run.chain(settings["layers"], torch.from_numpy(x)), torch.from_numpy(labels))


def loss_and_gradient(
    w: Any, x: Any, labels: Any, noise: Arrays, settings: Arrays, gates_learn: bool = True
) -> tuple[Any, Any]:
    """The loss of the network with parameters w on a batch, and its gradient."""
    (point,) = tensors({"w": w}, True).values()
    loss = loss_at(point, (x, labels, noise), settings, gates_learn)
    return loss.detach().numpy(), gradients(loss, {"w": point})["w"]


def logits_of(w: Any, x: Any, settings: Arrays) -> Any:
    """The network's output for x."""
    run = Pass(parameters(torch.from_numpy(w), settings), settings["gating"], {})
    return run.chain(settings["layers"], torch.from_numpy(x)).detach().numpy()


def maml_gradient(w: Any, batches: Sequence[Any], alpha: float, settings: Arrays) -> Any:
    """The gradient in w of the last batch's loss after a step of size alpha on each of the others."""
    (start,) = tensors({"w": w}, True).values()
    ahead = start
    for batch in batches[:-1]:
        (slope,) = torch.autograd.grad(loss_at(ahead, batch, settings), ahead, create_graph=True)
        ahead = ahead - alpha * slope
    return gradients(loss_at(ahead, batches[-1], settings), {"w": start})["w"]
