"""A suspect: a wrong rule, and a way to compute what it gives.

Mostly the result of a wrong rule is the right result of an altered case: one with transposed weights, with
twice the lambda, or with a unit that is not at its kink but beside it. So this package can compute what a
wrong implementation gives, and a suspect that is named is a finding, not a guess.

Source: mathematics.md §2.2, §5 (groups of entries of phi). Derived.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from refimpl.crosscheck.golden.case import PARAM, Arrays, Case
from refimpl.crosscheck.golden.ours import run

TINY = 1e-30  # a number just above 0, which moves a unit off its kink or tie but changes no sum

# A function of an output's name and array: what a wrong rule gives in its place.
Seen = Callable[[str, np.ndarray], np.ndarray]
Rearrange = Callable[[np.ndarray], np.ndarray]  # of a parameter: its entries in another order, same shape


class Suspect(NamedTuple):
    """A wrong rule. hint: what was done and what is right; outputs: computes what it gives, by name."""

    rule: str
    hint: str
    outputs: Callable[[], Arrays]


def scaled(factor: Callable[[str], float]) -> Seen:
    """Multiply outputs by a factor that depends on their name."""

    def seen(output: str, array: np.ndarray) -> np.ndarray:
        by = factor(output)
        return array if by == 1 else array * array.dtype.type(by)

    return seen


def suspect(rule: str, hint: str, case: Case, seen: Seen = lambda output, array: array) -> Suspect:
    """The suspect whose results are the right results of `case`, which is an altered case."""
    return Suspect(rule, hint, lambda: {name: seen(name, array) for name, array in run(case).items()})


def altered(case: Case, inputs: Mapping[str, np.ndarray] | None = None, **settings: Any) -> Case:
    """The case with some inputs and settings replaced."""
    return replace(case, inputs=case.inputs | dict(inputs or {}), settings={**case.settings, **settings})


def rearranged(case: Case, moves: Mapping[str, Rearrange]) -> tuple[Case, Seen]:
    """The case with some inputs rearranged, and a function that arranges its outputs back.

    A program that reads the entries of parameters in another order than they are stored in still writes
    gradients and vectors of iterates in the order of storage.
    """
    orders = {}  # of each input: for every entry of the rearranged array, its index before
    for name, rearrange in moves.items():
        array = case.inputs[name]
        orders[name] = rearrange(np.arange(array.size).reshape(array.shape)).ravel()
    back = {f"grad.{name.removeprefix(PARAM)}": np.argsort(order) for name, order in orders.items()}
    whole = np.argsort(_vector_order(case, orders))
    inputs = {name: _taken(case.inputs[name], order) for name, order in orders.items()}
    if "indices" in case.inputs:  # the groups of a penalty hold the same entries at their new places
        offset = case.settings["backbone_size"]
        inputs["indices"] = whole[case.inputs["indices"] + offset] - offset

    def seen(output: str, array: np.ndarray) -> np.ndarray:
        if output in back:
            return _taken(array, back[output])
        return array[whole] if array.shape == whole.shape else array

    return altered(case, inputs), seen


def _taken(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    return array.ravel()[order].reshape(array.shape)


def _vector_order(case: Case, orders: Mapping[str, np.ndarray]) -> np.ndarray:
    """For every entry of a vector of all parameters, its index before; empty if a case has no such vector."""
    parts = [
        place.start + orders.get(f"{PARAM}{name}", np.arange(len(place)))
        for name, place in case.places().items()
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])
