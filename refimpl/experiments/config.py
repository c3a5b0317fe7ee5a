"""A run's configuration: one flat table, the same keys in TOML files, on the command line and in code.

Values are taken, each level over the one before, from: the preset (shipped in `presets/`; by default the one
named like the data set), the preset's section for the method, a user's file (and its section for the
method), explicit options. A data set may also be the path of a user's own .npz file; its preset is `npz`.
The resolved table is complete, its paths are absolute, and it is stored with the run.
"""

from __future__ import annotations

import math
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from refimpl.errors import ConfigError, OlderVersionWarning, brief, one_of
from refimpl.files.paths import expanded
from refimpl.files.sniff import decoded

METHODS = (
    "metagater", "metagater-ungated", "fedavg", "perfedavg", "perfedavg-hf", "maml", "fomaml", "reptile",
    "pfedme", "metasnip", "metasnip-weights",
)  # fmt: skip
DATASETS = ("digits", "mnist", "cifar10", "cifar100", "omniglot")
OWN_DATA = ".npz"  # a data set whose name ends so is the path of a user's own arrays
PARTITIONS = ("classes", "two-class", "dirichlet", "iid")
MODEL_NAMES = ("mlp", "cnn3", "cnn7", "digits")
USUAL_GATES = {"mlp": ["fc1"], "cnn3": ["conv3"], "cnn7": ["conv5", "conv6"], "digits": ["conv2"]}
SCHEDULES = ("ghadimi-lan", "proximal-gradient", "nesterov")
PENALTIES = ("group-lasso", "bounded-group-lasso", "l1", "zero")
ADAPTATION = ("eta_phi", "eta_theta", "adapt_steps", "snip_keep")  # keys that play no part before it


def _option(default: Any, text: str, choices: tuple[str, ...] = (), ending: str = "") -> Any:
    """A field; `ending` admits, besides `choices`, everything that ends so."""
    metadata = {"help": text, "choices": choices, "ending": ending}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Everything that determines a run's result (threads and folders do not)."""

    method: str = _option("metagater", "federated method", METHODS)
    dataset: str = _option("digits", "data set, or a file of your arrays x and y", DATASETS, OWN_DATA)
    model: str = _option("digits", "network of the zoo", MODEL_NAMES)
    seed: int = _option(0, "root of all random numbers")
    dtype: str = _option("float32", "floating-point type", ("float32", "float64"))

    nodes: int = _option(10, "meta-training nodes")
    targets: int = _option(10, "target nodes, disjoint from the training nodes")
    partition: str = _option("classes", "how nodes get their classes", PARTITIONS)
    classes_per_node: int = _option(2, "classes at each node, under the partition 'classes'")
    concentration: float = _option(
        0.5, "of the Dirichlet distribution, under 'dirichlet'; small: few classes"
    )
    node_min: int = _option(40, "fewest training samples of a node")
    node_max: int = _option(44, "most training samples of a node (0: the data set's usual range)")
    sizes: list[int] = _option(
        [], "training samples of each node, training nodes first, instead of node_min and node_max"
    )
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
    delta: float = _option(
        0.0, "step of the difference of gradients in perfedavg-hf (0: 1e-5 in float32, 1e-7 in float64)"
    )
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
            object.__setattr__(self, item.name, _checked("config", item, getattr(self, item.name)))
        _check_ranges(self)

    def table(self) -> dict[str, Any]:
        """The resolved configuration as a flat table."""
        return asdict(self)


def _checked(source: str, item: Field[Any], given: object) -> Any:
    """The value as Python's own type; `source` is who gave it.

    Raises unless it has the option's type and is one of its choices.
    """
    value, wanted = _plain(given), str(item.type)
    kinds: dict[str, tuple[type, ...]]
    kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    if wanted.startswith("list"):
        kind = str if wanted == "list[str]" else int
        good = type(value) is list and all(type(entry) is kind for entry in value)
    else:
        good = type(value) in kinds[wanted]
    if not good:
        shown = " ".join(repr(value).split())[:80]
        raise ConfigError(f"{source}: {item.name} must be {wanted}, got {shown}")
    ending = item.metadata["ending"]
    if item.metadata["choices"] and not (ending and str(value).lower().endswith(ending)):
        also = (f"FILE{ending}",) if ending else ()
        one_of(source, item.name, value, (*item.metadata["choices"], *also))
    return value


