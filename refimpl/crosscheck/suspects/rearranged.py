"""Parameters whose entries are read in another order than they are stored in.

A program that does so still writes gradients and vectors of iterates in the order of storage. Source:
mathematics.md §2.2, §5 (groups of entries of phi). Derived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from refimpl.crosscheck.golden.case import PARAM, Arrays, Case
from refimpl.crosscheck.suspects.contract import Seen, altered

Rearrange = Callable[[np.ndarray], np.ndarray]  # from a parameter to a rearranged one of the same shape


def rearranged(case: Case, moves: Mapping[str, Rearrange]) -> tuple[Case, Seen]:
    """The case with some inputs rearranged, and a function that arranges its outputs back."""
    orders = {name: _order(case.inputs[name], rearrange) for name, rearrange in moves.items()}
    back = {f"grad.{name.removeprefix(PARAM)}": np.argsort(order) for name, order in orders.items()}
    whole = np.argsort(_vector_order(case, orders))
    inputs = {name: _taken(case.inputs[name], order) for name, order in orders.items()} | _groups(case, whole)

    def seen(output: str, array: np.ndarray) -> np.ndarray:
        if output in back:
            return _taken(array, back[output])
        return array[whole] if array.shape == whole.shape else array

    return altered(case, inputs), seen


def _order(array: np.ndarray, rearrange: Rearrange) -> np.ndarray:
    """For every entry of the rearranged array, its index before."""
    return rearrange(np.arange(array.size).reshape(array.shape)).ravel()


def _taken(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    return array.ravel()[order].reshape(array.shape)


def _vector_order(case: Case, orders: Mapping[str, np.ndarray]) -> np.ndarray:
    """The same for a vector of all parameters; empty if a case has no such vector."""
    parts, start = [np.empty(0, dtype=np.int64)], 0
    for name, shape in case.settings.get("parameters", []):
        size = math.prod(shape)
        parts.append(start + orders.get(f"{PARAM}{name}", np.arange(size)))
        start += size
    return np.concatenate(parts)


def _groups(case: Case, whole: np.ndarray) -> Arrays:
    """The groups of a penalty, which hold the same entries at their new places."""
    if "indices" not in case.inputs:
        return {}
    offset = case.settings["backbone_size"]
    return {"indices": whole[case.inputs["indices"] + offset] - offset}
