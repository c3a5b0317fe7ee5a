"""The errors that users can cause, as exceptions whose text is one line that says what to do.

Every message names who complains, what was expected, what came, and the remedy. The command line prints
the line and exits with 2.
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
    """A data file or array that is not what it should be: truncated, corrupt, NaN, out of range."""


class ConfigError(InputError):
    """A configuration that does not make sense: unknown key, wrong type, impossible combination."""


class RunError(RefimplError):
    """A run folder that cannot be used as asked: missing, already there, in use, not resumable."""


class TakenError(RunError):
    """A place for a new folder that another process has taken meanwhile."""


class DivergenceError(RefimplError):
    """Training or adaptation left the finite numbers; says where, and a hint."""


class OlderVersionWarning(UserWarning):
    """What an older version wrote lacks something; the text says what is taken instead."""


def brief(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none, to stand in a message of ours."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def meant(typed: object, known: Iterable[str]) -> str:
    """`did you mean NAME? ` for the nearest of the known names, to stand before them; else empty."""
    near = difflib.get_close_matches(str(typed)[:80], known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def shown(value: object) -> str:
    """The value as it stands in one line of a message of ours, cut where it is long."""
    return " ".join(repr(value).split())[:80]


def expect_numbers(who: str, positive: bool = False, whole: bool = False, **values: object) -> None:
    """Raise `InputError` unless all are finite numbers >= 0, or > 0 if `positive`; whole ones if `whole`."""
    for name, value in values.items():
        number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and (value > 0 or (value == 0 and not positive))):  # type: ignore
            kind = "a whole number" if whole else "a finite number"
            raise InputError(
                f"{who}: expected {name} {'> 0' if positive else '>= 0'}, {kind}, got {shown(value)}"
            )


def one_of(who: str, what: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`; the message says the nearest and lists them."""
    if value not in allowed:
        choices = f"{meant(value, allowed)}choose one of {', '.join(allowed)}"
        raise InputError(f"{who}: unknown {what} {shown(value)}; {choices}")
