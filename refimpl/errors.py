"""The errors that users can cause: exceptions whose text is one line that says what to do.

Every message names the function that complains, what it expected, what it got and the remedy. The
command line prints this line and exits with 2.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real


class RefimplError(Exception):
    """Root of all errors this package raises on purpose."""


class InputError(RefimplError, ValueError):
    """A wrong argument: shape, dtype, range or an unknown option."""


class DataError(InputError):
    """A data file or array that cannot be used: truncated, corrupt, with NaN or values out of range."""


class ConfigError(InputError):
    """A configuration that does not make sense: unknown key, wrong type, impossible combination."""


class RunError(RefimplError):
    """A run folder that cannot be used as asked: missing, already there, in use or not resumable."""


class BusyError(RunError):
    """Another process is working on what was asked for."""


class TakenError(RunError):
    """Another process has meanwhile created the folder that was about to be made."""


class DivergenceError(RefimplError):
    """Training or adaptation produced infinity or NaN; the text says where, with a hint."""


class OlderVersionWarning(UserWarning):
    """A file written by an older version lacks something; the text says what is used instead."""


def cause(error: Exception) -> str:
    """The first line of an error's text, or its class name if it has no text, for use inside a message."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def nearest(typed: object, known: Iterable[str]) -> str:
    """`did you mean NAME? ` with the nearest of the known names; empty if none is near."""
    near = difflib.get_close_matches(str(typed)[:80], known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def shown(value: object) -> str:
    """The value as text for a message of one line, cut if it is long."""
    return " ".join(repr(value).split())[:80]


def expect_numbers(who: str, positive: bool = False, whole: bool = False, **values: object) -> None:
    """Raise `InputError` unless all are finite numbers >= 0 (`positive`: > 0; `whole`: and integers)."""
    for name, value in values.items():
        number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        # mypy does not see that `number` makes value one
        if not (number and math.isfinite(value) and (value > 0 or (value == 0 and not positive))):  # type: ignore
            kind = "a whole number" if whole else "a finite number"
            raise InputError(
                f"{who}: expected {name} {'> 0' if positive else '>= 0'}, {kind}, got {shown(value)}"
            )


def one_of(who: str, what: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`; the message lists them, the nearest first."""
    if value not in allowed:
        choices = f"{nearest(value, allowed)}choose one of {', '.join(allowed)}"
        raise InputError(f"{who}: unknown {what} {shown(value)}; {choices}")
