"""The command line: parses, calls the library, prints. No arithmetic lives here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code; Ctrl-C may come during its imports."""
    try:
        from refimpl.cli import streams

        streams.occupy()
        output, _ = streams.make_patient(streams.OUTPUT), streams.make_patient(streams.ERROR)
        from refimpl.cli.app import WRONG_USE, run

        code = run(args)
        if why := streams.refusal(output):
            sys.stderr.write(f"refimpl: standard output: cannot write: {why}; all else is done\n")
            code = code or WRONG_USE
    except KeyboardInterrupt:
        sys.stderr.write("refimpl: stopped\n")
        code = 130  # `app.INTERRUPTED`, which may not be there yet
    sys.exit(code)


__all__ = ["main"]
