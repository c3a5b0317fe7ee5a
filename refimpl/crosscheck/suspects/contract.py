"""What a suspect is: a wrong rule, and what it gives, mostly by a right computation of an altered case.

Of transposed weights, of twice the lambda, of a unit that is not at its kink but beside it: so this
package computes what a wrong implementation gives, and a suspect that is named is a finding, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.ours import run

TINY = 1e-30  # just above 0: beside a kink or a tie, without a trace in any sum

Seen = Callable[[str, np.ndarray], np.ndarray]  # an output's name and array, and what is given in its place


class Suspect(NamedTuple):
    """A wrong rule. hint: what was done, and what should be; outputs: computes what it gives, by name."""

    rule: str
    hint: str
    outputs: Callable[[], Arrays]


def unchanged(output: str, array: np.ndarray) -> np.ndarray:
    """What is computed is what is given."""
    return array


def scaled(factor: Callable[[str], float]) -> Seen:
    """Outputs times a factor, by their name."""

    def seen(output: str, array: np.ndarray) -> np.ndarray:
        by = factor(output)
        return array if by == 1 else array * array.dtype.type(by)

    return seen


def suspect(rule: str, hint: str, case: Case, seen: Seen = unchanged) -> Suspect:
    """The rule that a right computation of `case`, an altered one, follows."""
    return Suspect(rule, hint, lambda: {name: seen(name, array) for name, array in run(case).items()})


def altered(case: Case, inputs: Mapping[str, np.ndarray] | None = None, **settings: Any) -> Case:
    """The case with some inputs and settings exchanged."""
    return replace(case, inputs=case.inputs | dict(inputs or {}), settings={**case.settings, **settings})
