"""What is searched: keys and their ranges, and the settings that are tried."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from refimpl.errors import ConfigError, one_of
from refimpl.experiments.config import Config, adaptation_keys, from_table, keys
from refimpl.experiments.methods import takes
from refimpl.registry import METHODS, keys_of
from refimpl.rng import SeedTree

Setting = dict[str, Any]
KINDS = ("random", "grid")
LARGEST_BUDGET = 10_000  # settings are listed in advance
FACTOR = 3  # of successive halving
DIGITS = 3  # significant ones of a tried value
LAM_BETA = 0.5  # beta follows lam: lam beta <= 1/2 is what the theory asks


def ranges_of(method: str) -> dict[str, tuple[float, float]]:
    """The ranges in which a method is searched unless told otherwise, by key, as the keys declare them.

    Keys that most methods take come first: random settings of the same number then agree in them.
    """
    declared = {**keys(), **keys_of(METHODS[method])}
    found = {name: one.search for name, one in declared.items() if one.search and takes(method, name)}
    common = [key for key in found if 2 * sum(takes(method, key) for method in METHODS) > len(METHODS)]
    return {key: found[key] for key in dict.fromkeys([*common, *found])}


@dataclass(frozen=True)
class Search:
    """The search of one method: `budget` settings of the keys in `ranges`, all else as in `config`.

    kind: `random` (log-uniform) or `grid` (levels in geometric progression, as many as the budget admits);
    seeds: of the runs of every trial; validation: nodes held out; draw: seed of the random settings;
    adaptations: random settings of the adaptation that are tried on each one of the meta-training;
    rungs: of successive halving (1: none), from the shortest trainings to those of all rounds. On each rung
    training takes `FACTOR` times the rounds of the one before, for the best 1/FACTOR of its settings; rung:
    the one that this search is for. Raises `ConfigError` for what cannot be searched.

    Source: Jamieson & Talwalkar 2016 (successive halving), with the factor of Li et al. 2018.
    """

    config: Config
    ranges: Mapping[str, tuple[float, float]]
    budget: int
    kind: str = "random"
    seeds: tuple[int, ...] = (100,)
    validation: int = 2
    draw: int = 0
    adaptations: int = 1
    rungs: int = 1
    rung: int = 0

    def __post_init__(self) -> None:
        one_of("tune", "kind", self.kind, KINDS)
        if min(self.budget, self.adaptations, self.rungs) < 1 or not self.ranges or not self.seeds:
            raise ConfigError(
                "tune: expected a budget, adaptations and rungs of at least 1, some keys, some seeds"
            )
        if self.budget > LARGEST_BUDGET:
            raise ConfigError(f"tune: expected a budget of at most {LARGEST_BUDGET}, got {self.budget}")
        if not 1 <= self.validation < self.config.nodes:
            raise ConfigError(
                f"tune: cannot hold {self.validation} of {self.config.nodes} training nodes out; "
                "choose at least 1, and leave some to train"
            )
        if self.config.per_round > self.config.nodes - self.validation:
            raise ConfigError(
                f"tune: per_round {self.config.per_round} exceeds the {self.config.nodes - self.validation} "
                "nodes that are left to train; hold fewer out"
            )
        floats = [name for name, one in keys().items() if one.type == "float"]
        for key, (low, high) in self.ranges.items():
            if key not in floats or not takes(self.config.method, key):
                raise ConfigError(f"tune: {key} is no number that {self.config.method} takes")
            if not 0 < low < high < math.inf:
                raise ConfigError(f"tune: expected 0 < low < high for {key}, got {low}:{high}")
        for setting in self.settings():
            replace(self.config, **setting)  # raises what is impossible

    def at(self, rung: int) -> Self:
        """The search on a rung: the same settings, with its share of the rounds."""
        rounds = math.ceil(self.config.rounds / FACTOR ** (self.rungs - 1 - rung))
        return replace(self, rung=rung, config=replace(self.config, rounds=rounds))

    def settings(self) -> list[Setting]:
        """What is tried, trial by trial; a larger budget goes on where a smaller random one ends."""
        tried = self._grid() if self.kind == "grid" else map(self._random, range(self.budget))
        return [self._tied(dict(zip(self.ranges, values, strict=True))) for values in tried]

    def _random(self, trial: int) -> list[float]:
        training, adaptation = (self._shares(draw) for draw in (trial // self.adaptations, trial))
        late = adaptation_keys()
        return [
            _between(*ends, adaptation[i] if key in late else training[i])
            for i, (key, ends) in enumerate(self.ranges.items())
        ]

    def _shares(self, draw: int) -> np.ndarray:
        return SeedTree(self.draw).generator("tune", draw).random(len(self.ranges))

    def _grid(self) -> Iterator[tuple[float, ...]]:
        levels = grid_levels(len(self.ranges), self.budget)
        return itertools.product(
            *(
                [_between(*ends, share) for share in _spaced(n)]
                for ends, n in zip(self.ranges.values(), levels, strict=True)
            )
        )

    def _tied(self, setting: Setting) -> Setting:
        if "lam" in setting and "beta" not in setting and takes(self.config.method, "beta"):
            return {**setting, "beta": _rounded(LAM_BETA / setting["lam"])}
        return setting

    def table(self) -> dict[str, Any]:
        """The search as JSON holds it."""
        return {
            **asdict(self),
            "config": self.config.table(),
            "ranges": {k: list(v) for k, v in self.ranges.items()},
        }


def search_from(table: Mapping[str, Any], source: str = "tune") -> Search:
    """The search written by `Search.table`, of which messages speak as `source`."""
    ranges = {str(key): (float(low), float(high)) for key, (low, high) in table["ranges"].items()}
    config, seeds = from_table(table["config"], source), tuple(int(seed) for seed in table["seeds"])
    return Search(**{**table, "config": config, "ranges": ranges, "seeds": seeds})


def grid_levels(keys: int, budget: int) -> list[int]:
    """How many levels each key gets: as equal as possible, the first keys more, their product <= budget."""
    levels = [1] * keys
    while True:
        for index in sorted(range(keys), key=lambda i: (levels[i], i)):
            more = [n + (i == index) for i, n in enumerate(levels)]
            if math.prod(more) <= budget:
                levels = more
                break
        else:
            return levels


def _spaced(count: int) -> list[float]:
    """`count` points in [0, 1], the ends included; the middle for one."""
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]


def _between(low: float, high: float, share: float) -> float:
    """The point of [low, high] at `share` of the way, on a logarithmic scale."""
    return _rounded(low * (high / low) ** share)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
