"""The settings of a few-shot run; presets and users' files may have sections for its methods.

Source: mathematics.md §13, which uses these numbers; a preset says where each of its values comes from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from refimpl.experiments.kinds import FEWSHOT
from refimpl.experiments.settings import RunSettings
from refimpl.fewshot.learner import KINDS
from refimpl.fewshot.outer import OUTER
from refimpl.files.paths import OWN_DATA, expanded
from refimpl.files.presets import Presets
from refimpl.registry import DATASETS, MODELS, key

STATISTICS = ("transductive", "support")

PRESETS = Presets("refimpl.fewshot")


@dataclass(frozen=True)
class FewShotConfig(RunSettings):
    """Everything that determines a few-shot run's result (threads and folders do not)."""

    kind, presets, sections = FEWSHOT, PRESETS, tuple(KINDS)

    method: str = key("fomaml", "few-shot method", choices=tuple(KINDS))
    dataset: str = key(
        "digits", "data set, or a file of your arrays x and y", choices=DATASETS, ending=OWN_DATA
    )
    model: str = key("digits", "network of the zoo", choices=MODELS)
    widths: list[int] = key([], "channels of each convolution; none: the model's usual ones", at_least=1)
    seed: int = key(0, "root of all random numbers of the training", at_least=0)
    start_seed: int = key(-1, "root of the first weights (-1: as the rest)", at_least=-1)
    ticket: str = key("", "folder of a ticket to be trained (refimpl tickets find); without, dense")
    dtype: str = key("float32", "floating-point type", choices=("float32", "float64"))

    ways: int = key(5, "classes of an episode", at_least=2)
    shots: int = key(1, "support samples of each class", at_least=1)
    queries: int = key(15, "query samples of each class in training (0: as many as shots)", at_least=0)
    turned: bool = key(False, "count images turned by 90, 180 and 270 degrees as classes of their own")

    rounds: int = key(1000, "meta-iterations", at_least=1)
    tasks: int = key(4, "episodes of a meta-iteration", at_least=1)
    inner_steps: int = key(1, "gradient steps of the inner loop in training", at_least=1)
    alpha: float = key(0.4, "inner learning rate", above=0.0)
    exact: bool = key(True, "for anil and boil: derivatives through the inner steps; without, first order")
    batch_size: int = key(0, "samples of an inner step of reptile (0: all)", at_least=0)
    outer: str = key("adam", "optimiser of the server", choices=tuple(OUTER))
    eta: float = key(0.001, "learning rate of the server", above=0.0)

    test_steps: int = key(3, "gradient steps of the inner loop at a test", at_least=0)
    test_alpha: float = key(0.0, "inner learning rate at a test (0: as in training)", at_least=0.0)
    test_queries: int = key(15, "query samples of each class at a test (0: as many as shots)", at_least=0)
    test_seed: int = key(0, "root of the episodes of validation and test", at_least=0)
    test_episodes: int = key(600, "test episodes", at_least=2)
    statistics: str = key(
        "transductive", "statistics that normalise query samples at a test", choices=STATISTICS
    )
    validate_every: int = key(0, "meta-iterations between validations (0: none)", at_least=0)
    validation_episodes: int = key(100, "episodes of a validation", at_least=2)
    checkpoint_every: int = key(100, "meta-iterations between checkpoints", at_least=1)

    @classmethod
    def resolve(cls, file: str | Path | None = None, from_preset: str | None = None, **options: Any) -> Self:
        """Resolve them as all `RunSettings`, and make the path of a ticket absolute, too."""
        config = super().resolve(file, from_preset, **options)
        return replace(config, ticket=str(expanded(config.ticket).absolute()) if config.ticket else "")

    def validates(self, iteration: int) -> bool:
        """Whether there is a validation after that meta-iteration."""
        return self.validate_every > 0 and iteration % self.validate_every == 0


# The settings of a test, which `refimpl fewshot test` may replace.
TEST_KEYS = ("test_steps", "test_alpha", "test_queries", "test_seed", "test_episodes", "statistics")


resolve, from_table = FewShotConfig.resolve, FewShotConfig.from_table
