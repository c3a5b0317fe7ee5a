"""`refimpl fewshot`: meta-trains on few-shot episodes, and tests meta-models on fixed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import SuggestingGroup
from refimpl.cli.options import PATH, Session, key_options, no_talk_options, session_options, shipped
from refimpl.cli.output import answer, command_line, exit_if, say_data, table
from refimpl.cli.progress import working
from refimpl.cli.training import Begin, Lines, Records, Trainer, begin_options
from refimpl.experiments.kinds import FEWSHOT, expect_kind
from refimpl.experiments.record import RunFolder
from refimpl.fewshot.config import PRESETS, TEST_KEYS, FewShotConfig
from refimpl.registry import keys_of

if TYPE_CHECKING:
    import numpy as np

    from refimpl.data.dataset import DataSet
    from refimpl.fewshot.experiment import FewShot, Meta

KEYS = keys_of(FewShotConfig)
BY_PRESET = PRESETS.keys()
TRAINING_KEYS = ("widths", "rounds", "tasks", "inner_steps", "alpha")  # in the JSON of a test
DIVERGED = "diverged"  # shown instead of an accuracy

EPILOG = """\b
Examples:
  refimpl fewshot train --preset digits-2way-1shot --out runs/few
  refimpl fewshot test runs/few
  refimpl fewshot train --preset omniglot-5way-1shot --method maml --data-dir ~/data --out runs/omniglot
  refimpl fewshot classes cifar100 --data-dir ~/data
