"""The command line: parses, calls the library, prints. No arithmetic lives here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit code; Ctrl-C may come during its imports."""
    try:
        from refimpl.cli.app import run

        code = run(args)
    except KeyboardInterrupt:
        sys.stderr.write("refimpl: stopped\n")
        code = 130  # `app.INTERRUPTED`, which may not be there yet
    sys.exit(code)


__all__ = ["main"]
