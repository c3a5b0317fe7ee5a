"""FedAvg: local SGD from the server's model, server mean.

Source: mathematics.md §10; McMahan et al. 2017, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from refimpl.federated.methods.averaging import Averaging
from refimpl.registry import METHODS


@METHODS.register("fedavg")
@dataclass(frozen=True, kw_only=True)
class FedAvg(Averaging):
    """Local SGD, and the mean."""
