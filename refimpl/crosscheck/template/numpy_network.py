"""Networks: a chain of layers forward, then backward, with everything that passes noted under its name."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refimpl.crosscheck.template.head import Arrays, computes, named, parameters, vector
from refimpl.crosscheck.template.numpy_layers import LAYERS, cross_entropy, sigmoid

Through = tuple[Any, Callable[[Any], Any]]  # an output, and what takes its gradient back to the input's


class Pass:
    """One pass through a network; notes: outputs and gradients by name."""

    def __init__(self, p: Arrays, gating: Arrays, noise: Arrays, gates_learn: bool = True) -> None:
        self.p, self.gating, self.noise, self.notes = p, gating, noise, dict[str, Any]()
        self.gates_learn = gates_learn or gating["mode"] == "soft"

    def chain(self, layers: Sequence[Arrays], x: Any, mask: Any = None) -> Through:
        """One layer after the other; a mask closes channels behind each of them."""
        backs = []
        for entry in layers:
            x, back = self.layer(entry, x)
            if mask is not None:
                x = self.notes[f"forward.{entry['name']}"] = x * over_pixels(mask, x)
            backs.append((entry, back))

        def backward(dy: Any) -> Any:
            for entry, back in reversed(backs):
                dy = dy if mask is None else dy * over_pixels(mask, dy)
                self.notes[f"backward.{entry['name']}"] = dy
                dy = back(dy)
            return dy

        return x, backward

    def layer(self, entry: Arrays, x: Any) -> Through:
        """One layer, gated and residual blocks included."""
        if entry["type"] == "gated":
            y, back = self.gated(entry, x)
        elif entry["type"] == "residual":
            (one, back_one), (two, back_two) = (self.chain(entry[b], x) for b in ("body", "shortcut"))
            y, back = one + two, lambda dy: back_one(dy) + back_two(dy)
        else:
            y, back = self.plain(entry, x)
        self.notes[f"forward.{entry['name']}"] = y
        return y, back

    def plain(self, entry: Arrays, x: Any) -> Through:
        """A layer without layers inside; the gradients of its parameters are noted."""
        y, back = LAYERS[entry["type"]](entry, x, named(self.p, f"{entry['name']}."))

        def backward(dy: Any) -> Any:
            dx, gradients = back(dy)
            self.notes.update({f"grad.{entry['name']}.{name}": value for name, value in gradients.items()})
            return dx

        return y, backward

    def gated(self, entry: Arrays, x: Any) -> Through:
        """M(x) * body(x). With gate gradient `active` closed channels are zero from the first layer on."""
        mask, gate_back = self.gate(entry["gate"], x)
        active = self.gating["gate_grad"] == "active" and self.gating["mode"] != "soft"
        z, body_back = self.chain(entry["body"], x, mask if active else None)

        def backward(dy: Any) -> Any:
            dx = body_back(dy * over_pixels(mask, dy))
            if not self.gates_learn:
                return dx
            dmask = (dy * z).reshape(*mask.shape, -1).sum(2)
            ds = gate_back(dmask)
            return dx if self.gating["detach_gate_input"] else dx + ds

        return z * over_pixels(mask, z), backward

    def gate(self, gate: Arrays, x: Any) -> Through:
        """The mask (N, K) that a gate decides on, and what takes its gradient back to x."""
        name, tau, mode = gate["name"], self.gating["tau"], self.gating["mode"]
        s = x.mean((2, 3)) if x.ndim == 4 else x
        pre, back_one = self.plain({"type": "linear", "name": f"{name}.fc1"}, s)
        hidden = np.maximum(pre, 0)
        logits, back_two = self.plain({"type": "linear", "name": f"{name}.fc2"}, hidden)
        d = logits[:, 1::2] - logits[:, 0::2] + self.noise.get(name, 0)
        soft = sigmoid(d / tau)
        mask = soft if mode == "soft" else d > 0
        found = {"summary": s, "hidden": hidden, "logits": logits, "mask": mask}
        self.notes.update({f"forward.{name}.{key}": value for key, value in found.items()})

        def backward(dmask: Any) -> Any:
            self.notes[f"backward.{name}"] = dmask
            dd = dmask if mode == "ste" else dmask * soft * (1 - soft) / tau
            dlogits = np.stack([-dd, dd], 2).reshape(logits.shape)
            ds = back_one(back_two(dlogits) * (pre > 0))
            if x.ndim == 2:
                return ds
            return np.broadcast_to(ds[:, :, None, None] / (x.shape[2] * x.shape[3]), x.shape)

        return mask, backward


def over_pixels(mask: Any, like: Any) -> Any:
    """The mask (N, K) with as many axes as `like`, in its dtype."""
    return mask.reshape(*mask.shape, *(1 for _ in like.shape[2:])).astype(like.dtype)


@computes("network", "gated")
def network(given: Arrays, settings: Arrays) -> Arrays:
    """Everything of a network with its loss, or of a gated block under dy."""
    run = Pass(named(given, "param."), settings["gating"], named(given, "noise."))
    y, back = run.chain(settings["layers"], given["x"])
    if "labels" in given:
        run.notes["loss"], dy = cross_entropy(y, given["labels"])
    else:
        dy = given["dy"]
    run.notes["grad.x"] = back(dy)
    return run.notes


def loss_and_gradient(
    w: Any, x: Any, labels: Any, noise: Arrays, settings: Arrays, gates_learn: bool = True
) -> tuple[Any, Any]:
    """The loss of the network with parameters w on a batch, and its gradient."""
    run = Pass(parameters(w, settings), settings["gating"], noise, gates_learn)
    y, back = run.chain(settings["layers"], x)
    loss, dy = cross_entropy(y, labels)
    back(dy)
    return loss, vector(named(run.notes, "grad."), settings).astype(w.dtype)


def logits_of(w: Any, x: Any, settings: Arrays) -> Any:
    """The network's output for x."""
    return Pass(parameters(w, settings), settings["gating"], {}).chain(settings["layers"], x)[0]


maml_gradient: Any = None  # needs second derivatives; the file for PyTorch has them
