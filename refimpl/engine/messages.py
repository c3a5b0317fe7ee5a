"""What server and nodes tell each other, and the checks that everything received must pass.

A message is plain data: one vector as bytes, and numbers by name. Nothing in it is executed or unpickled,
and the length of the bytes is compared with the expected size before an array is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refimpl.contracts import LocalSolution, Vector
from refimpl.errors import InputError, shown

TEXT = 200  # characters of a node's error that are kept
WHOLE, REAL = ("round", "node", "gradients"), ("loss", "residual", "flops", "closed_share")


class Sealed(NamedTuple):
    """A message as it travels: a vector as little-endian bytes with its dtype's name, and numbers."""

    data: bytes
    dtype: str
    numbers: Mapping[str, object]


class Hello(NamedTuple):
    """What a node says of itself, once: its number, and of how many samples it trains."""

    node: int
    samples: int


@dataclass(frozen=True)
class Question:
    """What a node is asked: to solve its local problem of a round around a point."""

    round: int
    node: int
    point: Vector


def sealed(vector: Vector, **numbers: int | float) -> Sealed:
    """The vector and the numbers as a message."""
    return Sealed(vector.astype(vector.dtype.newbyteorder("<")).tobytes(), vector.dtype.name, numbers)


def opened(who: str, message: Sealed, size: int, dtype: str) -> Vector:
    """The vector (size,) in a message; `InputError` unless it has that size and dtype and finite numbers."""
    kind = np.dtype(dtype)
    if message.dtype != dtype or len(message.data) != size * kind.itemsize:
        raise InputError(
            f"{who}: expected {size} numbers of type {dtype}, got {len(message.data)} bytes of "
            f"{shown(message.dtype)}; server and nodes must have the same network"
        )
    vector = np.frombuffer(message.data, kind.newbyteorder("<")).astype(kind)
    if not np.isfinite(vector).all():
        raise InputError(f"{who}: expected finite numbers, got NaN or infinity")
    return vector


def whole(who: str, numbers: Mapping[str, object], name: str) -> int:
    """The whole number of that name, from 0; `InputError` for anything else."""
    value = numbers.get(name)
    if type(value) is not int or value < 0:
        raise InputError(f"{who}: expected {name} as a whole number from 0, got {shown(value)}")
    return value


def real(who: str, numbers: Mapping[str, object], name: str) -> float:
    """The finite number of that name; `InputError` for anything else."""
    value = numbers.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{who}: expected {name} as a finite number, got {shown(value)}")
    return float(value)


def answer(question: Question, solution: LocalSolution) -> Sealed:
    """A node's answer: the solution's vector, and besides it only the numbers of `WHOLE` and `REAL`."""
    numbers = {name: float(getattr(solution, name)) for name in REAL}
    counts = {"round": question.round, "node": question.node, "gradients": int(solution.gradients)}
    return sealed(solution.w, **counts, **numbers)


def checked(question: Question, message: Sealed) -> LocalSolution:
    """The solution in a node's answer; `InputError` where it answers something else or is not a solution."""
    who, numbers = f"node {question.node}", message.numbers
    round_, node = (whole(who, numbers, name) for name in ("round", "node"))
    if (round_, node) != (question.round, question.node):
        raise InputError(
            f"{who}: expected an answer to round {question.round}, got one of node {node} to round {round_}"
        )
    w = opened(who, message, question.point.size, question.point.dtype.name)
    loss, residual, flops, closed = (real(who, numbers, name) for name in REAL)
    return LocalSolution(w, loss, residual, whole(who, numbers, "gradients"), flops, closed)


def brief(text: object) -> str:
    """A text from elsewhere as one short line of printable characters."""
    return "".join(c if c.isprintable() else " " for c in str(text)[: 4 * TEXT])[:TEXT].strip()
