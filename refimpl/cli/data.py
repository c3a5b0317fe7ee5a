"""`refimpl data`: lists, verifies and fetches data sets, and shows how they are cut into nodes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import SuggestingGroup
from refimpl.cli.interrupt import resumable
from refimpl.cli.options import (
    Session,
    config_options,
    file_option,
    no_talk_options,
    preset_option,
    session_options,
)
from refimpl.cli.output import answer, exit_unless, facts, print_json, table
from refimpl.cli.progress import PLAIN_SECONDS, PLAIN_SHARE, REDRAW_SECONDS, Progress, duration
from refimpl.experiments.config import resolve
from refimpl.registry import DATASETS, PARTITIONS

if TYPE_CHECKING:
    from refimpl.data.dataset import DataSet
    from refimpl.data.partition import Statistics
    from refimpl.data.places import Found
    from refimpl.data.verify import Check

EPILOG = """\b
Examples:
  refimpl data list --data-dir ~/data
  refimpl data verify mnist --data-dir ~/data
  refimpl data fetch cifar10 --data-dir ~/data
  refimpl data partition --dataset digits --partition two-class --nodes 8 --targets 2
"""
LISTED = ("data set", "training", "test", "image", "classes", "state")
CHOICES = (
    "dataset", "seed", "nodes", "targets", "partition", *PARTITIONS.keys(), "node_min", "node_max", "sizes",
    "target_min", "target_max", "folds", "fold",
    "support", "test_share",
)  # fmt: skip
NODES = ("node", "training", "support", "test", "classes (samples)")
FAILED = ("wrong", "missing")
SHOWN_CLASSES = 8


@click.group(cls=SuggestingGroup, epilog=EPILOG)
def command() -> None:
    """List, verify and fetch data sets; show how one is cut into nodes.

    `digits` is in the package. The others are looked for in the folder given by --data-dir or REFIMPL_DATA.
    """


# --- list


@command.command("list", epilog="\b\nExample:\n  refimpl data list --data-dir ~/data")
@session_options("data_dir", "json")
@no_talk_options
def list_command(session: Session) -> None:
    """Show all data sets, where they are looked for, and which of their files are there."""
    data_dir = session.data_dir
    entries = [_entry(name, data_dir) for name in DATASETS]
    content = {"data_dir": None if data_dir is None else str(data_dir), "datasets": entries}
    lines = [
        _table(LISTED, [_listed(entry) for entry in entries]),
        f"\nPlaces in {data_dir or 'the folder given by --data-dir or REFIMPL_DATA; none is set'}",
        facts([(f"  {e['name']}", ", ".join(e["looked_for"]) or e["state"]) for e in entries]),
        "\nLicence; reference",
        facts([(f"  {e['name']}", f"{e['licence']}; {e['citation']}") for e in entries]),
        "\nYour own: --dataset FILE.npz with arrays x and y (or x_train, y_train, x_test, y_test)",
    ]
    answer(session, content, "\n".join(lines))


def _entry(name: str, data_dir: Path | None) -> dict[str, Any]:
    """What is known about a data set, and which of its files are there; none is read."""
    from refimpl.data import places
    from refimpl.data.catalog import source_of

    source = source_of("data", name)
    entry = {"name": name, **source.about._asdict(), "looked_for": list(places.looked_for(source))}
    if source.home or not source.forms:
        state = "in the package" if source.home else "made by its code"
        return {**entry, "place": None, "usable": True, "state": state}
    found = None if data_dir is None else places.locate(source, data_dir)
    if found is None:
        return {**entry, "place": None, "usable": False, "state": "not there"}
    return {**entry, "place": str(found.place), "usable": found.serves, "state": _state(found)}


def _state(found: Found) -> str:
    if not found.missing:
        return "there"
    listed = ", ".join(found.missing)
    return f"partly: no {listed}" if found.serves else f"cannot be used: lacks {listed}"


def _listed(entry: dict[str, Any]) -> tuple[str, ...]:
    size = "x".join(str(side) for side in entry["shape"])
    return (
        entry["name"], str(entry["train"]), str(entry["test"]), size, str(entry["classes"]), entry["state"]
    )  # fmt: skip


# --- verify


@command.command("verify", epilog="\b\nExamples:\n  refimpl data verify all\n  refimpl data verify mine.npz")
@click.argument("name", metavar=f"[{'|'.join(DATASETS)}|FILE.npz|all]")
@session_options("data_dir", "json", "talk")
def verify_command(name: str, session: Session) -> None:
    """Compare the files of a data set with their published checksums.

    Files are compared by their content, however they are packed. Nothing is changed. The command exits with 1
    if a file is wrong, or if one is missing without which the rest cannot be used. `all` skips data sets that
    are not there.
    """
    if name == "all":
        for one in DATASETS:  # if no folder is set, say so before anything is printed
            _located(one, session.data_dir)
    checked: dict[str, list[Check]] = {}
    for one in DATASETS if name == "all" else (name,):
        checked[one] = _checks(one, session, passing=name == "all")
        if not session.as_json:  # printed at once, because unpacking takes seconds
            click.echo("\n".join(map(_checked, checked[one])))
    passed = not any(check.state in FAILED for found in checked.values() for check in found)
    if session.as_json:
        sets = {one: [check._asdict() for check in found] for one, found in checked.items()}
        print_json({"passed": passed, "datasets": sets})
    exit_unless(passed)


def _checks(name: str, session: Session, passing: bool) -> list[Check]:
    """The checks of one data set; with `passing`, a data set that is not there at all is no failure."""
    from refimpl.data.verify import verify

    with Progress(0, session.talk) as progress:

        def on_check(check: Check, files: int) -> None:
            progress.total = files
            progress.step(f"verified {check.file}")

        checks = verify(name, session.data_dir, on_check)
    if passing and _located(name, session.data_dir) is None:
        return [check._replace(state="absent") for check in checks]
    return checks


def _located(name: str, data_dir: Path | None) -> Found | None:
    """The files of a data set that are there, or None."""
    from refimpl.data.catalog import source_of
    from refimpl.data.places import given_root, locate

    source = source_of("data", name)
    return locate(source, given_root(source, data_dir))


def _checked(check: Check) -> str:
    return f"{check.state.ljust(len('missing'))}  {check.file}  {check.detail}"


# --- fetch


@command.command(
    "fetch",
    epilog="\b\nExamples:\n  refimpl data fetch mnist --data-dir ~/data\n"
    "  refimpl data fetch mnist --data-dir ~/data --from https://mirror.example/mnist/",
)
@click.argument("name", type=click.Choice(DATASETS))
@click.option(
    "--from", "source", metavar="URL", help="Folder with the published files.  [official addresses]"
)
@session_options("data_dir", "json", "talk")
def fetch_command(name: str, source: str | None, session: Session) -> None:
    """Download a data set from its official addresses, and check it.

    Files that are there already are not changed. If a download was interrupted, the same command continues
    it. A file gets its name only after its checksum was compared with the published one.
    """
    from refimpl.data.fetch import fetch

    files, verdict = _already(name, session.data_dir), "was there already, as published"
    fetched = not files
    if fetched:
        how = "; the same command goes on where it was"
        with resumable(lambda: how), Progress(0, session.talk) as progress:
            files = [str(path) for path in fetch(name, session.data_dir, Meter(progress), source=source)]
        verdict = "as published"
    text = "\n".join(f"{file}: {verdict}" for file in files)
    answer(session, {"name": name, "fetched": fetched, "files": files}, text)


def _already(name: str, data_dir: Path | None) -> list[str]:
    """The files of a data set that is complete and right, in whatever form; otherwise none."""
    from refimpl.data.verify import verify

    found = _located(name, data_dir)
    if found is None or found.missing:
        return []
    checks = [check for check in verify(name, data_dir) if check.state != "absent"]
    return [check.file for check in checks] if all(check.state == "ok" for check in checks) else []


class Meter:
    """Shows how many bytes of a download have arrived: often on a terminal, seldom elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._patient = not progress.terminal
        self._file, self._shown, self._shown_at = "", 0, -float("inf")
        self._begun_at, self._had = 0.0, 0  # when this download began, and bytes before it

    def __call__(self, file: str, done: int, total: int | None) -> None:
        """Note that `done` of `total` bytes of `file` have arrived."""
        now = time.monotonic()
        if file != self._file:
            self._file, self._shown, self._shown_at = file, done, -float("inf")
            self._begun_at, self._had = now, done
        if done != total and not self._due(now, done, total):
            return
        self._shown, self._shown_at = done, now
        share = f" of {total / 1e6:.3g} MB ({done / total:.0%})" if total else " MB"
        self._progress.say(f"fetch  {file}  {done / 1e6:.3g}{share}{self._pace(now, done, total)}")

    def _pace(self, now: float, done: int, total: int | None) -> str:
        """The rate and the remaining time, as soon as the rate is known."""
        if done <= self._had or now <= self._begun_at:
            return ""
        rate = (done - self._had) / (now - self._begun_at)
        left = f"  {duration((total - done) / rate)} left" if total else ""
        return f"  {rate / 1e6:.3g} MB/s{left}"

    def _due(self, now: float, done: int, total: int | None) -> bool:
        if self._patient:
            much = total is not None and done - self._shown >= PLAIN_SHARE * total
            return much or now - self._shown_at >= PLAIN_SECONDS
        return now - self._shown_at >= REDRAW_SECONDS


