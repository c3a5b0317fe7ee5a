"""Kill -9 at random instants, again and again until a command gets through: nothing lost, nothing torn.

`python tests/kill.py --times 200 --seed 0` prints a table: times killed, runs that ended, losses. A command
more that writes files is a row more in `WORKLOADS`. The processes are forked from this one, in which
everything is imported and compiled, so that the instants fall on the work and not on the start of Python.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from forks import fork

from refimpl.cli import app
from refimpl.experiments.compare.run import Comparison
from refimpl.experiments.record import RunFolder
from refimpl.experiments.tune.record import Tuning
from refimpl.federated.warmup import warm_up
from refimpl.fewshot.tickets.masks import load_mask
from refimpl.fewshot.tickets.ticket import facts_of, settings_of
from refimpl.report.canvas import has_matplotlib

SMALL = ("--nodes", "3", "--targets", "1", "--local-steps", "1", "--threads", "1", "-q")
TRAIN = ("train", "--out", "run", "--method", "metagater", "--rounds", "12", *SMALL)
PLAIN = ("train", "--out", "run", "--method", "fedavg", "--rounds", "12", *SMALL)  # has no gap to solve for
PATIENCE = 120.0  # seconds for a process that nobody kills
ENDS = {".json": b"}\n", ".html": b"</html>\n", ".png": b"IEND\xaeB`\x82"}  # of files that are whole


@dataclass(frozen=True)
class Workload:
    """A command that is killed: `start` it, or `resume` it where the file `made` is already there.

    first: a command that is let through before; check: raises if what a killed process left cannot be read;
    result: what must be the same in the end, without what a clock says.
    """

    name: str
    start: tuple[str, ...]
    resume: tuple[str, ...]
    made: str
    check: Callable[[Path], object]
    result: Callable[[Path], object]
    first: tuple[str, ...] = ()


# --- what is left, and what must be the same


def check_run(folder: Path) -> None:
    """The run is whole or not there: configuration, metrics, checkpoint, model and reports can be read."""
    if not folder.exists():
        return
    with RunFolder.open(folder) as run:  # its lock has died with the process
        rounds = [entry["round"] for entry in run.metrics()]
        assert rounds == list(range(1, len(rounds) + 1)), f"rounds {rounds}"
        done = run.load_checkpoint().round if run.has_checkpoint else 0
        assert done <= len(rounds), f"a checkpoint of round {done}, metrics of {len(rounds)}"
        if run.has_model:
            run.load_model()
        for file in run.report.glob("*.json"):
            json.loads(file.read_text())


def run_result(folder: Path) -> object:
    with RunFolder.open(folder) as run:
        rounds, state = run.metrics(), (folder / "checkpoint.npz").read_bytes()
    model, config = ((folder / name).read_bytes() for name in ("meta_model.npz", "config.toml"))
    return model, state, config, timeless(rounds), reports(folder), names(folder)


def reports(folder: Path) -> object:
    return {file.name: timeless(json.loads(file.read_text())) for file in folder.glob("report/*.json")}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def timeless(value: object) -> object:
    """JSON without entries about seconds."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "second" not in key}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def check_report(folder: Path) -> None:
    check_run(folder)
    for file in folder.glob("report/[!.]*"):
        assert file.read_bytes().endswith(ENDS[file.suffix]), f"{file.name} is torn"


def report_result(folder: Path) -> object:
    drawn = {file.name: file.read_bytes() for file in folder.glob("report/*.png")}
    drawn.pop("work.png", None)  # it shows seconds, and so does the page
    return reports(folder), drawn, names(folder)


def check_comparison(folder: Path) -> None:
    if (folder / "plan.json").exists():
        Comparison.open(folder)
        for run in (folder / "runs").glob("[!.]*"):
            check_run(run)


def comparison_result(folder: Path) -> object:
    rows = json.loads((folder / "results.json").read_text())
    return [run_result(run) for run in sorted(folder.glob("runs/*"))], timeless(rows["rows"]), names(folder)


def check_search(file: Path) -> None:
    if file.exists():
        Tuning.open(file)
    if file.with_suffix(".toml").exists():
        assert file.with_suffix(".toml").read_text().endswith("\n")