def _plain(value: object) -> object:
    """NumPy's scalars, and lists, tuples and arrays of values, as Python's own; anything else as it is.

    A float32 becomes the shortest decimal number that names it: np.float32(0.1) becomes 0.1.
    """
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if type(value).__module__ != "numpy":
        return value
    import numpy as np  # only here: the command line's help does without

    if isinstance(value, np.ndarray):
        return _plain(list(value) if value.ndim else value[()])
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, (np.integer, np.bool_, np.str_)) else value


_AT_LEAST = {
    "seed": 0, "nodes": 1, "targets": 0, "classes_per_node": 1, "node_min": 0, "node_max": 0, "support": 1,
    "rounds": 1, "per_round": 0, "batch_size": 0, "local_steps": 1, "adapt_steps": 0, "lam": 0.0, "rho": 0.0,
    "alpha": 0.0, "inner_steps": 1, "delta": 0.0, "eta_phi": 0.0, "eta_theta": 0.0, "checkpoint_every": 1,
}  # fmt: skip
_POSITIVE = ("eta", "beta", "mix", "tau", "radius")


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
    if not config.concentration > 0:
        raise ConfigError(f"config: concentration must be positive, got {config.concentration}")
    if config.partition == "two-class" and config.classes_per_node != 2:
        raise ConfigError(
            f"config: partition two-class contradicts classes_per_node {config.classes_per_node}; "
            "use partition classes, or classes_per_node 2"
        )
    if config.sizes and len(config.sizes) != config.nodes + config.targets:
        raise ConfigError(
            f"config: sizes must have a number for each of {config.nodes} + {config.targets} nodes, got "
            f"{len(config.sizes)} numbers; for a range leave sizes out and set node_min and node_max"
        )
    if config.sizes and min(config.sizes) < 1:
        raise ConfigError(f"config: sizes must be at least 1, got {min(config.sizes)}: no node may be empty")
    if config.per_round > config.nodes:
        raise ConfigError(f"config: per_round {config.per_round} exceeds nodes {config.nodes}; use 0 for all")
    if config.lam == 0 and config.method.startswith(("metagater", "metasnip")):
        raise ConfigError(
            "config: lam must be positive for metagater: the server's gradient is lam (md - mean)"
        )
    if config.method == "metasnip" and not config.gates:
        raise ConfigError(
            "config: metasnip prunes channels of the layers named by gates, and none is named; "
            "name some, or use metasnip-weights"
        )
    if config.lam == 0 and config.method == "pfedme":
        raise ConfigError("config: lam must be positive for pfedme: nodes move by eta lam (w - t)")
    for name, value in config.table().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"config: {name} must be a finite number, got {value}")


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as a table; `ConfigError` with the parser's position where it is not TOML."""
    try:
        return tomllib.loads(decoded(Path(path).read_bytes()))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML configuration") from None
    except RecursionError:
        raise ConfigError(f"{path}: not readable as TOML: nested too deeply") from None
    except (OSError, ValueError) as error:  # tomllib's own, and int's for thousands of digits
        raise ConfigError(f"{path}: not readable as TOML: {brief(error)}") from None


def preset(name: str) -> dict[str, Any]:
    """The shipped preset of that name, by default a data set's; empty where there is none."""
    file = resources.files("refimpl.experiments") / "presets" / f"{name}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def preset_names() -> tuple[str, ...]:
    """The names of the shipped presets."""
    files = (resources.files("refimpl.experiments") / "presets").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