# --- partition


@command.command(
    "partition",
    epilog="\b\nExamples:\n"
    "  refimpl data partition --dataset digits --partition dirichlet --concentration 0.3\n"
    "  refimpl data partition --preset mnist --data-dir ~/data --nodes 20 --json\n"
    "  refimpl data partition --dataset mine.npz --nodes 3 --targets 1 --sizes 40,30,30,20",
)
@file_option
@preset_option
@session_options("data_dir", "json")
@no_talk_options
@config_options(CHOICES)
def partition_command(file: Path | None, from_preset: str | None, session: Session, **options: Any) -> None:
    """Show how a data set is cut into nodes: sizes, classes, overlap.

    The nodes are those that `refimpl train` makes of the same options and the same seed: meta-training nodes
    first, then target nodes. A node's support samples are among its training samples. Overlap is the
    number of samples that occur more than once in all nodes together, counted from their positions in
    the data set.
    """
    from refimpl.data.catalog import load
    from refimpl.data.partition import plan, statistics
    from refimpl.experiments.dealing import build_partition

    config = resolve(file, from_preset, per_round=0, **options)  # rounds do not matter here
    dataset = load(config.dataset, session.data_dir)
    found = statistics(dataset, plan(dataset, build_partition(config), config.seed))
    content = {"config": {name: getattr(config, name) for name in CHOICES}, **_content(dataset, found)}
    lines = _table(NODES, [_node_line(node) for node in _nodes(found)])
    answer(session, content, f"{lines}\n\n{facts(_totals(dataset, found))}")
    exit_unless(not found.overlap)


