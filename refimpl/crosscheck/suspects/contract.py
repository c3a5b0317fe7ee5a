"""A suspect: a wrong rule, and a way to compute what it gives.

Mostly the result of a wrong rule is the right result of an altered case: one with transposed weights, with
twice the lambda, or with a unit that is not at its kink but beside it. So this package can compute what a
wrong implementation gives, and a suspect that is named is a finding, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.ours import run

TINY = 1e-30  # a number just above 0, which moves a unit off its kink or tie but changes no sum

# From an output's name and array to what a wrong rule gives in its place.
Seen = Callable[[str, np.ndarray], np.ndarray]


class Suspect(NamedTuple):
    """A wrong rule. hint: what was done and what is right; outputs: computes what it gives, by name."""

    rule: str
    hint: str
    outputs: Callable[[], Arrays]


def unchanged(output: str, array: np.ndarray) -> np.ndarray:
    """Return the array as it was computed."""
    return array


def scaled(factor: Callable[[str], float]) -> Seen:
    """Multiply outputs by a factor that depends on their name."""

    def seen(output: str, array: np.ndarray) -> np.ndarray:
        by = factor(output)
        return array if by == 1 else array * array.dtype.type(by)

    return seen


def suspect(rule: str, hint: str, case: Case, seen: Seen = unchanged) -> Suspect:
    """The suspect whose results are the right results of `case`, which is an altered case."""
    return Suspect(rule, hint, lambda: {name: seen(name, array) for name, array in run(case).items()})


def altered(case: Case, inputs: Mapping[str, np.ndarray] | None = None, **settings: Any) -> Case:
    """The case with some inputs and settings replaced."""
    return replace(case, inputs=case.inputs | dict(inputs or {}), settings={**case.settings, **settings})
