"""The federated methods by name: from a configuration to the method that trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from refimpl.experiments.config import ADAPTATION, Config
from refimpl.federated.local import LocalSettings
from refimpl.federated.methods.fedavg import FedAvg
from refimpl.federated.methods.fomaml import FOMAML
from refimpl.federated.methods.maml import MAML
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.methods.perfedavg import PerFedAvgFO
from refimpl.federated.methods.perfedavg_hf import DELTA, PerFedAvgHF
from refimpl.federated.methods.pfedme import PFedMe
from refimpl.federated.methods.reptile import Reptile
from refimpl.federated.rounds import Method
from refimpl.nn.network import Network
from refimpl.optim import prox
from refimpl.registry import PENALTIES, SCHEDULES

# Methods that prune another method's meta-model at the target node, and that method.
PRUNES = {"metasnip": "metagater-ungated", "metasnip-weights": "metagater-ungated"}

_LOCAL = ("lam", "eta", "local_steps", "schedule", *SCHEDULES.keys())
_META = ("alpha", "eta", "local_steps")
_GATES = ("gates", "gate_mode", "tau", "gate_grad", "eta_phi", "penalty", *PENALTIES.keys())

# The keys of a configuration that only some methods take.
KEYS: dict[str, tuple[str, ...]] = {
    "metagater": (*_LOCAL, *_GATES),
    "metagater-ungated": _LOCAL,
    "fedavg": ("eta", "local_steps"),
    "perfedavg": _META,
    "perfedavg-hf": (*_META, "delta"),
    "maml": (*_META, "inner_steps"),
    "fomaml": (*_META, "inner_steps"),
    "reptile": ("eta", "local_steps", "mix"),
    "pfedme": ("lam", *_META, "inner_steps", "mix"),
    "metasnip": (*_LOCAL, "gates", "snip_keep"),
    "metasnip-weights": (*_LOCAL, "snip_keep"),
}


def takes(method: str, key: str) -> bool:
    """Whether the key of a configuration plays a part in the method."""
    return key in KEYS[method] or all(key not in keys for keys in KEYS.values())


_DEFAULTS = Config().table()
_UNGATED: dict[str, Any] = {"gates": [], "gate_mode": "hard", "tau": 1.0, "gate_grad": "dense", "rho": 0.0}


def training_key(config: Config) -> str:
    """Equal for configurations with the same meta-training: adaptation settings do not enter it."""
    neutral = replace(
        config,
        method=PRUNES.get(config.method, config.method),
        checkpoint_every=1,
        **{key: _DEFAULTS[key] for key in ADAPTATION},
    )
    if neutral.method != "metagater":  # layers with gates are then those that pruning may close
        neutral = replace(neutral, **_UNGATED)
    return json.dumps(neutral.table(), sort_keys=True)


_PRUNED = (
    "before is the accuracy of the meta-model, pruned that of what pruning leaves, before gradient steps"
)

NOTES = {
    "pfedme": "accuracy is that of the nodes' personalised models, accuracy before that of the global model",
    "metasnip": _PRUNED,
    "metasnip-weights": f"{_PRUNED}; its masks are unstructured: they save neither executed FLOPs nor time "
    "on dense hardware; metasnip prunes whole channels, which are skipped",
}


def notes(methods: Collection[str]) -> list[str]:
    """What a reader of the methods' results must know, one line for each method that has something."""
    return [f"{method}: {note}" for method, note in NOTES.items() if method in methods]


def is_gated(config: Config) -> bool:
    """Whether the method meta-trains gates."""
    return config.method == "metagater"


def prunes(config: Config) -> bool:
    """Whether the method prunes the meta-model at the target node."""
    return config.method in PRUNES


def build_penalty(config: Config, network: Network) -> prox.Penalty:
    """h(w): zero on the backbone, the configured regulariser on phi."""
    if not network.gates:
        return prox.Zero()
    phi = network.layout.phi
    groups = prox.Groups(*network.gate_groups, size=phi.stop - phi.start)
    return prox.Separable(((phi, PENALTIES.make(config.penalty, config.table(), groups=groups)),))


def _metagater(c: Config, network: Network) -> Method:
    local = LocalSettings(c.lam, c.eta, c.local_steps)
    return MetaGater(local, SCHEDULES.make(c.schedule, c.table()), build_penalty(c, network), c.method)


BUILDERS: dict[str, Callable[[Config, Network], Method]] = {
    "metagater": _metagater,
    "metagater-ungated": _metagater,
    "fedavg": lambda c, _: FedAvg(c.eta, c.local_steps),
    "perfedavg": lambda c, _: PerFedAvgFO(c.alpha, c.eta, c.local_steps),
    "perfedavg-hf": lambda c, _: PerFedAvgHF(c.alpha, c.eta, c.local_steps, c.delta or DELTA[c.dtype]),
    "maml": lambda c, _: MAML(c.alpha, c.eta, c.local_steps, c.inner_steps),
    "fomaml": lambda c, _: FOMAML(c.alpha, c.eta, c.local_steps, c.inner_steps),
    "reptile": lambda c, _: Reptile(c.eta, c.local_steps, c.mix),
    "pfedme": lambda c, _: PFedMe(c.lam, c.alpha, c.inner_steps, c.eta, c.local_steps, c.mix),
    "metasnip": _metagater,
    "metasnip-weights": _metagater,
}


def build_method(config: Config, network: Network) -> Method:
    """The configured federated method."""
    return BUILDERS[config.method](config, network)