def check_ticket(folder: Path) -> None:
    if folder.exists():
        settings_of(folder)
        check_run(folder / "dense")
        for mask in folder.rglob("mask*/[!.]*.npz"):
            load_mask(mask)
        if (folder / "ticket.json").exists():
            facts_of(folder)
            load_mask(folder / "mask.npz")


def ticket_result(folder: Path) -> object:
    content = [file.read_bytes() for file in sorted(folder.glob("*.npz"))]
    return content, timeless(facts_of(folder)), run_result(folder / "dense"), names(folder)


def search_result(file: Path) -> object:
    trials = [timeless(json.loads(line)) for line in file.read_text().splitlines()]
    return trials, file.with_suffix(".toml").read_bytes(), names(file.parent)


COMPARE = ("compare", "--out", "c", "--methods", "fedavg,metagater", "--seeds", "0", "--rounds", "4", *SMALL)
TUNE = (
    *("tune", "--method", "fedavg,metagater", "--budget", "2", "--out", "t/t.toml"),
    *("--nodes", "4", "--targets", "1", "--rounds", "2", "--local-steps", "1", "--threads", "1", "-q"),
)
QUIETLY = ("--threads", "1", "-q")
EPISODES = ("--preset", "digits-2way-1shot", "--rounds", "24", "--checkpoint-every", "5", *QUIETLY)
LEARN = ("--widths", "2,3,4", "--epochs", "6", "--train-samples", "64", "--batch-size", "32")
OF_A_RUN = (  # what it makes, what is checked of it, what must be the same
    "run/config.toml",
    lambda folder: check_run(folder / "run"),
    lambda folder: (run_result(folder / "run"), names(folder)),
)
WORKLOADS = (
    Workload(
        "train",
        TRAIN,
        ("train", "--resume", "--out", "run", *QUIETLY),
        *OF_A_RUN,
    ),
    Workload(
        "fewshot train",
        ("fewshot", "train", "--out", "run", *EPISODES),
        ("fewshot", "train", "--resume", "--out", "run", *QUIETLY),
        *OF_A_RUN,
    ),
    Workload(
        "tickets find",
        ("tickets", "find", "--out", "ticket", "--finder", "mwt", "--every", "6", *EPISODES),
        ("tickets", "find", "--resume", "--out", "ticket", *QUIETLY),
        "ticket/ticket.toml",
        lambda folder: check_ticket(folder / "ticket"),
        lambda folder: (ticket_result(folder / "ticket"), names(folder)),
    ),
    Workload(
        "cooperative train",
        ("cooperative", "train", "--out", "run", *LEARN, *QUIETLY),
        ("cooperative", "train", "--resume", "--out", "run", *QUIETLY),
        *OF_A_RUN,
    ),
    Workload(
        "train --force",
        (*TRAIN, "--force"),
        (*TRAIN, "--force"),
        *OF_A_RUN,
        TRAIN,
    ),
    Workload(
        "adapt",
        ("adapt", "run"),
        ("adapt", "run"),
        *OF_A_RUN,
        TRAIN,
    ),
    Workload(
        "report",
        ("report", "run", "--full", *QUIETLY),
        ("report", "run", "--full", *QUIETLY),
        "run/config.toml",
        lambda folder: check_report(folder / "run"),
        lambda folder: report_result(folder / "run"),
        PLAIN,
    ),
    Workload(
        "compare",
        COMPARE,
        ("compare", "--resume", "--out", "c", *QUIETLY),
        "c/plan.json",
        lambda folder: check_comparison(folder / "c"),
        lambda folder: (comparison_result(folder / "c"), names(folder)),
    ),
    Workload(
        "tune",
        TUNE,
        ("tune", "--resume", "--out", "t/t.toml", *QUIETLY),
        "t/t.jsonl",
        lambda folder: check_search(folder / "t/t.jsonl"),
        lambda folder: search_result(folder / "t/t.jsonl"),
    ),
)


# --- processes


