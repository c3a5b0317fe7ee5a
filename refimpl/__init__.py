"""refimpl: the CPU reference implementation of MetaGater (Lin et al. 2020, arXiv 2011.12511).

The names below are the library's front door. They are imported when first used, so that
`import refimpl` costs nothing and compiles nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import refimpl.moved  # noqa: F401 - old names of modules lead to their new places
from refimpl._version import __version__

if TYPE_CHECKING:
    from refimpl.data.catalog import load
    from refimpl.data.node import Node
    from refimpl.experiments.compare.plan import Plan
    from refimpl.experiments.compare.run import Comparison
    from refimpl.experiments.compare.summary import summarise
    from refimpl.experiments.config import Config, resolve
    from refimpl.experiments.experiment import Experiment, adapt_targets, prepare, reopen, train
    from refimpl.experiments.record import RunFolder
    from refimpl.federated.adapt import AdaptSettings, adapt, evaluate, report_node
    from refimpl.federated.local import LocalSettings
    from refimpl.federated.methods.metagater import MetaGater
    from refimpl.federated.rounds import Participation, run_rounds
    from refimpl.nn import zoo
    from refimpl.nn.context import Context, FixedShare, Gating
    from refimpl.nn.network import Network
    from refimpl.nn.objective import NetworkObjective
    from refimpl.nn.predict import Predictor
    from refimpl.nn.task import NetworkTask
    from refimpl.rng import SeedTree

_HOME = {
    "AdaptSettings": "refimpl.federated.adapt",
    "Comparison": "refimpl.experiments.compare.run",
    "Config": "refimpl.experiments.config",
    "Context": "refimpl.nn.context",
    "Experiment": "refimpl.experiments.experiment",
    "FixedShare": "refimpl.nn.context",
    "Gating": "refimpl.nn.context",
    "LocalSettings": "refimpl.federated.local",
    "MetaGater": "refimpl.federated.methods.metagater",
    "Network": "refimpl.nn.network",
    "NetworkObjective": "refimpl.nn.objective",
    "NetworkTask": "refimpl.nn.task",
    "Node": "refimpl.data.node",
    "Participation": "refimpl.federated.rounds",
    "Plan": "refimpl.experiments.compare.plan",
    "Predictor": "refimpl.nn.predict",
    "RunFolder": "refimpl.experiments.record",
    "SeedTree": "refimpl.rng",
    "adapt": "refimpl.federated.adapt",
    "adapt_targets": "refimpl.experiments.experiment",
    "evaluate": "refimpl.federated.adapt",
    "load": "refimpl.data.catalog",
    "prepare": "refimpl.experiments.experiment",
    "report_node": "refimpl.federated.adapt",
    "reopen": "refimpl.experiments.experiment",
    "resolve": "refimpl.experiments.config",
    "run_rounds": "refimpl.federated.rounds",
    "summarise": "refimpl.experiments.compare.summary",
    "train": "refimpl.experiments.experiment",
}

__all__ = [
    "AdaptSettings",
    "Comparison",
    "Config",
    "Context",
    "Experiment",
    "FixedShare",
    "Gating",
    "LocalSettings",
    "MetaGater",
    "Network",
    "NetworkObjective",
    "NetworkTask",
    "Node",
    "Participation",
    "Plan",
    "Predictor",
    "RunFolder",
    "SeedTree",
    "__version__",
    "adapt",
    "adapt_targets",
    "evaluate",
    "load",
    "prepare",
    "reopen",
    "report_node",
    "resolve",
    "run_rounds",
    "summarise",
    "train",
    "zoo",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name == "zoo":
        return import_module("refimpl.nn.zoo")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'refimpl' has no attribute {name!r}")
