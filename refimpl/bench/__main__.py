"""The measuring process behind `refimpl bench`: prints events as JSON lines."""

import argparse
import json

from refimpl.bench.process import emit, pin


def main() -> None:
    """Confine the process to its cores, and only then import the libraries and measure."""
    parser = argparse.ArgumentParser(prog="python -m refimpl.bench")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--only", choices=("kernels", "end-to-end"))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--own", type=json.loads, help="what to measure of a user's, as JSON (`own.answer`)")
    options = parser.parse_args()
    pin(options.threads)
    if options.own is not None:
        from refimpl.bench.own import answer

        found = answer(options.own, lambda row: emit([("row", row)]))
        emit([("peak", found.peak)])
        return
    from refimpl.bench.session import installed_plan, play

    emit(play(installed_plan(options.smallest, options.only, options.threads, options.clock)))


main()
