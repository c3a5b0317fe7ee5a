"""Wrong losses of a team: what they give for a case of the level `cooperative`.

A term is worked out from the logits, with another divergence or with a teacher who learns too, and its
gradient goes back through the layers of the part. Source: mathematics.md §15.2. Derived.
"""

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.levels.cooperative import arrays_of
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.suspects.contract import Suspect, altered, suspect

_WORDS = {
    "a": "what the Leader teaches",
    "b": "what Teammates teach each other",
    "c": "what they teach their sub-networks",
}


class Teaching(NamedTuple):
    """A wrong way to teach: KL(student || teacher), or a teacher who gets a gradient from the divergence."""

    turned: bool = False
    attached: bool = False

    def outputs(self, case: Case) -> Arrays:
        """The terms, their sum and its gradient; the cross-entropy and the logits are right."""
        found, soft = run(altered(case, weights=dict.fromkeys("abc", 0.0))), case.settings["temperature"]
        slopes: Arrays = {}
        for lesson in case.settings["students"]:
            for teacher, letter in lesson["teachers"].items():
                part, weight = lesson["part"], case.settings["weights"][letter]
                first, second = (found[f"logits.{name}"] for name in (teacher, part))
                if self.turned:
                    first, second = second, first
                loss, *slope = _divergence(first, second, soft)
                of_teacher, of_part = slope[::-1] if self.turned else slope
                found[f"{part}.from.{teacher}.loss"] = np.array(weight * loss)
                found["total.loss"] = found["total.loss"] + weight * loss
                slopes[part] = slopes.get(part, 0.0) + weight * of_part
                if self.attached:
                    slopes[teacher] = slopes.get(teacher, 0.0) + weight * of_teacher
        for part, dy in slopes.items():
            found["gradient"] = found["gradient"] + _back(case, part, dy)
        return {name: value.astype(case.dtype) for name, value in found.items()}


def _divergence(one: np.ndarray, other: np.ndarray, soft: float) -> tuple[float, np.ndarray, np.ndarray]:
    """T^2 KL(p || q), mean over the batch, and its gradients in the logits of p and of q."""
    log_p, log_q = (z / soft - np.log(np.exp(z / soft).sum(axis=1, keepdims=True)) for z in (one, other))
    p, q, ratio = np.exp(log_p), np.exp(log_q), log_p - log_q
    each = (p * ratio).sum(axis=1, keepdims=True)
    share = soft / len(one)
    return float(soft**2 * each.mean()), share * p * (ratio - each), share * (q - p)


def _back(case: Case, part: str, dy: np.ndarray) -> np.ndarray:
    """The gradient that dy, in the logits of a part, has in the parameters of the team."""
    own = case.settings["parts"][part]
    given = {**arrays_of(case, part), "x": case.inputs["x"], "dy": dy.astype(case.dtype)}
    settings = {key: case.settings[key] for key in ("input_shape", "gating")} | {"layers": own["layers"]}
    pairs = {whole: f"grad.{name}" for name, whole in own["parameters"]}
    learns = [name for name in pairs.values() if not name.endswith(("running_mean", "running_var"))]
    grads = run(Case("ops/part", "gated", case.dtype, given, settings, tuple(learns)))
    return np.concatenate(
        [
            np.ravel(grads.get(pairs.get(name, ""), np.zeros(shape)))
            for name, shape in case.settings["parameters"]
        ]
    )


def wrong_teaching(case: Case) -> Iterator[Suspect]:
    """The divergence lacks T^2 or is a mean over classes too, is turned, or teaches the teacher."""
    used = {
        letter for student in case.settings.get("students", ()) for letter in student["teachers"].values()
    }
    if case.kind != "cooperative" or not used:
        return
    weights, soft = case.settings["weights"], case.settings["temperature"]
    classes = case.settings["layers"][-1]["out"]
    for rule, factor, hint in (
        ("temperature squared", soft**-2, "the divergence lacked the factor T^2"),
        ("mean over classes", 1 / classes, "the divergence was a mean over the classes too; they are summed"),
    ):
        yield suspect(rule, hint, altered(case, weights={key: w * factor for key, w in weights.items()}))
    for one, other in combinations("abc", 2):
        if {one, other} & used and weights[one] != weights[other]:
            hint = f"{one}, the weight of {_WORDS[one]}, was exchanged with {other}, that of {_WORDS[other]}"
            changed = altered(case, weights={**weights, one: weights[other], other: weights[one]})
            yield suspect("weights of the team exchanged", hint, changed)
    hint = "the divergence was KL(student || teacher); it is KL(teacher || student)"
    yield Suspect("divergence turned round", hint, partial(Teaching(turned=True).outputs, case))
    hint = "a gradient passed into the teachers; what they say is constant"
    yield Suspect("teacher not detached", hint, partial(Teaching(attached=True).outputs, case))
