"""What a user can do wrong, as exceptions whose text is one line saying what to do.

Every message names who complains, what was expected, what came, and the remedy
(architecture.md §3). The command line prints the line and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class DivergenceError(RefimplError):
    """Training left the finite numbers; names the round, the node and a hint."""


class OlderVersionWarning(UserWarning):
    """What an older version wrote lacks something; the text says what is taken instead."""


def brief(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none, to stand in a message of ours."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def meant(typed: object, known: Iterable[str]) -> str:
    """`did you mean NAME? ` for the nearest of the known names, to stand before them; else empty."""
    near = difflib.get_close_matches(str(typed)[:80], known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def one_of(who: str, what: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`; the message says the nearest and lists them."""
    if value not in allowed:
        choices = f"{meant(value, allowed)}choose one of {', '.join(allowed)}"
        raise InputError(f"{who}: unknown {what} {repr(value)[:80]}; {choices}")
