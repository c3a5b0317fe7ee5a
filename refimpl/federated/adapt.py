"""Fast adaptation at a target node: the gate in stage I, the selected sub-network in stage II.

Stage I trains phi with theta fixed; stage II trains theta with the masks of the adapted phi, and skips
closed channels forward, backward and in the update. Networks without gates have no stage I.

Source: mathematics.md §6 ([MG] section 3.3, eq. 3).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.context import Context, Gating
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.work import Work, dense_work, executed_work

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class AdaptSettings:
    """eta_phi, eta_theta: rates of stages I (0 leaves it out) and II; steps: gradient steps in each stage.

    gating.mode `gumbel` adapts with `hard` masks: noise is for exploring during meta-training.
    lam: weight of (lam/2) ||. - w||^2 added to the loss, w the meta-model (pfedme's personalised model);
    with one step it has no effect, as its gradient at w is zero.
    """

    eta_phi: float
    eta_theta: float
    steps: int = 1
    gating: Gating = Gating()
    lam: float = 0.0

    def __post_init__(self) -> None:
        if min(self.eta_phi, self.eta_theta, self.steps, self.lam) < 0:
            raise InputError(
                "AdaptSettings: rates, steps and lam must not be negative, got eta_phi="
                f"{self.eta_phi}, eta_theta={self.eta_theta}, steps={self.steps}, lam={self.lam}"
            )


def quiet(gating: Gating) -> Gating:
    """The gating without noise: `hard` masks instead of `gumbel` ones."""
    return replace(gating, mode="hard") if gating.mode == "gumbel" else gating


class Adapted(NamedTuple):
    """Adapted parameters, and what each stage cost: seconds and executed FLOPs.

    Where a method prunes, choosing what to keep is in the place of the gate's stage.
    """

    w: np.ndarray
    seconds_gate: float
    seconds_backbone: float
    work_gate: Work
    work_backbone: Work


class Personal(NamedTuple):
    """A node's model: the network it runs in, its parameters before the gradient steps, and adapted.

    weights_off: share of the weights that were pruned one by one.
    """

    network: Network
    start: np.ndarray
    adapted: Adapted
    weights_off: float = 0.0


class Evaluation(NamedTuple):
    """A model on samples. closed (n,): share of gated channels off, per sample (zeros without gates)."""

    accuracy: float
    loss: float
    closed: np.ndarray
    work: Work


class NodeReport(NamedTuple):
    """A target node in numbers.

    sparsity_mean/_spread: share of gated channels off over the test samples of the adapted model (mean,
    standard deviation); flops_dense/_executed: one test sample forward, without gates and with them
    skipping; adapt_flops_*: both stages over the support set, ungated stage II against both gated stages;
    weights_off: share of weights pruned one by one, which skips nothing.
    """

    node: str
    accuracy_before: float
    accuracy_after: float
    loss_before: float
    loss_after: float
    sparsity_mean: float
    sparsity_spread: float
    flops_dense: float
    flops_executed: float
    adapt_flops_dense: float
    adapt_flops_executed: float
    seconds_gate: float
    seconds_backbone: float
    weights_off: float = 0.0


def adapt(network: Network, w: np.ndarray, x: np.ndarray, y: np.ndarray, settings: AdaptSettings) -> Adapted:
    """Both stages on the support set x, y, from the meta-model w (not changed)."""
    w, layout, steps = w.copy(), network.layout, settings.steps
    gating, gate_work = quiet(settings.gating), Work()
    started = time.perf_counter()
    if network.gates and settings.eta_phi > 0:
        objective = NetworkObjective(network, x, y, Context(gating, ("phi",)))
        gate_work = descend(objective, w, layout.phi, settings.eta_phi, steps, settings.lam)
    between = time.perf_counter()
    objective = NetworkObjective(network, x, y, Context(gating, ("theta",)))
    backbone_work = descend(objective, w, layout.theta, settings.eta_theta, steps, settings.lam)
    finished = time.perf_counter()
    return Adapted(w, between - started, finished - between, gate_work, backbone_work)


def descend(
    objective: NetworkObjective,
    w: np.ndarray,
    where: slice,
    eta: float,
    steps: int,
    lam: float = 0.0,
    kept: np.ndarray | None = None,
) -> Work:
    """`steps` gradient steps on the entries `where` of w, in place; returns the work done.

    The steps have rate eta and descend the loss plus (lam/2) ||. - w||^2; kept (d,) bool: entries that may
    move (None: all).
    """
    gradient, work = np.empty_like(w), Work()
    centre = w.copy() if lam > 0 else w
    for _ in range(steps):
        objective(w, gradient)
        if lam > 0:
            gradient += w.dtype.type(lam) * (w - centre)
        if kept is not None:
            gradient *= kept
        w[where] -= w.dtype.type(eta) * gradient[where]
        work = work + objective.work
    return work


def evaluate(
    network: Network, w: np.ndarray, x: np.ndarray, y: np.ndarray, gating: Gating | None = None
) -> Evaluation:
    """Accuracy, loss, sparsity and executed work of w on samples x, y; noise-free masks."""
    context = Context(quiet(gating or Gating()))
    correct, total_loss, work = 0, 0.0, Work()
    closed = np.zeros(len(y))
    for start in range(0, len(y), EVALUATION_BATCH):
        part = slice(start, start + EVALUATION_BATCH)
        logits, trace = network.forward(w, x[part], context)
        masks = network.masks(trace)
        labels = np.ascontiguousarray(y[part], dtype=np.int64)
        correct += int((logits.argmax(axis=1) == labels).sum())
        total_loss += softmax_cross_entropy(logits, labels, np.empty_like(logits)) * len(labels)
        closed[part] = closed_per_sample(masks, len(labels))
        work = work + executed_work(network, masks, len(labels), context)
    return Evaluation(correct / len(y), total_loss / len(y), closed, work)


def closed_per_sample(masks: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Share of gated channels that are off, for each of `count` samples; smooth masks close nothing."""
    if not masks:
        return np.zeros(count)
    off = np.concatenate([mask == 0 for mask in masks.values()], axis=1)
    return off.mean(axis=1)


def report_node(
    name: str,
    network: Network,
    w: np.ndarray,
    support: tuple[np.ndarray, np.ndarray],  # x, y
    test: tuple[np.ndarray, np.ndarray],
    settings: AdaptSettings,
) -> NodeReport:
    """Adapt at one node on `support`, then test on `test`."""
    personal = Personal(network, w, adapt(network, w, *support, settings))
    return report(name, personal, len(support[1]), test, settings)


def report(
    name: str,
    personal: Personal,
    support_size: int,
    test: tuple[np.ndarray, np.ndarray],  # x, y
    settings: AdaptSettings,
) -> NodeReport:
    """Test a node's model, before and after adaptation; `support_size`: samples it was adapted on."""
    network, adapted, gating = personal.network, personal.adapted, quiet(settings.gating)
    before = evaluate(network, personal.start, *test, gating)
    after = evaluate(network, adapted.w, *test, gating)
    count = len(test[1])
    dense_adaptation = dense_work(network, support_size, ("theta",)).total * settings.steps
    return NodeReport(
        node=name,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        loss_before=before.loss,
        loss_after=after.loss,
        sparsity_mean=float(after.closed.mean()),
        sparsity_spread=float(after.closed.std()),
        flops_dense=dense_work(network, 1).total,
        flops_executed=after.work.total / count,
        adapt_flops_dense=dense_adaptation,
        adapt_flops_executed=adapted.work_gate.total + adapted.work_backbone.total,
        seconds_gate=adapted.seconds_gate,
        seconds_backbone=adapted.seconds_backbone,
        weights_off=personal.weights_off,
    )
