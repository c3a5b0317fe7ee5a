"""exp, log and friends against 60-digit decimal arithmetic, and at the edges of the float range."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from refimpl.kernels import elementary

ULPS = 2.0  # the bound `elementary` documents
DIGITS = 400  # softplus and expm1 of large negative numbers lose up to 310 digits to the leading 1


def reference(name, x):
    """The function's value at the float `x`, to well over 60 digits."""
    e = Decimal(x).exp() if name not in ("log", "log1p") else None
    return {
        "exp": lambda: e,
        "expm1": lambda: e - 1,
        "log": lambda: Decimal(x).ln(),
        "log1p": lambda: (1 + Decimal(x)).ln(),
        "sigmoid": lambda: e / (1 + e),
        "tanh": lambda: (e * e - 1) / (e * e + 1),
        "softplus": lambda: (1 + e).ln(),
    }[name]()


def arguments(name):
    """Arguments over the whole range of a function, denser where it is delicate."""
    rng = np.random.default_rng(20201123)
    if name == "log":
        wide, near_one = np.exp(rng.uniform(-700, 700, 150)), 1 + rng.uniform(-0.5, 1.0, 250)
        return np.concatenate([wide, near_one, 1 + 1e-6 * rng.standard_normal(100), [5e-324, 1e-310]])
    if name == "log1p":
        small = np.exp(rng.uniform(-40, 0, 250)) * rng.choice([-1, 1], 250)
        return np.concatenate([small, rng.uniform(-0.99, 4, 200), np.exp(rng.uniform(0, 700, 50))])
    edge = {"tanh": 19.9, "sigmoid": 700, "softplus": 300, "exp": 700, "expm1": 700}[name]
    return np.concatenate(
        [
            rng.uniform(-edge, edge, 60),
            rng.uniform(-min(edge, 30), min(edge, 30), 160),
            rng.uniform(-1, 1, 160),
            1e-5 * rng.standard_normal(60),
        ]
    )


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "sigmoid", "tanh", "softplus"])
def test_errors_stay_below_two_units_in_the_last_place(name):
    function = getattr(elementary, name)
    with localcontext() as context:
        context.prec = DIGITS
        for x in map(float, arguments(name)):
            exact = reference(name, x)
            ulp = Decimal(math.ulp(float(exact)))
            assert abs(Decimal(function(x)) - exact) <= Decimal(ULPS) * ulp, (name, x)


def test_exp_rounds_once_below_the_normal_range():
    with localcontext() as context:
        context.prec = DIGITS
        for x in (-708.5, -720.25, -740.0, -745.0):
            error = abs(Decimal(elementary.exp(x)) - Decimal(x).exp())
            assert error <= Decimal(ULPS) * Decimal("5e-324")


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("exp", 0.0, 1.0),
        ("exp", math.inf, math.inf),
        ("exp", -math.inf, 0.0),
        ("exp", 709.9, math.inf),
        ("exp", -746.0, 0.0),
        ("expm1", 0.0, 0.0),
        ("expm1", -math.inf, -1.0),
        ("expm1", math.inf, math.inf),
        ("log", 1.0, 0.0),
        ("log", 0.0, -math.inf),
        ("log", math.inf, math.inf),
        ("log", -1.0, math.nan),
        ("log1p", 0.0, 0.0),
        ("log1p", -1.0, -math.inf),
        ("log1p", -1.5, math.nan),
        ("log1p", math.inf, math.inf),
        ("sigmoid", 0.0, 0.5),
        ("sigmoid", math.inf, 1.0),
        ("sigmoid", -math.inf, 0.0),
        ("tanh", 0.0, 0.0),
        ("tanh", math.inf, 1.0),
        ("tanh", -math.inf, -1.0),
        ("softplus", -math.inf, 0.0),
        ("softplus", math.inf, math.inf),
        ("softplus", 1000.0, 1000.0),
    ],
)
def test_special_values(name, x, expected):
    np.testing.assert_equal(getattr(elementary, name)(x), expected)


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "sigmoid", "tanh", "softplus"])
def test_nan_stays_nan(name):
    assert math.isnan(getattr(elementary, name)(math.nan))


def test_odd_functions_are_odd_and_the_logistic_function_is_symmetric():
    for x in np.linspace(0.01, 30, 97):
        assert elementary.tanh(-x) == -elementary.tanh(x)
        assert abs(elementary.sigmoid(x) + elementary.sigmoid(-x) - 1.0) <= 2**-52
