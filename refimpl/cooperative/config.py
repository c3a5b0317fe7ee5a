"""The settings of a cooperative run.

Source: mathematics.md §15, which uses these numbers. Of the paper only the abstract is known: all are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from refimpl.cooperative.descent import SCHEDULES
from refimpl.experiments.kinds import COOPERATIVE
from refimpl.experiments.settings import RunSettings
from refimpl.files.paths import OWN_DATA
from refimpl.files.presets import Presets
from refimpl.registry import DATASETS, MODELS, SCHEMES, key

PRESETS = Presets("refimpl.cooperative")


@dataclass(frozen=True)
class CooperativeConfig(RunSettings):
    """Everything that determines a cooperative run's result (threads and folders do not)."""

    kind, presets = COOPERATIVE, PRESETS

    scheme: str = key("cooperative", "what is trained", choices=SCHEMES)
    dataset: str = key(
        "digits", "data set, or a file of your arrays x and y", choices=DATASETS, ending=OWN_DATA
    )
    model: str = key("resnet20", "network of the zoo, with stages", choices=MODELS)
    widths: list[int] = key([], "channels of each stage; none: the model's usual ones", at_least=1)
    seed: int = key(0, "root of all random numbers of the training", at_least=0)
    dtype: str = key("float32", "floating-point type", choices=("float32", "float64"))

    depths: list[int] = key([], "lesser depths of the Teammates; none: all below the full one", at_least=1)
    sets: str = key(
        "all",
        "whether both Teammates have all lesser depths, or each every second one",
        choices=("all", "complementary"),
    )
    own_norms: bool = key(True, "scale and shift of normalisations for each depth; without, one for all")
    a: float = key(1.0, "weight of what the Leader teaches the Teammates", at_least=0.0)
    b: float = key(1.0, "weight of what the Teammates teach each other", at_least=0.0)
    c: float = key(1.0, "weight of what a Teammate teaches its sub-networks", at_least=0.0)
    temperature: float = key(1.0, "temperature T of all teaching", above=0.0)

    gated: bool = key(False, "gates on the convolutions that the model usually gates; the Leader has none")
    gate_mode: str = key("hard", "how gates decide in training", choices=("hard", "ste"))
    rho: float = key(0.03, "weight of the group lasso on the gates", at_least=0.0)

    epochs: int = key(10, "passes over the training samples", at_least=1)
    batch_size: int = key(128, "samples of a step", at_least=2)
    rate: float = key(0.1, "learning rate at the start", above=0.0)
    momentum: float = key(0.9, "momentum of the descent", at_least=0.0, below=1.0)
    decay: float = key(0.0005, "weight decay", at_least=0.0)
    schedule: str = key("cosine", "how the learning rate falls", choices=tuple(SCHEDULES))
    crop: int = key(0, "pixels by which training images are moved at most", at_least=0)
    flip: bool = key(False, "mirror half of the training images")

    split_seed: int = key(0, "root of the division into training, validation and test", at_least=0)
    validation: float = key(0.1, "share of the training part for validation", above=0.0, below=1.0)
    test: float = key(0.2, "share for the test where none is published", above=0.0, below=1.0)
    train_samples: int = key(0, "training samples at most (0: all)", at_least=0)
    test_samples: int = key(0, "test samples at most (0: all)", at_least=0)
    calibration: int = key(256, "training samples that give the statistics at rest", at_least=2)
    validate_every: int = key(0, "epochs between validations (0: none)", at_least=0)
    checkpoint_every: int = key(1, "epochs between checkpoints", at_least=1)

    @property
    def rounds(self) -> int:
        """The epochs, as `experiments.experiment.train` calls them."""
        return self.epochs


resolve, from_table = CooperativeConfig.resolve, CooperativeConfig.from_table
