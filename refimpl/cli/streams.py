"""Standard output and error that do not stop the work when they cannot be written.

They may be full or closed, have no reader, or have an encoding that lacks characters. What could not be
written is said at the end, in one line.
"""

import errno
import io
import os
import sys
from typing import Any

INPUT, OUTPUT, ERROR = 0, 1, 2
NAMES = {OUTPUT: "stdout", ERROR: "stderr"}


class Patient(io.FileIO):
    """A standard stream that accepts everything, and remembers the first error of the system."""

    refusal: OSError | None = None

    def write(self, content: Any) -> int:
        """Write as much as the system accepts; the rest is lost."""
        try:
            return super().write(content)
        except OSError as error:
            self.refusal = self.refusal or error
            return len(content)


def occupy() -> None:
    """Connect the standard streams that the shell has closed to the null device.

    Otherwise the next file that is opened would get one of their numbers, and output would be written into
    it.
    """
    for number in (INPUT, *NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number


def make_patient(number: int) -> Patient | None:
    """Make `sys.stdout` or `sys.stderr` accept everything, unless a program has replaced it.

    Characters that its encoding lacks are replaced. Returns the stream behind it, or None for a terminal.
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
    """Why some output was lost; empty if nothing was, or if its reader stopped reading."""
    if target is None or target.refusal is None or target.refusal.errno == errno.EPIPE:
        return ""
    return (target.refusal.strerror or "unknown").lower()
