"""Find the runs of a report in run folders and comparisons, and give each a label of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refimpl.errors import InputError, RunError
from refimpl.experiments.compare.plan import label
from refimpl.experiments.compare.run import PLAN, Comparison
from refimpl.experiments.compare.work import Outcome
from refimpl.experiments.config import Config, from_table
from refimpl.experiments.kinds import other_kind
from refimpl.experiments.record import CONFIG, RunFolder

FEW_KEYS = 4  # most keys that label runs of one method; if more keys differ, folders are the labels


@dataclass(frozen=True)
class Subject:
    """A run: its label in figures, its folder, and the configuration with which its model is adapted.

    key: the name under which the folder keeps its accuracy by round.
    """

    label: str
    folder: Path
    config: Config
    key: str


@dataclass(frozen=True)
class Compared:
    """A comparison that was read: its folder, its outcomes over all seeds, and their plan."""

    comparison: Comparison
    outcomes: list[Outcome]

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.comparison.path

    def subjects(self) -> list[Subject]:
        """The trained rows of the first seed and fold, each with the folder of its training."""
        plan = self.comparison.plan
        start = (plan.seeds[0], 0)  # seed and fold
        first = [o for o in self.outcomes if (o.config.seed, o.config.fold) == start]
        done = {outcome.label for outcome in first if outcome.records}
        return [
            Subject(cell.label, job.folder, cell.config, cell.label)
            for job in self.comparison.jobs()
            for cell in job.training.cells
            if (cell.config.seed, cell.config.fold) == start and cell.label in done
        ]


def find(paths: Sequence[Path], data_dir: Path | None) -> tuple[list[Subject], list[Compared]]:
    """The runs to report on, labels all different, and the comparisons among `paths`.

    Raises `RunError` for a path that is neither, and for a comparison that has no finished run.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("report: expected every RUN once, got one twice")
    runs, compared = [], []
    for path in paths:
        if (path / PLAN).is_file():
            compared.append(_read(path, data_dir))
        elif (path / CONFIG).is_file():
            with RunFolder.open(path, lock=False) as folder:
                runs.append((path, from_table(folder.config, str(path))))
        else:
            hint = other_kind(path) or "see refimpl train"
            raise RunError(f"{path}: is no run ({CONFIG}) and no comparison ({PLAN}); {hint}")
    configs = [config for _, config in runs]
    subjects = [Subject(_label(config, configs), path, config, config.method) for path, config in runs]
    for one in compared:
        subjects += one.subjects()
    labels = [subject.label for subject in subjects]
    return [
        replace(one, label=f"{one.label} ({one.folder})") if labels.count(one.label) > 1 else one
        for one in subjects
    ], compared


def _read(path: Path, data_dir: Path | None) -> Compared:
    comparison = Comparison.open(path, data_dir)
    outcomes = comparison.read()
    if not any(outcome.records for outcome in outcomes):
        raise RunError(
            f"{path}: nothing of it is finished; continue it with refimpl compare --resume --out {path}"
        )
    return Compared(comparison, outcomes)


def _label(config: Config, configs: Sequence[Config]) -> str:
    """The method of a configuration, with the keys in which configurations of this method differ, if few."""
    tables = [other.table() for other in configs if other.method == config.method]
    keys = [key for key, value in tables[0].items() if any(table[key] != value for table in tables)]
    return label(config.method, {key: getattr(config, key) for key in keys if len(keys) <= FEW_KEYS})
