"""Standard output and error as shells leave them: full, closed, without a reader, of a narrow encoding.

What they refuse to take does not stop the work. It is said at the end, in a line.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

INPUT, OUTPUT, ERROR = 0, 1, 2
NAMES = {OUTPUT: "stdout", ERROR: "stderr"}


class Patient(io.FileIO):
    """A standard stream that takes everything, and remembers the first error of the system."""

    refusal: OSError | None = None

    def write(self, content: Any) -> int:
        """Write what the system takes; the rest is lost."""
        try:
            return super().write(content)
        except OSError as error:
            self.refusal = self.refusal or error
            return len(content)


def occupy() -> None:
    """Open the standard streams that the shell has closed, to nowhere.

    Otherwise the next file that is opened would take their numbers, and what is printed would go into it.
    """
    for number in (INPUT, *NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def make_patient(number: int) -> Patient | None:
    """Let `sys.stdout` or `sys.stderr` take everything, unless a program has put something else there.

    Characters that its encoding lacks are replaced. Returns what it is written to; None for a terminal.
    """
    name = NAMES[number]
    old = getattr(sys, name)
    if old is not getattr(sys, f"__{name}__"):
        return None
    if old is not None and old.isatty():
        old.reconfigure(errors="replace")
        return None
    target = Patient(number, "w", closefd=False)
    text = io.TextIOWrapper(
        io.BufferedWriter(target),
        encoding=old.encoding if old else None,
        errors="replace",
        line_buffering=number == ERROR,
        write_through=True,
    )
    setattr(sys, name, text)
    return target


def refusal(target: Patient | None) -> str:
    """Why not all of the output arrived; empty where it did, or where its reader had enough of it."""
    if target is None or target.refusal is None or target.refusal.errno == errno.EPIPE:
        return ""
    return (target.refusal.strerror or "unknown").lower()