def _content(dataset: DataSet, found: Statistics) -> dict[str, Any]:
    return {
        "samples": len(dataset),
        "classes": dataset.classes,
        "data": dataset.note,
        "nodes": _nodes(found),
        "training": sum(found.train_sizes),
        "test": sum(found.test_sizes),
        "used": found.used,
        "overlap": found.overlap,
        "nodes_per_class": list(found.nodes_per_class),
    }


def _nodes(found: Statistics) -> list[dict[str, Any]]:
    """Each node's name, sizes and number of samples of each of its classes."""
    return [
        {
            "node": name,
            "training": found.train_sizes[i],
            "support": found.support_sizes[i],
            "test": found.test_sizes[i],
            "classes": dict(zip(map(str, found.classes[i]), found.class_counts[i], strict=True)),
        }
        for i, name in enumerate(found.names)
    ]


def _node_line(node: dict[str, Any]) -> tuple[str, ...]:
    sizes = (str(node[key]) for key in ("training", "support", "test"))
    return node["node"], *sizes, _classes(node["classes"])


def _classes(counts: dict[str, int]) -> str:
    """The classes of a node with their numbers of samples; only the first few if there are many."""
    pairs = [f"{label} ({count})" for label, count in counts.items()]
    more = len(pairs) - SHOWN_CLASSES
    return "  ".join(pairs) if more <= 1 else "  ".join([*pairs[:SHOWN_CLASSES], f"and {more} more"])


def _totals(dataset: DataSet, found: Statistics) -> list[tuple[str, str]]:
    train, uses = found.train_sizes, found.nodes_per_class
    lines = [
        ("data set", f"{dataset.name}: {len(dataset)} samples, {dataset.classes} classes"),
        ("training sizes", f"{min(train)}..{max(train)}, {sum(train)} in all"),
        ("test sizes", f"{min(found.test_sizes)}..{max(found.test_sizes)}, {sum(found.test_sizes)} in all"),
        ("nodes of a class", f"{min(uses)}..{max(uses)}"),
        ("used", f"{found.used} of {len(dataset)} samples ({found.used / len(dataset):.1%})"),
        ("overlap", str(found.overlap)),
    ]
    return [*lines, ("data", dataset.note)] if dataset.note else lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose last column holds words and is therefore aligned to the left."""
    width = max(len(cells[-1]) for cells in (header, *rows))
    padded = [(*cells[:-1], cells[-1].ljust(width)) for cells in (header, *rows)]
    return table(padded[0], padded[1:])
