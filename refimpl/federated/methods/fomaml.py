"""First-order MAML: the outer gradient after the inner steps, as if it did not depend on them.

With one inner step it is Per-FedAvg (FO).
Source: mathematics.md §10; Finn et al. 2017, section 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from refimpl.federated.methods.keys import inner_steps_key
from refimpl.federated.methods.meta import LookingAhead
from refimpl.registry import METHODS


@METHODS.register("fomaml")
@dataclass(frozen=True, kw_only=True)
class FOMAML(LookingAhead):
    """w <- w - eta g(w~; D'), w~ after `inner_steps` steps from w."""

    inner_steps: int = inner_steps_key()
