"""The configured method: how it is built, which keys it takes, and which meta-trainings are the same."""

import json
from collections.abc import Collection
from dataclasses import fields
from functools import lru_cache
from typing import Any

from refimpl.contracts import Method, Penalty
from refimpl.experiments.config import Config, adaptation_keys
from refimpl.nn.network import Network
from refimpl.optim import prox
from refimpl.registry import METHODS, PENALTIES, SCHEDULES, STARTS, Registry, keys_of

# The keys that play a part where gates are trained.
GATES = (
    *("gates", "gate_mode", "tau", "tau_end", "gate_grad", "gate_summary", "gate_start", "eta_phi"),
    *("shaping", "shaping_a", "shaping_b", "shaping_fall"),
)
PENALTY = ("penalty", "group_bias", "rho_rise")


def keys_taken(method: str) -> frozenset[str]:
    """The keys of a configuration that matter to the method, without those that matter to every method.

    These are its own keys; those of a schedule and of a penalty, where it has a field of that name; and those
    of gates.
    """
    kind = METHODS[method]
    made_with = {item.name for item in fields(kind)}
    taken = {*keys_of(kind)}
    if "schedule" in made_with:
        taken |= {"schedule", *SCHEDULES.keys()}
    if kind.gated:
        taken |= {*GATES, *STARTS.keys(), *({*PENALTY, *PENALTIES.keys()} if "penalty" in made_with else ())}
    return frozenset(taken | ({"gates"} if kind.prunes == "channels" else set()))


def special_keys() -> frozenset[str]:
    """The keys that belong to some or all methods, as opposed to those of data, network and rounds."""
    return frozenset(_taken(tuple(METHODS)))


def takes(method: str, key: str) -> bool:
    """Whether the key of a configuration plays a part in the method."""
    takers = _taken(tuple(METHODS)).get(key)
    return takers is None or method in takers


def settings_used(config: Config) -> dict[str, Any]:
    """The settings that play a part in a run: neither those of other methods nor those of other choices."""
    chosen: set[str] = set()
    left: set[str] = set()
    for name, one in keys_of(Config).items():
        if isinstance(one.choices, Registry):
            left |= one.choices.keys().keys()
            for choice in {getattr(config, name)} & set(one.choices):
                chosen |= keys_of(one.choices[choice]).keys()
    return {
        name: value
        for name, value in config.table().items()
        if takes(config.method, name) and (name in chosen or name not in left)
    }


@lru_cache(maxsize=4)
def _taken(methods: tuple[str, ...]) -> dict[str, set[str]]:
    """The methods that take a key, by key."""
    found: dict[str, set[str]] = {}
    for method in methods:
        for key in keys_taken(method):
            found.setdefault(key, set()).add(method)
    return found


def training_key(config: Config) -> str:
    """Equal for configurations with the same meta-training: keys that play no part in it do not enter."""
    method = METHODS[config.method].trains_as or config.method
    ignored = {"method", "checkpoint_every", *adaptation_keys()}
    table = {key: value for key, value in config.table().items() if takes(method, key) and key not in ignored}
    return json.dumps([method, table], sort_keys=True)


def notes(methods: Collection[str]) -> list[str]:
    """What a reader of the methods' results must know, one line for each method that has something."""
    return [
        f"{name}: {kind.note}" for name, kind in METHODS.classes().items() if name in methods and kind.note
    ]


def is_gated(config: Config) -> bool:
    """Whether the method meta-trains gates."""
    return bool(METHODS[config.method].gated)


def prunes(config: Config) -> bool:
    """Whether the method prunes the meta-model at the target node."""
    return bool(METHODS[config.method].prunes)


def build_penalty(config: Config, network: Network) -> Penalty:
    """h(w): zero on the backbone, the configured regulariser on phi."""
    if not network.gates:
        return prox.Zero()
    phi = network.layout.phi
    groups = prox.Groups(*network.grouped_gates(config.group_bias), size=phi.stop - phi.start)
    penalty = prox.Separable(((phi, PENALTIES.make(config.penalty, config.table(), groups=groups)),))
    return prox.Rising(penalty, config.rho_rise * config.rounds) if config.rho_rise else penalty


def build_method(config: Config, network: Network) -> Method:
    """The configured federated method."""
    table = config.table()
    method: Method = METHODS.make(
        config.method,
        table,
        schedule=SCHEDULES.make(config.schedule, table),
        penalty=build_penalty(config, network),
        network=network,
    )
    return method