@lru_cache(maxsize=1)
def preset_keys() -> frozenset[str]:
    """The keys that some shipped preset sets, for all methods or for one."""
    tables = [preset(name) for name in preset_names()]
    sections = [content for table in tables for content in table.values() if isinstance(content, dict)]
    return frozenset(key for table in (*tables, *sections) for key in table)


_FIELDS = {item.name: item for item in fields(Config)}


def _layer(table: Mapping[str, Any], method: str, source: str) -> dict[str, Any]:
    """The table's plain keys, overridden by those of its section for the method."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    for section, content in table.items():
        if isinstance(content, dict):
            one_of(source, "section", section, METHODS)
            if section == method:
                plain.update(content)
    for key in plain:
        one_of(source, "key", key, tuple(sorted(_FIELDS)))
    return {key: _checked(source, _FIELDS[key], value) for key, value in plain.items()}


def resolve(file: str | Path | None = None, from_preset: str | None = None, **options: Any) -> Config:
    """The complete configuration from preset, file and explicit options (None: not given).

    `from_preset` names the preset; by default it is that of the data set. NumPy's scalars and arrays become
    Python's own numbers, words and lists; a float32 becomes the shortest decimal number that names it.
    """
    given = {key: value for key, value in options.items() if value is not None}
    user = read_toml(file) if file is not None else {}
    start = _start(from_preset)
    chosen = {**start, **user, **given}
    dataset, method = (
        _checked("config", _FIELDS[name], chosen.get(name, _FIELDS[name].default))
        for name in ("dataset", "method")
    )
    if start.get("dataset", dataset) != dataset:
        raise ConfigError(
            f"config: preset {from_preset} is for the data set {start['dataset']}, not {dataset}; "
            "leave one of them out"
        )
    if from_preset is None:
        from_preset = "npz" if dataset.lower().endswith(OWN_DATA) else dataset
    values = _layer(preset(from_preset), method, f"preset {from_preset}")
    values.update(_layer(user, method, str(file)))
    values.update(_layer(given, method, "options"))
    return Config(**{**_usual_gates(values), **values, "dataset": absolute(dataset)})


def absolute(dataset: str) -> str:
    """The data set; the path of a user's own file from the root, so that it is found from any folder."""
    return str(expanded(dataset).absolute()) if dataset.lower().endswith(OWN_DATA) else dataset


def _usual_gates(values: Mapping[str, Any]) -> dict[str, Any]:
    """The gates of the model in `values`, for a configuration that names none."""
    return {"gates": USUAL_GATES.get(str(values.get("model")), USUAL_GATES["digits"])}


def _start(name: str | None) -> dict[str, Any]:
    """The preset called for by name, with the data set it is for; nothing where none is."""
    if name is None:
        return {}
    one_of("config", "preset", name, preset_names())
    own = {"dataset": name} if name in DATASETS else {}
    return {**own, **preset(name)}


def completed(table: Mapping[str, Any]) -> dict[str, Any]:
    """A stored table with the defaults of the keys that the version which wrote it did not have yet."""
    return {**Config().table(), **_usual_gates(table), **table}


def from_table(table: Mapping[str, Any], source: str = "config") -> Config:
    """A configuration stored with a run, of which messages speak as `source`; unknown keys are errors.

    Keys that an older version did not write get their defaults, and an `OlderVersionWarning` says so; but
    every version wrote which method is trained on which data set.
    """
    for key in table:
        one_of(source, "key", key, tuple(sorted(_FIELDS)))
    for key in ("method", "dataset"):
        if key not in table:
            raise ConfigError(f"{source}: the stored configuration has no {key}; was the run damaged?")
    values = completed(table)
    lacking = [f"{key} = {values[key]!r}" for key in _FIELDS if key not in table]
    if lacking:
        text = f"{source}: an older version stored no {', '.join(lacking)[:300]}; these defaults are used"
        warnings.warn(text, OlderVersionWarning, stacklevel=2)
    return Config(**values)
