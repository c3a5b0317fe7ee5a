"""Reptile: the server moves part of the way to the mean of the nodes' SGD end points.

With mix = 1 it is FedAvg; with one local step it is FedAvg with local rate mix eta.
Source: mathematics.md §10; Nichol et al. 2018, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from refimpl.federated.methods.averaging import PartialAveraging
from refimpl.registry import METHODS


@METHODS.register("reptile")
@dataclass(frozen=True, kw_only=True)
class Reptile(PartialAveraging):
    """Local SGD, and a step towards the mean."""
