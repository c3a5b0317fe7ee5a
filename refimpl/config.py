"""A run's configuration: one flat table, the same keys in TOML files, on the command line and in code.

Values are taken, each level over the one before, from: the data set's preset (shipped in `presets/`),
the preset's section for the method, a user's file (and its section for the method), explicit options.
The resolved table is complete and is stored with the run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from refimpl.errors import ConfigError, one_of

METHODS = (
    "metagater", "metagater-ungated", "fedavg", "perfedavg", "perfedavg-hf", "maml", "fomaml", "reptile",
    "pfedme", "metasnip", "metasnip-weights",
)  # fmt: skip
DATASETS = ("digits", "mnist", "cifar10", "cifar100", "omniglot")
MODEL_NAMES = ("mlp", "cnn3", "cnn7", "digits")
USUAL_GATES = {"mlp": ["fc1"], "cnn3": ["conv3"], "cnn7": ["conv5", "conv6"], "digits": ["conv2"]}
SCHEDULES = ("ghadimi-lan", "proximal-gradient", "nesterov")
PENALTIES = ("group-lasso", "bounded-group-lasso", "l1", "zero")


def _option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    if isinstance(default, tuple):
        default = list(default)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text, "choices": choices})
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Config:
    """Everything that determines a run's result (threads and folders do not)."""

    method: str = _option("metagater", "federated method", METHODS)
    dataset: str = _option("digits", "data set", DATASETS)
    model: str = _option("digits", "network of the zoo", MODEL_NAMES)
    seed: int = _option(0, "root of all random numbers")
    dtype: str = _option("float32", "floating-point type", ("float32", "float64"))

    nodes: int = _option(10, "meta-training nodes")
    targets: int = _option(10, "target nodes, disjoint from the training nodes")
    classes_per_node: int = _option(2, "classes at each node")
    node_min: int = _option(40, "fewest training samples of a node")
    node_max: int = _option(44, "most training samples of a node (0: the data set's usual range)")
    support: int = _option(20, "samples of a target node used for adaptation")
    test_share: float = _option(0.5, "share of a node's samples held out for testing")

    rounds: int = _option(60, "communication rounds")
    per_round: int = _option(0, "nodes drawn in each round (0: all)")
    weighted: bool = _option(False, "weight nodes by their number of samples")
    batch_size: int = _option(20, "mini-batch of a local step (0: all samples)")
    local_steps: int = _option(5, "local gradient steps in a round")
    eta: float = _option(0.05, "local learning rate (outer one of perfedavg, perfedavg-hf, maml, fomaml)")
    lam: float = _option(1.0, "Moreau weight lambda of the local problem (metagater, metasnip, pfedme)")
    alpha: float = _option(
        0.05, "inner learning rate (perfedavg, perfedavg-hf, maml, fomaml, prox steps of pfedme)"
    )
    inner_steps: int = _option(1, "inner gradient steps (maml, fomaml, prox steps of pfedme)")
    delta: float = _option(1e-4, "step of the difference of gradients in perfedavg-hf")
    mix: float = _option(1.0, "share of the way the server goes to the nodes' mean (reptile, pfedme)")
    schedule: str = _option("ghadimi-lan", "server step sizes", SCHEDULES)
    beta: float = _option(0.5, "server step b")
    penalty: str = _option("group-lasso", "regulariser of the gates", PENALTIES)
    rho: float = _option(0.01, "weight of the regulariser")
    radius: float = _option(10.0, "largest group norm under bounded-group-lasso")

    gates: list[str] = _option(
        ["conv2"], "layers that carry a channel gate (default: the model's usual ones)"
    )
    gate_mode: str = _option("hard", "how gates decide in training", ("hard", "gumbel", "ste", "soft"))
    tau: float = _option(1.0, "gate temperature")
    gate_grad: str = _option("dense", "gradient of off channels' gates", ("dense", "active"))

    eta_phi: float = _option(0.05, "adaptation rate of the gate (stage I)")
    eta_theta: float = _option(0.05, "adaptation rate of the backbone (stage II)")
    adapt_steps: int = _option(1, "gradient steps in each adaptation stage")
    snip_keep: float = _option(0.5, "share of gated channels (metasnip) or weights (metasnip-weights) kept")
    checkpoint_every: int = _option(1, "rounds between checkpoints")

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_value("config", item, getattr(self, item.name))
        _check_ranges(self)

    def table(self) -> dict[str, Any]:
        """The resolved configuration as a flat table."""
        return asdict(self)


