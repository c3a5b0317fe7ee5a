"""Level `networks`: whole networks with their loss: activations, masks, gradients.

Kind `network`. Inputs: x (N, *input_shape), labels (N,), param.*, noise.<gate> (N, K) in mode `gumbel`.
Settings: layers (`describe.py`), input_shape, parameters ([name, shape] in the order of w),
backbone_size (entries of w that are no gate's), gating (mode, tau, gate_grad, detach_gate_input).
Both parts are trained. Outputs: `names.py`; of the deep networks only the logits, the loss, the masks, and
the gradients of parameters and samples.

Source: mathematics.md §2. Derived.
"""

from collections.abc import Callable, Collection, Iterator

import numpy as np

from refimpl.crosscheck.golden.case import NOISE, Arrays, Case
from refimpl.crosscheck.golden.describe import build
from refimpl.crosscheck.golden.draw import network_settings
from refimpl.crosscheck.golden.models import DEEP, model
from refimpl.crosscheck.golden.names import network_outputs
from refimpl.crosscheck.golden.subject import Subject
from refimpl.crosscheck.golden.watch import watched
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.context import GATE_GRADS, MODES, Context, Gating
from refimpl.nn.plan import plan
from refimpl.nn.run import run_backward, run_forward

BATCH = 3
EVERY = tuple(Gating(mode, gate_grad=gate_grad) for mode in MODES for gate_grad in GATE_GRADS)


def cases(seed: int, dtype: str, models: Collection[str], full: bool = False) -> Iterator[Case]:
    """Cases of every model without gates, and with every mode and gate gradient; of deep ones with two."""
    for name in models:
        for gating in (None, *([Gating(gate_grad="active"), Gating("soft")] if name in DEEP else EVERY)):
            network = model(name, gating is not None, full)
            yield _case(name, Subject(network, BATCH), gating, seed, dtype, few=name in DEEP)


def own_cases(own: Subject, seed: int, dtype: str) -> Iterator[Case]:
    """A user's network with every mode and gate gradient, or as it is if it has no gates."""
    for gating in EVERY if own.gated else (None,):
        yield _case(own.name, own, gating, seed, dtype)


def _case(
    name: str, subject: Subject, gating: Gating | None, seed: int, dtype: str, few: bool = False
) -> Case:
    """One network in one mode, or without gates; with few of its outputs, if so wanted."""
    title = f"{name}-{f'{gating.mode}-{gating.gate_grad}' if gating else 'ungated'}"
    draw, mode = subject.draw(title, seed, dtype), gating or Gating()
    inputs = draw.inputs(subject.network, mode, subject.batch, zeros=subject.zeros)
    settings = network_settings(subject.network, mode)
    outputs = network_outputs(settings["layers"], mode.gate_grad)
    if few:
        shown = ("grad.", "loss", f"forward.{settings['layers'][-1]['name']}")
        outputs = tuple(out for out in outputs if out.startswith(shown) or out.endswith(".mask"))
    return Case(f"networks/{title}", "network", dtype, inputs, settings, outputs)


# --- what this package computes ---------------------------------------------------------------------


def gated(case: Case) -> Arrays:
    """Run a chain without a loss; the backward pass begins with the given dy."""
    return _through(case, lambda y, notes: case.inputs["dy"])


def network(case: Case) -> Arrays:
    """Run a chain with cross-entropy on its logits."""

    def loss_gradient(logits: np.ndarray, notes: Arrays) -> np.ndarray:
        dlogits = np.empty_like(logits)
        notes["loss"] = np.array(softmax_cross_entropy(logits, case.inputs["labels"], dlogits))
        return dlogits

    return _through(case, loss_gradient)


def _through(case: Case, loss_gradient: Callable[[np.ndarray, Arrays], np.ndarray]) -> Arrays:
    """Run forward, then backward from the gradient that `loss_gradient` gives for the last output."""
    notes: Arrays = {}
    layers = case.settings["layers"]
    params, context = case.params(), context_of(case, case.named(NOISE))
    grads = {name: np.full_like(array, np.nan) for name, array in params.items()}
    steps = plan(build(layers), case.inputs["x"].shape[1:], context.routing, inside=True)
    y, trace = run_forward(watched(steps, layers, notes), params, case.inputs["x"], context)
    dx = run_backward(trace, loss_gradient(y, notes), params, grads)
    if dx is not None:
        notes["grad.x"] = dx
    return notes | {f"grad.{name}": array for name, array in grads.items()}


def context_of(case: Case, noise: Arrays) -> Context:
    """The gating of the case, with the given noise; both parts are trained."""
    return Context(Gating(**case.settings["gating"]), ("theta", "phi"), noise)


KINDS = {"gated": gated, "network": network}