def get_ready() -> None:
    """Import and compile what the commands need, so that kills fall on their work."""
    for command in {work.start[0] for work in WORKLOADS}:
        import_module(f"refimpl.cli.{command}")
    import_module("refimpl.report.write")
    for module in ("fewshot.experiment", "fewshot.tickets.finders", "cooperative.experiment"):
        import_module(f"refimpl.{module}")
    if has_matplotlib():
        import_module("matplotlib.backends.backend_agg")
    warm_up()


def begin(command: tuple[str, ...], folder: Path) -> int:
    """The id of a process that runs the command in the folder, with its output in the file `said` beside."""
    process = fork()
    if process:
        return process
    try:
        os.chdir(folder)
        said = os.open(folder.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        code = app.run(list(command))
        sys.stdout.flush()
        os._exit(code)
    except BaseException:
        import traceback

        traceback.print_exc(file=sys.__stderr__)
        os._exit(99)


def end(process: int, seconds: float) -> int | None:
    """The process's exit code, or None if it was still at work after `seconds` and was killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.0005, max(0.0, deadline - time.monotonic())))
    os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def let_through(command: tuple[str, ...], folder: Path) -> float:
    """Run the command to its end; the seconds it took."""
    started = time.monotonic()
    code = end(begin(command, folder), PATIENCE)
    assert code == 0, f"{' '.join(command)}: {code}: {folder.with_suffix('.said').read_text()[-500:]}"
    return time.monotonic() - started


def before(work: Workload, folder: Path) -> Path:
    """A folder with what is there before the workload."""
    folder.mkdir(parents=True)
    if work.first:
        let_through(work.first, folder)
    return folder


def fresh(source: Path, folder: Path) -> Path:
    """The folder as a copy of the source."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(source, folder))


def moments(seconds: float, rng: random.Random) -> Iterator[float]:
    """Instants from 0 to a little after `seconds`, without end, one in each twentieth of it in turn."""
    while True:
        parts = [1.1 * seconds * (number + rng.random()) / 20 for number in range(20)]
        rng.shuffle(parts)
        yield from parts


def torture(work: Workload, times: int, seed: int, place: Path) -> Iterator[tuple[int, bool, str]]:
    """Kill the workload `times` times; yields (kills so far, whether a run ended, what was lost)."""
    source = before(work, place / "before")
    usual = fresh(source, place / "usual")
    seconds = let_through(work.start, usual)
    wanted = work.result(usual)
    instants, killed = moments(seconds, random.Random(f"{work.name} {seed}")), 0
    folder = fresh(source, place / "run")
    while killed < times:
        command = work.resume if (folder / work.made).exists() else work.start
        code, loss = end(begin(command, folder), next(instants)), ""
        try:
            killed += code is None
            assert code in (None, 0), f"exit code {code}: {folder.with_suffix('.said').read_text()[-300:]}"
            work.check(folder)
            if code == 0:
                assert work.result(folder) == wanted, "another result than of the uninterrupted run"
        except Exception as error:
            loss = f"{work.name}, kill {killed}: {type(error).__name__}: {error}"
        yield killed, code == 0, loss
        if code is not None or loss:
            folder = fresh(source, place / "run")
    if (folder / work.made).exists() or not work.first:
        let_through(work.resume if (folder / work.made).exists() else work.start, folder)
        yield killed, True, "" if work.result(folder) == wanted else f"{work.name}: the last run is another"


def main() -> int:
    """Print the table; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=200, help="kills of all workloads together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    options = parser.parse_args()
    get_ready()
    chosen = [work for work in WORKLOADS if options.only in work.name]
    each, found = -(-options.times // len(chosen)), list[str]()
    print(f"{'command':16}{'killed':>8}{'ended':>7}{'losses':>8}", flush=True)
    for work in chosen:
        with tempfile.TemporaryDirectory(prefix="kill-") as place:
            events = list(torture(work, each, options.seed, Path(place)))
        losses = [loss for _, _, loss in events if loss]
        ended = sum(done for _, done, _ in events)
        print(f"{work.name:16}{each:8}{ended:7}{len(losses):8}", flush=True)
        found += losses
    print(*found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