"""


@click.group(cls=SuggestingGroup, epilog=EPILOG)
def command() -> None:
    """Meta-train and test on few-shot episodes.

    An episode is a small task: N classes with K labelled samples of each, and other samples of the same
    classes to be recognised. `train` learns a start from which a few gradient steps solve new episodes.
    `test` measures that on classes which the training never saw.
    """


preset_option = shipped(PRESETS, "settings")


# --- train


@command.command(
    "train",
    epilog="\b\nExamples:\n  refimpl fewshot train --preset digits-2way-1shot --out runs/few\n"
    "  refimpl fewshot train --out runs/few --resume\n"
    "  refimpl fewshot train --preset cifarfs-5way-1shot --method anil --seed 1 --data-dir ~/data\n"
    "  refimpl fewshot train --dataset mine.npz --model conv4 --ways 3 --shots 5",
)
@begin_options(preset_option, "fewshot-DATASET-METHOD-SEED")
@session_options("threads", "data_dir", "json", "talk")
@key_options(KEYS.values(), BY_PRESET)
def train_command(begin: Begin, session: Session, **options: Any) -> None:
    """Meta-train one few-shot method into a run folder.

    Settings come from --preset; those in the file of --config override them, and the options override both.
    Ctrl-C stops after the meta-iteration in progress. --resume continues from there, and ends in the same
    bytes as an uninterrupted run, for any number of threads.
    """
    Episodic(session).run(begin, options)


class Episodic(Trainer):
    """What `refimpl fewshot train` does."""

    words = ("fewshot", "train")
    room = "refimpl.fewshot"
    prefix = "fewshot-"

    def opening(self, run: FewShot) -> str:
        """What is trained, on how many classes."""
        its, sizes = run.config, [len(part) for part in run.split[:3]]
        turned = ", each in four turns" if its.turned else ""
        return (
            f"{its.method}: {its.ways}-way {its.shots}-shot on {its.dataset}; {sizes[0]} classes for "
            f"training, {sizes[1]} for validation and {sizes[2]} for the test{turned} ({run.split.origin})"
        )

    def told(self, run: FewShot, record: Meta) -> str:
        """See `Trainer`."""
        done = f"iteration {record.round}/{run.config.rounds}"
        valid = f"  validation {_share(record.validation)}" if run.config.validates(record.round) else ""
        return f"{run.config.method}  {done}  loss {record.loss:.4f}{valid}"

    def numbers(self, run: FewShot, rounds: Records) -> dict[str, Any]:
        """See `Trainer`."""
        tail = rounds[-max(1, len(rounds) // 10) :]
        loss = sum(entry["loss"] for entry in tail) / len(tail)
        checked = [entry["validation"] for entry in rounds if run.config.validates(entry["round"])]
        return {"loss": loss, "validation": checked, "data": run.dataset.note}

    def lines(self, run: FewShot, folder: RunFolder, rounds: Records) -> Lines:
        """See `Trainer`."""
        found, seconds = self.numbers(run, rounds), sum(entry["seconds"] for entry in rounds)
        checked = found["validation"]
        best = max((share for share in checked if share is not None), default=None)
        return [
            ("iterations", str(len(rounds))),
            ("loss, last tenth", f"{found['loss']:.4f}"),
            *([("validation", f"{_share(checked[-1])}, best {_share(best)}")] if checked else []),
            ("seconds", f"{seconds:.1f}, {seconds / len(rounds):.3g} an iteration"),
            ("next", command_line("fewshot", "test", folder.path, session=self.session)),
        ]


def _share(accuracy: float | None) -> str:
    """An accuracy in percent; without one, that the run diverged."""
    return DIVERGED if accuracy is None or math.isnan(accuracy) else f"{accuracy:.1%}"


# --- test


@command.command(
    "test",
    epilog="\b\nExamples:\n  refimpl fewshot test runs/few\n"
    "  refimpl fewshot test runs/maml-0 runs/maml-1 runs/maml-2 --statistics support\n"
    "  refimpl fewshot test runs/few --test-episodes 1000 --test-queries 0 --json",
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@session_options("threads", "data_dir", "json", "talk")
@key_options((KEYS[name] for name in TEST_KEYS), BY_PRESET)
def test_command(runs: tuple[Path, ...], session: Session, **options: Any) -> None:
    """Test the meta-models of runs on fixed episodes of the test classes.

    In each episode the method takes its inner steps on the support samples, then the other samples are
    classified once. All runs with the same sizes of episodes see the same ones. The interval is that of
    Student's t over episodes, and says nothing about other trainings. So where runs differ in their seed
    only, one row more has the mean over these runs with their standard deviation (ddof 1).

    With --statistics transductive, batch normalisation takes its statistics from the samples that are
    classified together, as most published numbers do; with support, from the support samples. The accuracies
    are also written to RUN/report/fewshot.json.

    An episode whose adapted model is not finite has diverged. It is counted and left out of the mean, its run
    is left out of the means over seeds, and the command exits with 1.
    """
    given = {name: value for name, value in options.items() if value is not None}
    found: list[tuple[FewShotConfig, np.ndarray]] = []
    known = None  # the data of the run before, which need not be read again
    for path in runs:
        run, values = _tested(path, given, session, known)
        known = run.dataset
        found.append((run.config, values))
    groups = _groups([config for config, _ in found], [values for _, values in found])
    entries = [_entry(path, *one) for path, one in zip(runs, found, strict=True)]
    answer(session, {"runs": entries, "seeds": groups}, _text(entries, groups))
    lost = [entry for entry in entries if entry["diverged"]]
    if lost:
        count, whole = (sum(entry[name] for entry in entries) for name in ("diverged", "test_episodes"))
        exit_if(
            f"adaptation diverged in {count} of {whole} episodes, first of {lost[0]['run']} (not finite); "
            "try a smaller test_alpha or test_steps"
        )


def _text(entries: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> str:
    """The table of runs, and a line for each group of seeds."""
    rows = [
        [
            entry["run"],
            entry["method"],
            f"{entry['ways']}-way {entry['shots']}-shot",
            entry["statistics"],
            _accuracy(entry),
            str(entry["episodes"]),
        ]
        for entry in entries
    ]
    lines = [
        f"{group['method']}, {group['seeds']} training seeds: {100 * group['mean']:.2f} %, standard "
        f"deviation over seeds {100 * group['spread']:.2f}"
        for group in groups
    ]
    header = ["run", "method", "episodes of", "statistics", "accuracy %", "episodes"]
    return "\n".join([table(header, rows), *lines])


def _accuracy(entry: Mapping[str, Any]) -> str:
    if not entry["diverged"]:
        return f"{100 * entry['accuracy']:.2f} +- {100 * entry['half']:.2f}"
    mean = "" if math.isnan(entry["accuracy"]) else f"{100 * entry['accuracy']:.2f}, "
    return f"{mean}{entry['diverged']} {DIVERGED}"


def _tested(
    path: Path, given: dict[str, Any], session: Session, known: DataSet | None
) -> tuple[FewShot, np.ndarray]:
    """A run with the settings of its test, and its accuracy in each episode."""
    from refimpl.experiments.experiment import meta_model
    from refimpl.fewshot.evaluate import accuracies
    from refimpl.fewshot.experiment import reopen
    from refimpl.files.environment import cores

    with RunFolder.open(path, lock=False) as folder:
        run = reopen(folder, session.data_dir, known)
        run = replace(run, config=replace(run.config, **given))
        w, test = meta_model(run, folder), run.test()
        if not session.as_json:
            say_data(run.dataset.note)
        with working(len(test.tasks), session.talk) as progress:
            found = accuracies(test, w, session.threads or cores(), lambda: progress.step(f"tested  {path}"))
        folder.save_report("fewshot", {**_entry(path, run.config, found), "accuracies": found})
    return run, found


def _entry(path: Path, config: FewShotConfig, values: np.ndarray) -> dict[str, Any]:
    """A run's test in numbers."""
    from refimpl.fewshot.evaluate import interval

    accuracy = interval(values)
    settings = ("method", "dataset", "seed", "ways", "shots", *TRAINING_KEYS, *TEST_KEYS)
    return {
        "run": str(path),
        **{name: getattr(config, name) for name in settings},
        "accuracy": accuracy.mean,
        "half": accuracy.half,
        "episodes": accuracy.episodes,
        "diverged": accuracy.diverged,
    }


