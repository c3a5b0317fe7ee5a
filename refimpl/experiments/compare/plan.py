"""What is compared: labelled configurations, each at the same seeds."""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from refimpl.errors import ConfigError, DataError, cause, expect_numbers, one_of
from refimpl.experiments.config import Config, from_table, keys, resolve
from refimpl.experiments.methods import takes, training_key
from refimpl.files.storage import json_value
from refimpl.registry import written


@dataclass(frozen=True)
class Cell:
    """One row of the tables at one seed: `label` is the row's name, and `config` its settings."""

    label: str
    config: Config

    @property
    def name(self) -> str:
        """The label as a file name."""
        return slug(self.label)

    @property
    def title(self) -> str:
        """The label with what tells its runs apart, for messages."""
        return ", ".join([self.label, *(f"{key} {value}" for key, value in run_of(self.config).items())])


def run_of(config: Config) -> dict[str, int]:
    """What tells the runs of a row apart: the seed, and the fold where there are several."""
    return {"seed": config.seed, **({"fold": config.fold} if config.folds > 1 else {})}


@dataclass(frozen=True)
class Training:
    """One meta-training, and the cells that adapt its meta-model; `name` is that of its run folder."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def config(self) -> Config:
        """The configuration that is trained."""
        return self.cells[0].config


@dataclass(frozen=True)
class Claims:
    """The row that all others are compared with, and the margin of "as good as" in percentage points.

    margin 0 judges no row as good as the baseline; afterwards: whether both were stated only after the
    comparison had begun.
    """

    baseline: str
    margin: float = 0.0
    afterwards: bool = False

    def __post_init__(self) -> None:
        expect_numbers("compare", margin=self.margin)


@dataclass(frozen=True)
class Plan:
    """Rows, each a label and a configuration, and the seeds that all rows use.

    The seed and the fold of a row's configuration are ignored: it is run at every seed, in all of its folds.

    every: accuracy is also measured after every `every` rounds (0: only after the last round); claims: the
    baseline of differences and the margin by which they are judged (None: no differences).
    Raises `ConfigError` unless there are rows and seeds, and all labels and all seeds differ; `InputError`
    for a baseline that is not a row.
    """

    rows: tuple[tuple[str, Config], ...]
    seeds: tuple[int, ...]
    every: int = 0
    claims: Claims | None = None

    def __post_init__(self) -> None:
        labels = [slug(label) for label, _ in self.rows]
        for what, values in (("rows", labels), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"compare: expected some {what} that all differ, got {_listed(values)}")
        if min(self.seeds) < 0 or self.every < 0:
            raise ConfigError("compare: seeds and every must be at least 0")
        without = [label for label, config in self.rows if config.targets < 1]
        if without:
            raise ConfigError(f"compare: {without[0]} has no target nodes to test at; set targets")
        if self.claims:
            one_of("compare: baseline", "row", self.claims.baseline, tuple(label for label, _ in self.rows))

    def trainings(self) -> list[Training]:
        """The meta-trainings that the plan needs, seed by seed, each with the cells that share it."""
        found: dict[str, list[Cell]] = {}
        for seed, (label, config) in itertools.product(self.seeds, self.rows):
            for fold in range(config.folds):
                cell = Cell(label, replace(config, seed=seed, fold=fold))
                found.setdefault(training_key(cell.config), []).append(cell)
        return [
            Training(
                "-".join([cell.name, *(f"{key}{value}" for key, value in run_of(cell.config).items())]), own
            )
            for cell, own in ((cells[0], tuple(cells)) for cells in found.values())
        ]

    def table(self) -> dict[str, Any]:
        """The plan as JSON holds it."""
        rows = [{"label": label, "config": config.table()} for label, config in self.rows]
        claims = asdict(self.claims) if self.claims else None
        return {"rows": rows, "seeds": list(self.seeds), "every": self.every, "claims": claims}


def plan_from_text(source: str, text: str) -> Plan:
    """The plan written by `Plan.table`; `DataError` naming `source` for anything else."""
    try:
        table = json_value(text)
        rows = tuple((str(row["label"]), from_table(row["config"], source)) for row in table["rows"])
        claims = Claims(**table["claims"]) if table.get("claims") else None  # older versions had none
        return Plan(rows, tuple(int(seed) for seed in table["seeds"]), int(table["every"]), claims)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source}: expected a comparison's plan, found damage ({cause(error)})") from None


def slug(label: str) -> str:
    """A label as a file name."""
    return re.sub(r"[^A-Za-z0-9.=+_-]+", "-", label)


# --- varied keys


def parse_vary(text: str) -> tuple[str, list[Any]]:
    """Key and values of `key=v1,v2,...`; several names in one value are joined by +, as in conv5+conv6."""
    key, equals, values = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not values.strip():
        raise ConfigError(f"--vary: expected KEY=VALUE,VALUE,..., got {text!r}")
    one_of("--vary", "key", key, tuple(sorted(set(keys()) - {"method", "seed", "fold"})))
    return key, [_value(key, word.strip()) for word in values.split(",")]


def _value(key: str, word: str) -> Any:
    kind = keys()[key].type
    try:
        if kind == "int":
            return int(word)
        if kind == "float":
            return float(word)
        if kind == "bool":
            return {"on": True, "true": True, "off": False, "false": False}[word.lower()]
        if kind.startswith("list"):
            words = [] if word == "none" else word.split("+")
            return words if kind == "list[str]" else [int(entry) for entry in words]
    except (ValueError, KeyError):
        raise ConfigError(f"--vary: {key} must be {kind}, got {word!r}") from None
    return word


def varied(
    methods: Sequence[str],
    vary: Sequence[tuple[str, Sequence[Any]]],
    configure: Callable[..., Config] = resolve,
) -> Iterator[tuple[str, Config]]:
    """Each method with every combination of the varied keys it takes, labelled by them.

    `configure(method=..., key=value, ...)` makes a configuration, so that a varied data set or model brings
    its own settings, as if nothing were varied.
    """
    unused = {key for key, _ in vary if not any(takes(method, key) for method in methods)}
    if unused:
        raise ConfigError(f"--vary: {_listed(sorted(unused))} plays no part in {_listed(methods)}")
    for method in methods:
        own = [(key, values) for key, values in vary if takes(method, key)]
        for choice in itertools.product(*(values for _, values in own)):
            setting = dict(zip((key for key, _ in own), choice, strict=True))
            yield label(method, setting), configure(method=method, **setting)


def label(method: str, setting: Mapping[str, Any]) -> str:
    """The method and what is set, as the tables name it."""
    return " ".join([method, *(f"{key}={written(value, '+')}" for key, value in setting.items())])


def _listed(values: Collection[Any]) -> str:
    return ", ".join(map(str, values)) or "none"
