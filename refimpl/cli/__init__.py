"""The command line. It parses options, calls the library and prints; it computes nothing itself."""

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code; Ctrl-C may come during imports."""
    try:
        from refimpl.cli import streams

        streams.occupy()
        output, _ = streams.make_patient(streams.OUTPUT), streams.make_patient(streams.ERROR)
        from refimpl.cli.app import WRONG_USE, run

        code = run(args)
        if why := streams.refusal(output):
            sys.stderr.write(f"refimpl: standard output: cannot write: {why}; everything else is done\n")
            code = code or WRONG_USE
    except KeyboardInterrupt:
        sys.stderr.write("refimpl: stopped\n")
        code = 130  # the value of `app.INTERRUPTED`; `app` may not be imported yet
    sys.exit(code)


__all__ = ["main"]
