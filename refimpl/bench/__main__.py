"""The measuring process behind `refimpl bench`: prints events as JSON lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from refimpl.bench.process import Event, emit, pin


def main() -> None:
    """Confine the process to its cores, and only then import the libraries and measure."""
    parser = argparse.ArgumentParser(prog="python -m refimpl.bench")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--only", choices=("kernels", "end-to-end"))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    pin(options.threads)
    emit(_events(options))


def _events(options: argparse.Namespace) -> Iterator[Event]:
    from refimpl.bench import sizes
    from refimpl.bench.session import play

    return play(sizes.installed_plan(options.smallest, options.only, options.threads, options.clock))


main()
