"""What a user can do wrong, as exceptions whose text is one line saying what to do.

Every message names who complains, what was expected, what came, and the remedy
(architecture.md §3). The command line prints the line and exits with 2.
"""

from __future__ import annotations


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


def brief(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none, to stand in a message of ours."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def one_of(who: str, what: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`; the message lists them."""
    if value not in allowed:
        raise InputError(f"{who}: unknown {what} {repr(value)[:80]}; choose one of {', '.join(allowed)}")
