"""What the server and all nodes of a federation must agree on, as one small file that each of them has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

from refimpl.data.catalog import source_of
from refimpl.engine.rounds import FederatedExperiment, Link, Patience
from refimpl.errors import ConfigError, RunError, shown
from refimpl.experiments.config import Config, from_table, read_toml
from refimpl.experiments.experiment import trained_network
from refimpl.experiments.methods import build_method, is_gated
from refimpl.experiments.record import CONFIG, RunFolder
from refimpl.files.storage import toml_text
from refimpl.nn.network import Network
from refimpl.rng import SeedTree

OWN = "own.npz"  # the name of the data set where every node brings a file of its own
SECTION = "run"
MOST = 2**31  # numbers of one sample, and classes: a larger job is a mistake


@dataclass(frozen=True)
class Job:
    """A configuration, the shape of a sample and the number of classes: the server has no data to see them.

    Raises `ConfigError` for what cannot be done without the nodes' samples.
    """

    config: Config
    shape: tuple[int, ...]
    classes: int

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1 or prod(self.shape) > MOST or not 1 < self.classes < MOST:
            raise ConfigError(
                f"engine: expected the shape of a sample and at least 2 classes, got {shown(self.shape)} and "
                f"{self.classes}; give --shape 1,28,28 and --classes 10"
            )
        if is_gated(self.config) and self.config.gate_start == "calibrated":
            raise ConfigError(
                "engine: gate_start calibrated needs samples of all nodes before round 1, and the server has "
                "none; use --gate-start open"
            )

    @property
    def own(self) -> bool:
        """Whether every node brings samples of its own."""
        return self.config.dataset == OWN

    @property
    def saving(self) -> Config:
        """The configuration with a checkpoint after every round."""
        return Config(**{**self.config.table(), "checkpoint_every": 1})

    def folder(self, out: Path) -> RunFolder:
        """The run folder at `out`: a new one, or that of a run of this job, which is to be continued."""
        if not (out / CONFIG).is_file():
            return RunFolder.create(out, self.saving.table())
        folder = RunFolder.open(out)
        if folder.config != self.saving.table():
            folder.close()
            raise RunError(f"{out}: has a run with other settings; choose another out, or use its job")
        return folder

    def network(self) -> Network:
        """The network that is trained."""
        return trained_network(self.config, self.shape, self.classes)

    def server(self, link: Link, patience: Patience) -> FederatedExperiment:
        """The server's side: everything but the nodes, with a checkpoint after every round."""
        network, config = self.network(), self.saving
        method, seeds = build_method(config, network), SeedTree(config.seed)
        return FederatedExperiment(config, network, (), (), method, seeds, link=link, patience=patience)

    def text(self) -> str:
        """The job as TOML."""
        agreed = {"input_shape": list(self.shape), "class_count": self.classes}
        return f"{toml_text(agreed)}\n[{SECTION}]\n{toml_text(self.config.table())}"

    def digest(self) -> str:
        """SHA-256 of the job's text: server and nodes compare it."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def read_job(path: Path) -> Job:
    """The job in a file that `Job.text` wrote; raises `ConfigError` for anything else."""
    table = read_toml(path)
    shape, classes, config = (table.get(name) for name in ("input_shape", "class_count", SECTION))
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise ConfigError(f"{path}: expected input_shape as whole numbers, got {shown(shape)}")
    if type(classes) is not int or not isinstance(config, dict):
        raise ConfigError(f"{path}: expected class_count and a section [{SECTION}]; write it again")
    return Job(from_table(config, str(path)), tuple(shape), classes)


def published(config: Config) -> Job:
    """The job with the shape and classes that are published of the configuration's data set."""
    about = source_of("engine", config.dataset).about
    return Job(config, tuple(about.shape), about.classes)
