"""A run's configuration: one flat table, the same keys in TOML files, on the command line and in code.

Values are taken, each level over the one before, from: the preset (shipped in `presets/`; by default the one
named like the data set), the preset's section for the method, a user's file (and its section for the
method), explicit options. A data set may also be the path of a user's own .npz file; its preset is `npz`,
over which come settings that fit the arrays in the file (`fitting.py`).
The resolved table is complete, its paths are absolute, and it is stored with the run.
"""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from refimpl.errors import ConfigError, OlderVersionWarning, cause, nearest, one_of, shown
from refimpl.experiments.fitting import fitting
from refimpl.experiments.kinds import FEDERATED, expect_kind
from refimpl.files.paths import OWN_DATA, expanded, is_own_data
from refimpl.files.presets import Presets, keys_in
from refimpl.files.sniff import decoded
from refimpl.registry import (
    DATASETS,
    METHODS,
    MODELS,
    PARTITIONS,
    PENALTIES,
    SCHEDULES,
    STARTS,
    Key,
    Registry,
    agree,
    key,
    keys_of,
    plain,
)

PRESETS = Presets("refimpl.experiments")
RATES = (0.002, 0.5)  # where `tune` searches the rates of adaptation


@dataclass(frozen=True, init=False)
class Config:
    """Everything that determines a run's result (threads and folders do not).

    The keys that registered choices declare are in `own`; they are read, set and listed like all others.
    `refimpl train --help` has a sentence on each key, and `keys()` gives it with its type and default.
    """

    method: str = key("metagater", "federated method", choices=METHODS)
    dataset: str = key(
        "digits", "data set, or a file of your arrays x and y", choices=DATASETS, ending=OWN_DATA
    )
    model: str = key("digits", "network of the zoo", choices=MODELS)
    seed: int = key(0, "root of all random numbers", at_least=0)
    dtype: str = key("float32", "floating-point type", choices=("float32", "float64"))

    nodes: int = key(10, "meta-training nodes", at_least=1)
    targets: int = key(10, "target nodes, disjoint from the training nodes", at_least=0)
    partition: str = key("classes", "how nodes get their classes", choices=PARTITIONS)
    node_min: int = key(40, "fewest training samples of a node", at_least=0)
    node_max: int = key(44, "most training samples of a node (0: the data set's usual range)", at_least=0)
    sizes: list[int] = key(
        [], "training samples of each node, training nodes first, instead of node_min and node_max"
    )
    target_min: int = key(0, "fewest training samples of a target node", at_least=0)
    target_max: int = key(0, "most training samples of a target node (0: as training nodes)", at_least=0)
    folds: int = key(1, "runs of a seed over which every node is a target once (1: no rotation)", at_least=1)
    fold: int = key(0, "which of the folds the run is, from 0", at_least=0)
    support: int = key(
        20, "stratified samples on which a target node adapts (0: all but its test)", at_least=0
    )
    test_share: float = key(0.5, "share of a node's samples held out for testing", above=0.0, below=1.0)

    pool: str = key(
        "all", "samples that are dealt to nodes: all, or a part of them", choices=("all", "tuning", "report")
    )
    pool_share: float = key(0.3, "share of the samples that the pool tuning has", above=0.0, below=1.0)

    rounds: int = key(60, "communication rounds", at_least=1)
    per_round: int = key(0, "nodes drawn in each round (0: all)", at_least=0)
    weighted: bool = key(False, "weight nodes by their number of samples")
    batch_size: int = key(20, "mini-batch of a local step (0: all samples)", at_least=0)
    schedule: str = key("ghadimi-lan", "server step sizes", choices=SCHEDULES)
    penalty: str = key("group-lasso", "regulariser of the gates", choices=PENALTIES)
    group_bias: bool = key(True, "the group of a channel holds its biases as well as its weights")
    rho_rise: float = key(
        0.0, "share of the rounds in which the penalty rises to its weight", at_least=0.0, at_most=1.0
    )

    gates: list[str] = key(["conv2"], "layers that carry a channel gate (default: the model's usual ones)")
    gate_mode: str = key("hard", "how gates decide in training", choices=("hard", "gumbel", "ste", "soft"))
    tau: float = key(1.0, "gate temperature", above=0.0)
    tau_end: float = key(0.0, "gate temperature in the last round (0: as in the first)", at_least=0.0)
    gate_grad: str = key("dense", "gradient of off channels' gates", choices=("dense", "active"))
    gate_summary: str = key(
        "plain", "how gates see the channel means", choices=("plain", "normalised", "centred")
    )
    gate_start: str = key("open", "how gates start", choices=STARTS)
    shaping: float = key(0.0, "weight of batch-shaping in the local loss (0: none)", at_least=0.0)
    shaping_a: float = key(0.6, "a of the Beta(a, b) that openings should have", at_least=0.1, at_most=10.0)
    shaping_b: float = key(0.4, "b of the Beta(a, b) that openings should have", at_least=0.1, at_most=10.0)
    shaping_fall: float = key(
        0.0, "share of the rounds in which shaping falls to zero (0: it stays)", at_least=0.0, at_most=1.0
    )

    eta_phi: float = key(
        0.05, "adaptation rate of the gate (stage I)", at_least=0.0, search=RATES, adapts=True
    )
    eta_theta: float = key(
        0.05, "adaptation rate of the backbone (stage II)", at_least=0.0, search=RATES, adapts=True
    )
    adapt_steps: int = key(1, "gradient steps in each adaptation stage", at_least=0, adapts=True)
    checkpoint_every: int = key(1, "rounds between checkpoints", at_least=1)

    own: Mapping[str, Any] = field(default_factory=dict)

    def __init__(self, own: Mapping[str, Any] | None = None, **given: Any) -> None:
        values, declared = {**(own or {}), **given}, keys()
        _expect_known("config", values)
        checked = {name: one.check("config", values.get(name, one.default)) for name, one in declared.items()}
        named = keys_of(Config)
        for name in named:
            object.__setattr__(self, name, checked[name])
        object.__setattr__(self, "own", {name: checked[name] for name in declared if name not in named})
        _check_ranges(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["own"][name]
        except KeyError:
            raise AttributeError(f"a configuration has no key {name!r}") from None

    def table(self) -> dict[str, Any]:
        """The resolved configuration as a flat table."""
        return {name: plain(getattr(self, name)) for name in keys()}


def keys() -> dict[str, Key]:
    """All keys of a configuration by name: after each key that names a choice, those that choices declare."""
    found = keys_of(Config)
    order: dict[str, Key] = {}
    for name, one in found.items():
        order[name] = one
        for own, declared in one.choices.keys().items() if isinstance(one.choices, Registry) else ():
            known = found.get(own, order.get(own, declared))
            agree(f"{one.name} {', '.join(declared.of)}", declared, known)
            order.setdefault(own, declared)
    return order


def adaptation_keys() -> tuple[str, ...]:
    """The keys that play a part in the adaptation at target nodes only."""
    return tuple(name for name, one in keys().items() if one.adapts)


def _expect_known(source: str, names: Iterable[str]) -> None:
    known = tuple(sorted(keys()))
    for name in names:
        one_of(source, "key", name, known)


def _check_ranges(config: Config) -> None:
    if config.node_max > 0 and config.node_min < 1:
        raise ConfigError(f"config: node_min must be at least 1, got {config.node_min}: no node may be empty")
    if 0 < config.node_max < config.node_min:
        raise ConfigError(f"config: node_max {config.node_max} is below node_min {config.node_min}")
    _check_targets(config)
    PARTITIONS.make(config.partition, config.own)
    if config.sizes and len(config.sizes) != config.nodes + config.targets:
        raise ConfigError(
            f"config: sizes must have a number for each of {config.nodes} + {config.targets} nodes, got "
            f"{len(config.sizes)} numbers; for a range leave sizes out and set node_min and node_max"
        )
    if config.sizes and min(config.sizes) < 1:
        raise ConfigError(f"config: sizes must be at least 1, got {min(config.sizes)}: no node may be empty")
    if config.per_round > config.nodes:
        raise ConfigError(f"config: per_round {config.per_round} exceeds nodes {config.nodes}; use 0 for all")
    if check := METHODS[config.method].check:
        check(config)


def _check_targets(config: Config) -> None:
    nodes, targets, folds = config.nodes, config.targets, config.folds
    own_sizes = config.target_max > 0
    if config.target_min > config.target_max or (own_sizes and config.target_min < 1):
        raise ConfigError(
            f"config: expected target_min from 1 up to target_max, got {config.target_min} and "
            f"{config.target_max}; set both, or neither to have target nodes as large as training nodes"
        )
    if own_sizes and (config.sizes or folds > 1):
        other = "sizes" if config.sizes else "folds"
        raise ConfigError(f"config: target_max and {other} exclude each other; leave one of them out")
    if config.fold >= folds:
        raise ConfigError(f"config: fold must be below folds {folds}, got {config.fold}")
    if folds > 1 and folds * targets != nodes + targets:
        raise ConfigError(
            f"config: {folds} folds of {targets} targets must be all {nodes} + {targets} nodes; "
            f"set nodes to {max((folds - 1) * targets, 1)}"
        )


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as a table; `ConfigError` with the parser's position where it is not TOML."""
    try:
        return tomllib.loads(decoded(Path(path).read_bytes()))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML configuration") from None
    except RecursionError:
        raise ConfigError(f"{path}: not readable as TOML: nested too deeply") from None
    except (OSError, ValueError) as error:  # tomllib's own, and int's for thousands of digits
        raise ConfigError(f"{path}: not readable as TOML: {cause(error)}") from None


def preset(name: str) -> dict[str, Any]:
    """The shipped preset of that name; for a data set without one, its usual values over those of `npz`.

    A preset may name another one that it is `like`; its own values and sections come over that one's.
    """
    if name in PRESETS.names():
        own = PRESETS.read(name)
        return {**preset(own.pop("like")), **own} if "like" in own else own
    return {**preset("npz"), **DATASETS[name].usual} if name in DATASETS else {}


@lru_cache(maxsize=1)
def preset_keys() -> frozenset[str]:
    """The keys that some shipped preset sets, for all methods or for one."""
    return keys_in(preset(name) for name in PRESETS.names())


def layer(table: Mapping[str, Any], sections: tuple[str, ...], method: Any, source: str) -> dict[str, Any]:
    """The table's plain keys, overridden by those of its section for the method; it has only `sections`."""
    found = {name: content for name, content in table.items() if isinstance(content, dict)}
    for section in found:
        one_of(source, "section", section, sections)
    return {name: value for name, value in table.items() if name not in found} | found.get(method, {})


def _layer(table: Mapping[str, Any], method: str, source: str) -> dict[str, Any]:
    """What a table says for the method, checked."""
    values = layer(table, tuple(METHODS), method, source)
    _expect_known(source, values)
    known = keys()
    return {name: known[name].check(source, value) for name, value in values.items()}


def resolve(file: str | Path | None = None, from_preset: str | None = None, **options: Any) -> Config:
    """The complete configuration from preset, file and explicit options (None: not given).

    `from_preset` names the preset; by default it is that of the data set. NumPy's scalars and arrays become
    Python's own numbers, words and lists; a float32 becomes the shortest decimal number that names it.
    """
    given = {key: value for key, value in options.items() if value is not None}
    user = read_toml(file) if file is not None else {}
    start = _start(from_preset)
    chosen = {**start, **user, **given}
    method, dataset = (
        one.check("config", chosen.get(name, one.default))
        for name, one in keys_of(Config).items()
        if name in ("dataset", "method")
    )
    if start.get("dataset", dataset) != dataset:
        raise ConfigError(
            f"config: preset {from_preset} is for the data set {start['dataset']}, not {dataset}; "
            "leave one of them out"
        )
    if from_preset is None:
        from_preset = "npz" if is_own_data(dataset) else dataset
    values = _layer(preset(from_preset), method, f"preset {from_preset}")
    own = _layer(user, method, str(file)) | _layer(given, method, "options")
    values.update(own)
    if "per_round" not in own and "nodes" in own:  # a preset's number of them a round fits its own nodes
        values["per_round"] = min(values.get("per_round", 0), values["nodes"])
    if is_own_data(dataset) and from_preset == "npz":
        fits = fitting(expanded(dataset), {**{name: one.default for name, one in keys().items()}, **values})
        named = {*own, *(["model"] if {"gates", "hidden", "widths"} & own.keys() else [])}
        values.update({name: value for name, value in fits.items() if name not in named})
    return Config(**{**_usual_gates(values), **values, "dataset": absolute(dataset)})


def absolute(dataset: str) -> str:
    """The data set; the path of a user's own file from the root, so that it is found from any folder."""
    return str(expanded(dataset).absolute()) if is_own_data(dataset) else dataset


def _usual_gates(values: Mapping[str, Any]) -> dict[str, Any]:
    """The gates of the model in `values`, for a configuration that names none."""
    model = values.get("model", keys()["model"].default)
    if model not in MODELS:  # `Config` says so
        return {}
    return {"gates": list(MODELS.make(model, values).usual_gates)}


def _start(name: str | None) -> dict[str, Any]:
    """The preset of that name, with the data set it is for; empty without a name."""
    if name is None:
        return {}
    one_of("config", "preset", name, PRESETS.names())
    own = {"dataset": name} if name in DATASETS else {}
    return {**own, **preset(name)}


def completed(table: Mapping[str, Any]) -> dict[str, Any]:
    """A stored table, with the defaults of keys that did not exist yet when it was written."""
    return {**Config().table(), **_usual_gates(table), **table}


def _expect_stored(source: str, table: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where a stored table has keys, or names of choices, that nothing declares here."""
    known = keys()
    chosen = [one for one in known.values() if isinstance(one.choices, Registry) and one.name in table]
    found: list[tuple[str, Any, Iterable[str]]] = [("key", name, known) for name in table]
    found += [(one.name, table[one.name], one.choices) for one in chosen if not one.ending]
    for what, value, allowed in found:
        if isinstance(value, str) and value not in allowed:
            raise ConfigError(
                f"{source}: unknown {what} {shown(value)}; {nearest(value, allowed)}the run was made with "
                "a file of your own or by a newer version; name such a file with refimpl --use FILE.py"
            )


def from_table(table: Mapping[str, Any], source: str = "config") -> Config:
    """A configuration stored with a run, of which messages speak as `source`; unknown keys are errors.

    Keys that an older version did not write get their defaults, and an `OlderVersionWarning` says so; but
    every version wrote which method is trained on which data set.
    """
    expect_kind(FEDERATED, table, source)
    _expect_stored(source, table)
    for name in ("method", "dataset"):
        if name not in table:
            raise ConfigError(f"{source}: the stored configuration has no {name}; was the run damaged?")
    values = completed(table)
    lacking = [f"{key} = {values[key]!r}" for key in keys() if key not in table]
    if lacking:
        text = f"{source}: an older version stored no {', '.join(lacking)[:300]}; these defaults are used"
        warnings.warn(text, OlderVersionWarning, stacklevel=2)
    return Config(**values)
