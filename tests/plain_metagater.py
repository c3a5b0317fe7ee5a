"""MetaGater on the network 6-5-3 in plain NumPy, written apart from the package, with room for mistakes.

`wrong` names what is done wrong, as `refimpl golden check` calls it; nothing is wrong by default. It reads
cases of the levels `local` and `algorithm` with mode `hard` and gate gradient `dense`, and of the level
`networks` those of the mlp.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def vector(arrays, case):
    return np.concatenate([np.ravel(arrays[name]) for name, _ in case.settings["parameters"]])


def named(w, case):
    arrays, start = {}, 0
    for name, shape in case.settings["parameters"]:
        stop = start + int(np.prod(shape))
        arrays[name], start = w[start:stop].reshape(shape), stop
    return arrays


LAMBDA = {"twice lambda": 2.0, "half of lambda": 0.5}  # in the gradient of the proximal term
AT_ZERO = {"ReLU'(0)": 1.0, "half of ReLU'(0)": 0.5}  # what the derivative of ReLU was taken as


def passes(pre, wrong, whose):
    """The derivative of ReLU; a mistake may be in the layers or in the gates only."""
    return np.where(pre == 0, AT_ZERO.get(wrong.removesuffix(f" of {whose}"), 0.0), pre > 0)


def loss_and_gradient(w, case, x, labels, wrong="", seen=None):
    """Cross-entropy of the gated network and its gradient, the mask's derivative being sigma'(d).

    `seen` gets the gate's summary and the gradient of x.
    """
    p, tau = named(w, case), case.settings["gating"]["tau"]
    s = x.mean(axis=1, keepdims=True) + 0 * x if wrong == "summary over all channels" else x
    pre = s @ p["fc1.gate.fc1.weight"].T + p["fc1.gate.fc1.bias"]
    units = np.maximum(pre, 0)
    logits = units @ p["fc1.gate.fc2.weight"].T + p["fc1.gate.fc2.bias"]
    sign = -1 if wrong == "two-logit order" else 1
    halves = wrong == "logits in halves"
    off, on = np.split(logits, 2, axis=1) if halves else (logits[:, 0::2], logits[:, 1::2])
    d = sign * (on - off)
    mask = d >= 0 if wrong == "tie rule" else d > 0
    z = x @ p["fc1.weight"].T + p["fc1.bias"]
    hidden = mask * np.maximum(z, 0)
    out = hidden @ p["fc2.weight"].T + p["fc2.bias"]

    shifted = out - out.max(axis=1, keepdims=True)
    share = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    one_hot = np.eye(out.shape[1])[labels]
    count = 1 if wrong == "mean against sum loss" else len(labels)
    loss = -np.sum(one_hot * np.log(share)) / count

    dout = (share - one_hot) / count
    dhidden = dout @ p["fc2.weight"]
    learns = mask * z > 0 if wrong == "mask before/after ReLU" else z > 0
    dmask = dhidden * learns * z
    sigma = 1 / (1 + np.exp(-d / tau))
    dd = sign * dmask * sigma * (1 - sigma) / tau
    dlogits = np.hstack([-dd, dd]) if halves else np.stack([-dd, dd], axis=2).reshape(len(x), -1)
    dpre = dlogits @ p["fc1.gate.fc2.weight"] * passes(pre, wrong, "gates")
    dz = dhidden * mask * passes(z, wrong, "layers")
    if seen is not None:
        ds = dpre @ p["fc1.gate.fc1.weight"] * (wrong != "detached gate input")
        ds = ds.mean(axis=1, keepdims=True) + 0 * x if wrong == "summary over all channels" else ds
        seen |= {"forward.fc1.gate.summary": s, "grad.x": dz @ p["fc1.weight"] + ds}
    gradient = {
        "fc1.weight": dz.T @ x,
        "fc1.bias": dz.sum(axis=0),
        "fc2.weight": dout.T @ hidden,
        "fc2.bias": dout.sum(axis=0),
        "fc1.gate.fc1.weight": dpre.T @ s,
        "fc1.gate.fc1.bias": dpre.sum(axis=0),
        "fc1.gate.fc2.weight": dlogits.T @ units,
        "fc1.gate.fc2.bias": dlogits.sum(axis=0),
    }
    return loss, vector(gradient, case)


def network(case, wrong=""):
    """Some outputs of a whole network in one pass."""
    seen = {}
    start = vector(case.params(), case)
    loss, gradient = loss_and_gradient(start, case, case.inputs["x"], case.inputs["labels"], wrong, seen)
    gradients = {f"grad.{name}": value for name, value in named(gradient, case).items()}
    return {"loss": np.asarray(loss), **gradients, **seen}


def descend(case, centre, x, labels, wrong=""):
    """Loss, gradient and end point of every local step, from the centre."""
    eta, lam = case.settings["eta"], case.settings["lam"]
    pull = lam * LAMBDA.get(wrong.removesuffix(", also in g"), 1)
    w, steps = centre, []
    for batch, targets in zip(x, labels, strict=True):
        loss, gradient = loss_and_gradient(w, case, batch, targets, wrong)
        w = w - eta * (gradient + pull * (w - centre))
        steps.append((loss, gradient, w))
    return steps


def local(case, wrong=""):
    start = vector(case.params(), case)
    steps = descend(case, start, case.inputs["x"], case.inputs["labels"], wrong)
    return {
        f"step{s}.{what}": np.asarray(value)
        for s, step in enumerate(steps, start=1)
        for what, value in zip(("loss", "gradient", "w"), step, strict=True)
    }


def shrink(case, v, step, wrong=""):
    """Prox of the group lasso on phi."""
    u, rho = v.copy(), case.settings["penalty"]["rho"]
    wrongly = {"weight alone": rho, "step alone": step, "step twice": step * step * rho}
    threshold = wrongly.get(wrong, step * rho)
    ends, offset = case.inputs["indptr"], case.settings["backbone_size"]
    for start, stop in pairwise(ends):
        group = offset + case.inputs["indices"][start:stop]
        if wrong == "gate bias outside its group":
            group = group[:-2]  # a channel's two biases are its last entries
        norm, weight = np.linalg.norm(v[group]), 1 if wrong == "group weight" else np.sqrt(len(group))
        keep = max(0.0, 1 - threshold * weight / norm) if norm > 0 else 0.0
        u[group] = keep * v[group]
    return u


def algorithm(case, wrong=""):
    """Rounds with the schedule of Ghadimi and Lan."""
    beta, lam = case.settings["schedule"]["beta"], case.settings["lam"]
    x = ag = vector(case.params(), case)
    found = {}
    for k in range(1, case.settings["rounds"] + 1):
        late = wrong in ("late momentum", "late round")
        a, long_step = 2 / (k if late else k + 1), (k - (wrong == "late round")) * beta / 2
        md = (1 - a) * ag + a * x
        if wrong in ("md is x", "md is xag"):
            md = x if wrong == "md is x" else ag
        centre = {"nodes at x": x, "nodes at xag": ag}.get(wrong, md)
        ends = []
        for node in range(case.settings["nodes"]):
            chosen = case.inputs["batches"][k - 1, node]
            data, labels = case.inputs[f"node{node}.x"], case.inputs[f"node{node}.labels"]
            ends.append(descend(case, centre, data[chosen], labels[chosen], wrong)[-1][2])
        sizes = [len(case.inputs[f"node{node}.labels"]) for node in range(len(ends))]
        mean = np.average(ends, axis=0, weights=sizes if wrong == "mean weighted by |D_i|" else None)
        g = lam * (centre - mean) * (LAMBDA[wrong.removesuffix(", also in g")] if "also in g" in wrong else 1)
        long_prox = beta if wrong == "x's prox with b" else long_step
        short_prox = long_step if wrong in ("xag's prox with l", "xag with l") else beta
        short_step = long_step if wrong == "xag with l" else beta
        base = {"xag from x": x, "xag from xag": ag}.get(wrong, md)
        x = shrink(case, (md if wrong == "x from md" else x) - long_step * g, long_prox, wrong)
        ag = shrink(case, base - short_step * g, short_prox, wrong)
        for what, value in (("md", md), ("g", 2 * g if wrong == "stored g" else g), ("x", x), ("xag", ag)):
            found[f"round{k}.{what}"] = value
    return found
