"""Fast adaptation at a target node: the gate in stage I, the selected sub-network in stage II.

Stage I trains phi with theta fixed; stage II trains theta with the masks of the adapted phi, and skips
closed channels forward, backward and in the update. Networks without gates have no stage I.

Source: mathematics.md §6 ([MG] section 3.3, eq. 3).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from refimpl.errors import expect_numbers
from refimpl.federated.local import LocalSettings, solve_local
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.kernels.shaping import Shaping
from refimpl.nn.context import FixedShare, Gating
from refimpl.nn.masks import class_information, conditional_share, frozen_gates, node_mask
from refimpl.nn.network import Network
from refimpl.nn.predict import predict
from refimpl.nn.stages import sharing
from refimpl.nn.task import NetworkTask
from refimpl.nn.work import dense_work

NAN = math.nan
LARGEST = 1e100  # larger results count as diverged, since sums of them overflow


@dataclass(frozen=True)
class AdaptSettings:
    """eta_phi, eta_theta: rates of stage I (0 skips it) and stage II; steps: gradient steps in each stage.

    With gating.mode `gumbel` adaptation uses `hard` masks: noise is for exploring during meta-training.
    lam: weight of the term (lam/2) ||. - w||^2 added to the loss, where w is the point at which a stage
    starts (for pfedme's personalised model); with one step it has no effect, since its gradient at w is zero.
    threads: for the samples of a node, where they are many; results do not depend on it.
    """

    eta_phi: float
    eta_theta: float
    steps: int = 1
    gating: Gating = Gating()
    lam: float = 0.0
    threads: int = 1

    def __post_init__(self) -> None:
        expect_numbers("AdaptSettings", eta_phi=self.eta_phi, eta_theta=self.eta_theta, lam=self.lam)
        expect_numbers("AdaptSettings", whole=True, steps=self.steps)


def quiet(gating: Gating) -> Gating:
    """The gating without noise (`hard` for `gumbel`; a `FixedShare` has none) and without shaping."""
    random = gating.mode == "gumbel" and not isinstance(gating, FixedShare)
    return replace(gating, mode="hard" if random else gating.mode, shaping=Shaping())


class Adapted(NamedTuple):
    """Adapted parameters w, and what each of the two stages cost.

    seconds_gate, flops_gate: time and executed FLOPs of the stage that moves gates; seconds_backbone,
    flops_backbone: those of the stage that moves the backbone. If a method prunes, the cost of choosing what
    to keep is given as that of the gate's stage.
    """

    w: np.ndarray
    seconds_gate: float
    seconds_backbone: float
    flops_gate: float
    flops_backbone: float


class Personal(NamedTuple):
    """A node's model: its network, its parameters before the gradient steps, and the adapted ones.

    pruned: whether `start` is the meta-model after pruning, instead of the meta-model itself; weights_off:
    share of the weights that were pruned one by one.
    """

    network: Network
    start: np.ndarray
    adapted: Adapted
    pruned: bool = False
    weights_off: float = 0.0


class Target(NamedTuple):
    """What a method is given at a target node.

    network: the one that was trained, w its meta-model; gated: makes the same network with gates on the
    layers that the key `gates` names; x, y: the node's support samples.
    """

    network: Network
    gated: Callable[[], Network]
    w: np.ndarray
    x: np.ndarray
    y: np.ndarray
    settings: AdaptSettings


def usual_adaptation(target: Target) -> Personal:
    """Both stages of `adapt`, which every method uses that has no `personalise` of its own."""
    adapted = adapt(target.network, target.w, target.x, target.y, target.settings)
    return Personal(target.network, target.w, adapted)


def unknown(network: Network, dtype: np.dtype) -> Personal:
    """The personal model if pruning could not choose what to keep: every parameter is NaN."""
    nothing = np.full(network.layout.size, NAN, dtype)
    return Personal(network, nothing, Adapted(nothing, NAN, NAN, NAN, NAN), pruned=True)


class Evaluation(NamedTuple):
    """Results of a model on samples.

    accuracy: share that is classified rightly; loss: mean cross-entropy; closed (n,): share of gated channels
    off, per sample (0 without gates); flops: executed in all. All are NaN if the model has diverged: see
    `evaluate`.
    """

    accuracy: float
    loss: float
    closed: np.ndarray
    flops: float


class NodeReport(NamedTuple):
    """A target node in numbers.

    node: its name. accuracy_before, loss_before: on its test samples, of the meta-model as the node received
    it; accuracy_after, loss_after: of the adapted model, NaN if it has diverged; accuracy_pruned: of the
    pruned model before any gradient step (NaN if nothing is pruned). sparsity_mean, sparsity_spread: share of
    gated channels off over the test samples of the adapted model (mean, and standard deviation with ddof 0);
    flops_dense, flops_executed: one test sample forward, without gates and with them skipping;
    adapt_flops_dense, adapt_flops_executed: both stages over the support set, ungated stage II against both
    gated stages; seconds_gate, seconds_backbone: how long the stages took; weights_off: share of weights
    pruned one by one, which skips nothing.

    Of the trained gates of the adapted model (NaN without): conditional_share: gated channels whose mask
    differs between test samples; class_information: mutual information of a channel's mask and the class of
    test samples, in bits; accuracy_frozen: with the mask frozen to what is open for most support samples.
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
    accuracy_pruned: float = NAN
    conditional_share: float = NAN
    class_information: float = NAN
    accuracy_frozen: float = NAN

    @property
    def diverged(self) -> bool:
        """Whether the adapted model has diverged: see `evaluate`."""
        return not (math.isfinite(self.accuracy_after) and math.isfinite(self.loss_after))


def divergence(reports: Sequence[NodeReport]) -> str:
    """Where adaptation diverged and what to do about it, in one line; empty if it diverged nowhere."""
    lost = [report.node for report in reports if report.diverged]
    if not lost:
        return ""
    where = f"{len(lost)} of {len(reports)} nodes, first at {lost[0]}"
    return f"adaptation diverged at {where} (not finite); try a smaller eta_theta, eta_phi or adapt_steps"


def adapt(network: Network, w: np.ndarray, x: np.ndarray, y: np.ndarray, settings: AdaptSettings) -> Adapted:
    """Both stages on the support set x, y, from the meta-model w (not changed)."""
    gating, flops_gate = quiet(settings.gating), 0.0
    first = NetworkTask(network, x, y, gating, ("phi",), threads=settings.threads)
    second = replace(first, train=("theta",))
    if settings.steps > 0 and settings.eta_phi > 0:
        first, second = sharing(first, second, settings.steps)
    started = time.perf_counter()
    if network.gates:
        w, flops_gate = _stage(first, w, settings.eta_phi, settings)
    between = time.perf_counter()
    w, flops = _stage(second, w, settings.eta_theta, settings)
    return Adapted(w, between - started, time.perf_counter() - between, flops_gate, flops)


def _stage(task: NetworkTask, w: np.ndarray, eta: float, settings: AdaptSettings) -> tuple[np.ndarray, float]:
    """`settings.steps` gradient steps of rate eta on all samples; the new parameters and executed FLOPs.

    A local problem, without its proximal term unless lam > 0.
    """
    if settings.steps == 0 or eta == 0:
        return w.copy(), 0.0
    local = LocalSettings(settings.lam, eta, settings.steps)
    solution = solve_local(task, w, local, np.random.default_rng(0))
    return solution.w, solution.flops


@np.errstate(all="ignore")  # a model that has diverged is an answer, not a fault
def evaluate(
    network: Network,
    w: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    gating: Gating | None = None,
    threads: int = 1,
) -> Evaluation:
    """Accuracy, loss, sparsity and executed work of w on samples x, y; noise-free masks.

    Results do not depend on the number of threads, among which many samples are divided.
    All are NaN if the model has diverged: if a parameter or a logit is not finite, or the loss exceeds
    `LARGEST`. The predictions of such a model, although `argmax` gives some, mean nothing.
    """
    logits, opened, flops = predict(network, w, x, quiet(gating or Gating()), threads)
    labels = network.check_labels("evaluate", y, len(logits))
    loss = softmax_cross_entropy(logits, labels, np.empty_like(logits))
    if not (np.isfinite(w).all() and np.isfinite(logits).all() and loss <= LARGEST):
        return Evaluation(NAN, NAN, np.full(len(labels), NAN), NAN)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    gated = sum(block.gate.out_channels for block in network.gates)
    return Evaluation(accuracy, loss, 1 - opened.sum(axis=1) / gated if gated else np.zeros(len(y)), flops)


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
    before = evaluate(network, w, *test, settings.gating, settings.threads)
    return report(name, before, personal, support, test, settings)


def report(
    name: str,
    before: Evaluation,
    personal: Personal,
    support: tuple[np.ndarray, np.ndarray],  # x, y
    test: tuple[np.ndarray, np.ndarray],
    settings: AdaptSettings,
) -> NodeReport:
    """Test a node's adapted model, and also the pruned model before the gradient steps if there is one.

    before: the meta-model on the same test samples; support: the samples the node's model was adapted on.
    """
    network, adapted, how = personal.network, personal.adapted, (settings.gating, settings.threads)
    after = evaluate(network, adapted.w, *test, *how)
    pruned = evaluate(network, personal.start, *test, *how).accuracy if personal.pruned else NAN
    dense_adaptation = dense_work(network, len(support[1]), ("theta",)).total * settings.steps
    measures: dict[str, float] = {}
    if not personal.pruned:
        measures = _mask_measures(network, adapted.w, support[0], test, quiet(settings.gating))
    return NodeReport(
        node=name,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        loss_before=before.loss,
        loss_after=after.loss,
        sparsity_mean=float(after.closed.mean()),
        sparsity_spread=float(after.closed.std()),
        flops_dense=dense_work(network, 1).total,
        flops_executed=after.flops / len(test[1]),
        adapt_flops_dense=dense_adaptation,
        adapt_flops_executed=adapted.flops_gate + adapted.flops_backbone,
        seconds_gate=adapted.seconds_gate,
        seconds_backbone=adapted.seconds_backbone,
        weights_off=personal.weights_off,
        accuracy_pruned=pruned,
        **measures,
    )


def _mask_measures(
    network: Network, w: np.ndarray, support: np.ndarray, test: tuple[np.ndarray, np.ndarray], gating: Gating
) -> dict[str, float]:
    """The measures of trained gates by name; none without gates, or where w is not finite."""
    if not network.gates or not np.isfinite(w).all():
        return {}
    mask = node_mask(network, w, test[0], gating)
    frozen = frozen_gates(network, w, node_mask(network, w, support, gating))
    return {
        "conditional_share": conditional_share(mask),
        "class_information": class_information(mask, np.asarray(test[1])),
        "accuracy_frozen": evaluate(network, frozen, *test).accuracy,
    }