def _check_value(source: str, item: Field[Any], value: object) -> None:
    """Raise unless `value` has the option's type and is one of its choices; `source` is who gave it."""
    wanted = str(item.type)
    kinds: dict[str, tuple[type, ...]]
    kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    if wanted == "list[str]":
        good = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    else:
        good = isinstance(value, kinds[wanted]) and (wanted == "bool" or not isinstance(value, bool))
    if not good:
        raise ConfigError(f"{source}: {item.name} must be {wanted}, got {value!r}")
    if item.metadata["choices"]:
        one_of(source, item.name, value, item.metadata["choices"])


_AT_LEAST = {
    "seed": 0, "nodes": 1, "targets": 0, "classes_per_node": 1, "node_min": 0, "node_max": 0, "support": 1,
    "rounds": 1, "per_round": 0, "batch_size": 0, "local_steps": 1, "adapt_steps": 0, "lam": 0.0, "rho": 0.0,
    "alpha": 0.0, "inner_steps": 1, "eta_phi": 0.0, "eta_theta": 0.0, "checkpoint_every": 1,
}  # fmt: skip
_POSITIVE = ("eta", "beta", "delta", "mix", "tau", "radius")


def _check_ranges(config: Config) -> None:
    for name, least in _AT_LEAST.items():
        if not getattr(config, name) >= least:
            raise ConfigError(f"config: {name} must be at least {least}, got {getattr(config, name)}")
    for name in _POSITIVE:
        if not getattr(config, name) > 0:
            raise ConfigError(f"config: {name} must be positive, got {getattr(config, name)}")
    if not 0 < config.test_share < 1:
        raise ConfigError(f"config: test_share must lie in (0, 1), got {config.test_share}")
    if not 0 < config.snip_keep <= 1:
        raise ConfigError(f"config: snip_keep must lie in (0, 1], got {config.snip_keep}")
    if config.node_max > 0 and config.node_min < 1:
        raise ConfigError(f"config: node_min must be at least 1, got {config.node_min}: no node may be empty")
    if 0 < config.node_max < config.node_min:
        raise ConfigError(f"config: node_max {config.node_max} is below node_min {config.node_min}")
    if config.per_round > config.nodes:
        raise ConfigError(f"config: per_round {config.per_round} exceeds nodes {config.nodes}; use 0 for all")
    if config.lam == 0 and config.method.startswith(("metagater", "metasnip")):
        raise ConfigError(
            "config: lam must be positive for metagater: the server's gradient is lam (md - mean)"
        )
    if config.lam == 0 and config.method == "pfedme":
        raise ConfigError("config: lam must be positive for pfedme: nodes move by eta lam (w - t)")


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as a table; `ConfigError` with the parser's position where it is not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML configuration") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from None


def preset(dataset: str) -> dict[str, Any]:
    """The shipped preset of a data set; empty where there is none."""
    file = resources.files("refimpl") / "presets" / f"{dataset}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _layer(table: Mapping[str, Any], method: str, source: str) -> dict[str, Any]:
    """The table's plain keys, overridden by those of its section for the method."""
    known = {item.name: item for item in fields(Config)}
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    for section, content in table.items():
        if isinstance(content, dict):
            one_of(source, "section", section, METHODS)
            if section == method:
                plain.update(content)
    for key, value in plain.items():
        one_of(source, "key", key, tuple(sorted(known)))
        _check_value(source, known[key], value)
    return plain


def resolve(file: str | Path | None = None, **options: Any) -> Config:
    """The complete configuration from preset, file and explicit options (None: not given)."""
    given = {key: value for key, value in options.items() if value is not None}
    user = read_toml(file) if file is not None else {}
    chosen = {key: given.get(key, user.get(key, getattr(Config, key, None))) for key in ("dataset", "method")}
    dataset = one_of_config("dataset", chosen["dataset"] or "digits", DATASETS)
    method = one_of_config("method", chosen["method"] or "metagater", METHODS)
    values = _layer(preset(dataset), method, f"preset {dataset}")
    values.update(_layer(user, method, str(file)))
    values.update(_layer(given, method, "options"))
    values.setdefault("gates", USUAL_GATES.get(values.get("model", ""), USUAL_GATES["digits"]))
    return Config(**values)


def one_of_config(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """The value, if allowed; else `ConfigError`."""
    one_of("config", name, value, allowed)
    return str(value)


def from_table(table: Mapping[str, Any]) -> Config:
    """A configuration stored with a run; unknown or missing keys are errors."""
    known = {item.name for item in fields(Config)}
    if set(table) != known:
        odd = sorted(set(table) ^ known)
        raise ConfigError(
            f"config: keys unknown or missing: {', '.join(odd)}; was the run made by this version?"
        )
    return Config(**table)
