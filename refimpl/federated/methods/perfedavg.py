"""Per-FedAvg, first-order variant: one step ahead with one batch, the gradient there with another.

Source: mathematics.md §10; Fallah et al. 2020, Algorithm 1 with the Hessian term dropped. Both the inner
and the outer step start from w (two plain SGD steps in a row would be another method).
"""

from __future__ import annotations

from dataclasses import dataclass

from refimpl.federated.methods.meta import LookingAhead
from refimpl.registry import METHODS


@METHODS.register("perfedavg")
@dataclass(frozen=True, kw_only=True)
class PerFedAvgFO(LookingAhead):
    """w~ = w - alpha g(w; D); w <- w - eta g(w~; D')."""