def _groups(configs: Sequence[FewShotConfig], values: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the runs that differ in their seed only and diverged nowhere."""
    import numpy as np

    kinds: dict[str, dict[int, float]] = {}
    for config, found in zip(configs, values, strict=True):
        if np.isnan(found).any():
            continue
        kinds.setdefault(repr(replace(config, seed=0)), {})[config.seed] = float(found.mean())
    methods = {repr(replace(config, seed=0)): config.method for config in configs}
    return [
        {
            "method": methods[kind],
            "seeds": len(means),
            "mean": float(np.mean([*means.values()])),
            "spread": float(np.std([*means.values()], ddof=1)),
        }
        for kind, means in kinds.items()
        if len(means) > 1
    ]


# --- classes


@command.command("classes", epilog="\b\nExample:\n  refimpl fewshot classes omniglot --data-dir ~/data")
@click.argument("dataset")
@session_options("data_dir")
@no_talk_options
def classes_command(dataset: str, session: Session) -> None:
    """Print which classes of a data set, or of a FILE.npz, are for training, validation and test."""
    from refimpl.data import class_split, load

    data = load(dataset, session.data_dir)
    split = class_split(data)
    click.echo(f"split: {split.origin}")
    for part in ("train", "validation", "test"):
        numbers = getattr(split, part)
        click.echo(f"{part} ({len(numbers)}): {', '.join(data.class_names[number] for number in numbers)}")


# --- report


@command.command(
    "report", epilog="\b\nExample:\n  refimpl fewshot report runs/fomaml-0 runs/maml-0 --out figures"
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, help="Folder of the figures.  [RUN/report; runs/report for several]")
@no_talk_options
def report_command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Draw runs side by side: loss, validation accuracy, and accuracy in the test episodes.

    The last figure needs `refimpl fewshot test` of every run beforehand. Figures need the extra `plot`.
    """
    from refimpl.report.canvas import require_matplotlib, save
    from refimpl.report.fewshot import Trained, accuracy_figure, read_test, training_figure

    require_matplotlib()
    found = []
    for path in runs:
        with RunFolder.open(path, lock=False) as folder:
            expect_kind(FEWSHOT, folder.config, str(path))
            found.append(Trained(str(path), folder.metrics(), read_test(folder.report / "fewshot.json")))
    out = out or (runs[0] if len(runs) == 1 else Path("runs")) / "report"
    drawn = [run for run in found if run.records]
    tested = [run for run in found if run.test]
    if drawn:
        click.echo(save(out / "fewshot-training.png", lambda: training_figure(drawn)))
    if tested:
        click.echo(save(out / "fewshot-test.png", lambda: accuracy_figure(tested)))
