"""What a suspect is: a wrong rule, as a right computation of an altered case.

Of transposed weights, of twice the lambda, of a unit that is not at its kink but beside it: so this
package computes what a wrong implementation gives, and a hint is a finding, not a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from refimpl.golden.case import Case

TINY = 1e-30  # just above 0: beside a kink or a tie, without a trace in any sum


def unscaled(output: str) -> float:
    """1 for every output."""
    return 1.0


class Suspect(NamedTuple):
    """A wrong rule. hint: what was done, and what should be; case: whose computation follows the rule.

    scale: by what to multiply an output of that computation, by its name.
    """

    rule: str
    hint: str
    case: Case
    scale: Callable[[str], float] = unscaled


def altered(case: Case, inputs: Mapping[str, np.ndarray] | None = None, **settings: Any) -> Case:
    """The case with some inputs and settings exchanged."""
    return replace(case, inputs=case.inputs | dict(inputs or {}), settings={**case.settings, **settings})
