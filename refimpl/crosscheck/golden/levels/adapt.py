"""Level `adapt`: the two stages at a target node.

Kind `adapt`. Inputs: param.* (the meta-model), x and labels: the support set; x_test. Settings: those of a
network, eta_phi, eta_theta, steps, lam. Masks have no noise. Stage I (none without gates): `steps` times
phi <- phi - eta_phi grad_phi L(theta, phi) on the whole support set, theta fixed. Stage II: the same with
theta and eta_theta, the masks being those of the adapted phi; unless the mode is `soft` they are constants
in it: no gradient passes through a gate. With lam > 0 the loss has the term (lam/2)||w - w_s||^2, w_s where
the stage starts. Outputs: before.logits of x_test, stage1.w, stage2.w as vectors, after.logits.

Source: mathematics.md §6. Derived.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.draw import network_settings
from refimpl.crosscheck.golden.levels.local import start
from refimpl.crosscheck.golden.models import model, tiny
from refimpl.crosscheck.golden.subject import Subject
from refimpl.federated.adapt import AdaptSettings, adapt
from refimpl.nn.context import Gating
from refimpl.nn.predict import predict

TEST = 4
OUTPUTS = ("before.logits", "stage1.w", "stage2.w", "after.logits")


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """Cases with one and several steps, with hard, ste and soft masks, and without gates."""
    for title, network, gating, steps, lam in (
        ("hard", tiny(), Gating(), 1, 0.0),
        ("active", tiny(), Gating(gate_grad="active"), 1, 0.0),
        ("ste-steps", tiny(), Gating("ste"), 3, 0.0),
        ("soft-prox", tiny(), Gating("soft"), 3, 0.8),
        ("ungated", tiny(gated=False), Gating(), 2, 0.0),
        ("digits", model("digits"), Gating(), 1, 0.0),
    ):
        yield _case(title, Subject(network), gating, TEST, steps, lam, seed, dtype)


def own_cases(own: Subject, seed: int, dtype: str) -> Iterator[Case]:
    """Two steps with a user's network, in every mode whose masks need no noise."""
    for title, gating in own.modes().items():
        if gating.mode != "gumbel":
            yield _case(title, own, gating, own.batch, 2, 0.0, seed, dtype)


def _case(
    title: str, subject: Subject, gating: Gating, test: int, steps: int, lam: float, seed: int, dtype: str
) -> Case:
    """Adaptation on two batches, with so many samples to test it."""
    draw, network = subject.draw(f"adapt {title}", seed, dtype), subject.network
    inputs = draw.inputs(network, gating, 2 * subject.batch, zeros=subject.zeros)
    inputs["x_test"], _ = draw.samples(network, test)
    rates = {"eta_phi": 0.3, "eta_theta": 0.1, "steps": steps, "lam": lam}
    return Case(f"adapt/{title}", "adapt", dtype, inputs, network_settings(network, gating) | rates, OUTPUTS)


# --- what this package computes ---------------------------------------------------------------------


def compute(case: Case) -> Arrays:
    """Both stages; stage I alone is an adaptation with a second rate of zero."""
    network, w = start(case)
    gating = Gating(**case.settings["gating"])
    rates = {key: case.settings[key] for key in ("eta_phi", "eta_theta", "steps", "lam")}
    both, support = AdaptSettings(**rates, gating=gating), (case.inputs["x"], case.inputs["labels"])
    first = adapt(network, w, *support, replace(both, eta_theta=0.0)).w
    second = adapt(network, w, *support, both).w

    def logits(at: np.ndarray) -> np.ndarray:
        return predict(network, at, case.inputs["x_test"], gating).logits

    return {
        "before.logits": logits(w),
        "stage1.w": first,
        "stage2.w": second,
        "after.logits": logits(second),
    }


KINDS = {"adapt": compute}
