"""refimpl: the CPU reference implementation of MetaGater (Lin et al. 2020, arXiv 2011.12511).

The names below are the library's front door. They are imported when first used, so that
`import refimpl` costs nothing and compiles nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_NAMES = {
    "data.catalog": "load",
    "data.node": "Node",
    "experiments.compare.plan": "Plan",
    "experiments.compare.run": "Comparison",
    "experiments.compare.summary": "summarise",
    "experiments.config": "Config resolve",
    "experiments.experiment": "Experiment adapt_targets prepare reopen train",
    "experiments.record": "RunFolder",
    "federated.adapt": "AdaptSettings adapt evaluate report_node",
    "federated.local": "LocalSettings",
    "federated.methods.metagater": "MetaGater",
    "federated.rounds": "Participation run_rounds",
    "nn.context": "Context FixedShare Gating",
    "nn.network": "Network",
    "nn.objective": "NetworkObjective",
    "nn.predict": "Predictor",
    "nn.task": "NetworkTask",
    "rng": "SeedTree",
}
_HOME = {name: f"refimpl.{module}" for module, names in _NAMES.items() for name in names.split()}

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
