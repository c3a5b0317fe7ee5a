"""`python -m bench`: run the comparison, and turn its results into tables and a figure.

python -m bench run --out results.json                # everything, about three quarters of an hour
python -m bench run --size smallest --out smoke.json  # a minute, meaningless times
python -m bench bars results.json                     # what is wanted against what was measured
python -m bench readme results.json                   # Markdown; --into bench/README.md: between its marks
python -m bench figure results.json figure.svg
python -m bench experiments mnist --into bench/results/README.md    # tables of what is kept there; --figures
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bench import experiments, markdown
from bench.memory import offered
from bench.peers import installed
from refimpl.bench.candidates import OURS
from refimpl.bench.process import Event, listen
from refimpl.bench.session import Results, gather, refused
from refimpl.files.tables import put_into

# Section: the parts of the results it fills.
SECTIONS = {
    "kernels": ("peaks", "kernels"),
    "end-to-end": ("end_to_end",),
    "interpreter": ("interpreter",),
    "memory": ("memory",),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure")
    run.add_argument("--out", type=Path, required=True, help="JSON results; sections not run are kept")
    run.add_argument("--only", choices=SECTIONS, help="one section")
    run.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for whole programs")
    run.add_argument("--peers", nargs="*", default=installed(), help="torch jax onnxruntime")
    run.add_argument("--size", choices=("smallest", "usual", "all"), default="all", help="usual: batch 32")
    run.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: for a busy machine, where one thread is used",
    )
    run.set_defaults(do=measure)
    judge = commands.add_parser("bars", help="print what is wanted against what was measured")
    judge.add_argument("results", type=Path)
    judge.set_defaults(do=lambda options: print(markdown.bars(read(options.results))) or 0)
    tables = commands.add_parser("readme", help="print the README's tables, or put them into a file")
    tables.add_argument("results", type=Path)
    tables.add_argument("--into", type=Path, help="file whose marks they are put between")
    tables.set_defaults(do=readme)
    draw = commands.add_parser("figure", help="seconds against executed FLOPs")
    draw.add_argument("results", type=Path)
    draw.add_argument("path", type=Path)
    draw.set_defaults(do=figure)
    tried = commands.add_parser("experiments", help="the README's tables of training and adaptation")
    tried.add_argument("names", nargs="*", default=experiments.names(), help="all that are kept")
    tried.add_argument("--into", type=Path, help="file whose marks they are put between")
    tried.add_argument("--figures", action="store_true", help="draw their figures, too")
    tried.set_defaults(do=show_experiments)
    options = parser.parse_args()
    return options.do(options)


def read(path: Path) -> Results:
    return json.loads(path.read_text())


def readme(options: argparse.Namespace) -> int:
    results = read(options.results)
    if options.into is None:
        print(markdown.readme(results))
    else:
        command = markdown.command(options.results.as_posix())
        text = put_into(options.into.read_text(), command, markdown.readme(results))
        options.into.write_text(text)
    return 0


def show_experiments(options: argparse.Namespace) -> int:
    for name in options.names:
        content = experiments.content(name)
        if options.into is None:
            print(content)
        else:
            text = put_into(options.into.read_text(), experiments.command(name), content)
            options.into.write_text(text)
        if options.figures:
            experiments.draw(name)
    return 0


def figure(options: argparse.Namespace) -> int:
    from bench.figure import draw

    draw(read(options.results), options.path)
    return 0


def measure(options: argparse.Namespace) -> int:
    """Run the sections, writing the file after every step; 1 if a candidate was refused."""
    results = read(options.out) if options.out.exists() else gather([])
    for section in SECTIONS if options.only is None else (options.only,):
        seen = []
        for event in events(section, options):
            seen.append(event)
            if event[0] == "done":
                results = merged(results, section, gather(seen), options.peers)
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    wrong = refused(results)
    for why in wrong:
        print(why, file=sys.stderr)
    return 1 if wrong else 0


def merged(old: Results, section: str, new: Results, peers: list[str]) -> Results:
    """The old results with a section replaced."""
    machine = new["machine"] or old["machine"]
    machine["peers"] = {name: metadata.version(name) for name in peers}
    parts = {name: new[name] for name in SECTIONS[section]}
    return old | {"schema": new["schema"], "machine": machine} | parts


def events(section: str, options: argparse.Namespace) -> Iterator[Event]:
    """All processes of a section, one after the other, with a line on stderr for each step done."""
    start = time.monotonic()
    for kind, value in processes(section, options):
        if kind == "done":
            print(f"{time.monotonic() - start:6.0f} s  {value}", file=sys.stderr, flush=True)
        yield kind, value


def processes(section: str, options: argparse.Namespace) -> Iterator[Event]:
    """What the measuring processes say."""
    if section == "memory":
        small = ["--smallest"] if options.size == "smallest" else []
        for _ in listen("bench.memory", ["--candidate", OURS, *small], 1):
            pass  # so that machine code is on disk: compiling takes memory, too
        for name in offered(options.peers):
            yield from listen("bench.memory", ["--candidate", name, *small], 1)
            yield "done", f"memory {name}"
        return
    if section == "interpreter":
        yield from listen("bench.interpreter", [], 1)
        yield "done", "interpreter's share"
        return
    arguments = ["--section", section, "--peers", ",".join(options.peers)]
    arguments += ["--clock", options.clock, "--size", options.size]
    for threads in [1] if section == "kernels" else options.threads:
        yield from listen("bench.worker", arguments, threads)


if __name__ == "__main__":
    sys.exit(main())
