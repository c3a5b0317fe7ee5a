"""Errors: what can be caught as what, and messages that list the alternatives."""

from __future__ import annotations

import pytest

from refimpl import errors
from refimpl.errors import one_of

ALL = [
    errors.InputError,
    errors.DataError,
    errors.ConfigError,
    errors.RunError,
    errors.DivergenceError,
]


@pytest.mark.parametrize("error", ALL)
def test_one_handler_catches_everything_raised_on_purpose(error):
    with pytest.raises(errors.RefimplError, match="what to do"):
        raise error("who: expected, got; what to do")


@pytest.mark.parametrize("error", [errors.InputError, errors.DataError, errors.ConfigError])
def test_wrong_arguments_are_value_errors(error):
    assert issubclass(error, ValueError)
    assert issubclass(error, errors.InputError)


@pytest.mark.parametrize("error", [errors.RunError, errors.DivergenceError])
def test_trouble_with_a_run_is_not_a_wrong_argument(error):
    assert not issubclass(error, ValueError)


def test_one_of_accepts_what_is_allowed():
    for value in ("a", "b"):
        one_of("who", "thing", value, ("a", "b"))


@pytest.mark.parametrize("value", ["c", "A", "", None, 1, ("a",)])
def test_one_of_names_the_value_and_lists_the_alternatives(value):
    with pytest.raises(errors.InputError) as error:
        one_of("who", "thing", value, ("a", "b"))
    assert str(error.value) == f"who: unknown thing {value!r}; choose one of a, b"


def test_one_of_suggests_the_nearest_before_the_list():
    with pytest.raises(errors.InputError) as error:
        one_of("who", "thing", "hrad", ("soft", "hard"))
    assert str(error.value) == "who: unknown thing 'hrad'; did you mean hard? choose one of soft, hard"
