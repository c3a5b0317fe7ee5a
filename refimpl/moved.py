"""The names that modules had before they were given rooms: importing one gives the module at its new place.

A program that was written for the earlier layout goes on working, with a `DeprecationWarning` that says the
new name. Each entry stands for the module and, where it is a package, for everything inside it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

METHODS = (
    "averaging", "fedavg", "fomaml", "maml", "meta", "metagater", "perfedavg", "perfedavg_hf", "pfedme",
    "reptile",
)  # fmt: skip
COMPARING = ("compare", "conformance", "hints", "mistakes", "report", "suspects", "tolerance")
MOVED = {
    **{name: f"files.{name}" for name in ("environment", "folders", "lock", "npz", "storage", "tables")},
    **{name: f"experiments.{name}" for name in ("config", "experiment", "methods", "record", "replay")},
    **{f"federated.{name}": f"federated.methods.{name}" for name in METHODS},
    **{f"golden.{name}": f"crosscheck.{name}" for name in COMPARING},
    "accel": "optim.accel",
    "bridges": "crosscheck.bridges",
    "comparison": "experiments.compare",
    "doctor": "machine.doctor",
    "formulas": "bench.formulas",
    "golden": "crosscheck.golden",
    "kernels.edge": "kernels.workspace",  # for `release_workspaces`; the rest served this package only
    "gradcheck": "nn.gradcheck",
    "parallel": "experiments.jobs",
    "problems": "theory.problems",
    "prox": "optim.prox",
    "federated.pruning.metasnip": "federated.methods.metasnip",
    "pruning": "federated.pruning",
    "pruning.metasnip": "federated.methods.metasnip",
    "stationarity": "theory.stationarity",
    "tuning": "experiments.tune",
    "warmup": "federated.warmup",
}


def new_name(old: str) -> str | None:
    """The new full name of a module by its old one; None for a name that has not moved."""
    package, *parts = old.split(".")
    for length in range(len(parts), 0, -1):
        place = MOVED.get(".".join(parts[:length]))
        if package == "refimpl" and place is not None:
            return ".".join(("refimpl", place, *parts[length:]))
    return None


class MovedModules(MetaPathFinder, Loader):
    """Finds modules that have moved, and those inside them, by their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A specification for names that have moved; None for all others."""
        return ModuleSpec(fullname, self) if new_name(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module at its new place under the old name, too: its classes and its state exist once."""
        old, new = module.__name__, new_name(module.__name__)
        assert new is not None
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[old] = import_module(new)


sys.meta_path.insert(0, MovedModules())  # first: a package found under its old name would be searched again
