"""One contiguous parameter vector w = (theta, phi, statistics) and the table that says what lies where.

The same table drives initialisation, gradients, proximal groups, checkpoints and exchange with other
frameworks. Source: mathematics.md §1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from refimpl.errors import InputError, one_of
from refimpl.rng import SeedTree

PARTS = ("theta", "phi")  # those that can be trained
STORED = (*PARTS, "stats")
DTYPES = ("float32", "float64")


def is_float(dtype: np.dtype) -> bool:
    """Whether it is one of `DTYPES` (asking for its name takes ten times as long)."""
    return dtype.char in "fd" and dtype.isnative


@dataclass(frozen=True)
class Parameter:
    """What a layer declares about one of its arrays.

    name, shape: those of the array; part: the part of the vector in which it lies. Its initial value is the
    pattern `fill`, repeated, plus `std` times standard normal noise.
    """

    name: str
    shape: tuple[int, ...]
    part: str = "theta"
    std: float = 0.0
    fill: tuple[float, ...] = (0.0,)


def kaiming_std(fan_in: int, gain: float = math.sqrt(2.0)) -> float:
    """Standard deviation gain/sqrt(fan_in); gain sqrt(2) keeps the variance through a ReLU.

    Source: He et al. 2015, eq. 10. Verified.
    """
    return gain / math.sqrt(fan_in)


@dataclass(frozen=True)
class Slot:
    """One named array inside the vector: entries `start` to `stop`, seen with the shape of `parameter`."""

    parameter: Parameter
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The parameter's name, as PyTorch would call it: `conv3.weight`."""
        return self.parameter.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.parameter.shape


class Layout:
    """The table of slots: backbone (theta), gates (phi), statistics, each in order of declaration.

    theta, phi, stats: where each of these parts lies in w, as slices; empty without gates, or without frozen
    normalisations, which alone have statistics.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        declared = tuple(parameters)
        for parameter in declared:
            one_of("Layout", "part", parameter.part, STORED)
        ordered = [p for part in STORED for p in declared if p.part == part]
        slots, start = [], 0
        for parameter in ordered:
            stop = start + math.prod(parameter.shape)
            slots.append(Slot(parameter, start, stop))
            start = stop
        self.slots: tuple[Slot, ...] = tuple(slots)
        self.size = start
        sizes = [sum(math.prod(p.shape) for p in declared if p.part == part) for part in STORED]
        edges = accumulate(sizes, initial=0)
        self.theta, self.phi, self.stats = (slice(*ends) for ends in pairwise(edges))
        if len(self.by_name) != len(slots):
            names = [slot.name for slot in slots]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(
                f"Layout: parameter names must differ, got {', '.join(twice)} twice; rename a layer"
            )

    @cached_property
    def by_name(self) -> dict[str, Slot]:
        """Slots by parameter name."""
        return {slot.name: slot for slot in self.slots}

    def check(self, who: str, w: np.ndarray) -> None:
        """Raise `InputError` unless w is a contiguous float vector of this layout's size."""
        good = (
            isinstance(w, np.ndarray)
            and w.shape == (self.size,)
            and is_float(w.dtype)
            and w.flags.carray  # a read-only array is another type to Numba: everything would recompile
        )
        if not good:
            got = f"{getattr(w, 'dtype', type(w).__name__)} of shape {getattr(w, 'shape', '?')}"
            flags = getattr(w, "flags", None)
            if flags is not None and not (flags.c_contiguous and flags.writeable):
                got += " (not contiguous)" if flags.writeable else " (read-only)"
            raise InputError(
                f"{who}: expected a contiguous, writable float32/float64 vector of {self.size} entries, "
                f"got {got}; pass a C-contiguous 1-D array, e.g. np.array(w, dtype='float32').ravel()"
            )

    def check_pair(self, who: str, w: np.ndarray, other: np.ndarray, name: str) -> None:
        """`check` for w and for another vector of the same dtype, such as its gradient."""
        self.check(who, w)
        self.check(f"{who}: {name}", other)
        if w.dtype != other.dtype:
            raise InputError(f"{who}: w is {w.dtype} but {name} {other.dtype}; they must be alike")

    def views(self, w: np.ndarray) -> dict[str, np.ndarray]:
        """Named views into w (no copies): writing to a view writes to w."""
        self.check("Layout.views", w)
        return {slot.name: w[slot.start : slot.stop].reshape(slot.shape) for slot in self.slots}

    def initialise(self, seeds: SeedTree, dtype: str = "float32") -> np.ndarray:
        """A new parameter vector; each slot draws from its own stream, in float64, and is rounded once."""
        one_of("Layout.initialise", "dtype", dtype, DTYPES)
        w = np.empty(self.size, dtype=dtype)
        for index, slot in enumerate(self.slots):
            parameter, count = slot.parameter, slot.stop - slot.start
            value = np.resize(np.asarray(parameter.fill), count)
            if parameter.std > 0:
                value = value + parameter.std * seeds.generator("init", node=index).standard_normal(count)
            w[slot.start : slot.stop] = value
        return w

    def entries(self, names: Iterable[str]) -> np.ndarray:
        """Where the parameters of those names lie in w, one after the other, int64: w[entries] has them."""
        slots = [self.by_name[name] for name in names]
        return np.concatenate([np.arange(slot.start, slot.stop) for slot in slots] or [np.arange(0)])

    def to_arrays(self, w: np.ndarray) -> dict[str, np.ndarray]:
        """Copies of all parameters by PyTorch name."""
        return {name: view.copy() for name, view in self.views(w).items()}

    def from_arrays(self, arrays: Mapping[str, np.ndarray], dtype: str = "float32") -> np.ndarray:
        """The vector holding `arrays`, which must have exactly this layout's names and shapes."""
        one_of("Layout.from_arrays", "dtype", dtype, DTYPES)
        missing = sorted(set(self.by_name) - set(arrays))
        extra = sorted(set(arrays) - set(self.by_name))
        if missing or extra:
            raise InputError(
                f"Layout.from_arrays: missing arrays: {', '.join(missing) or 'none'}; "
                f"not of this network: {', '.join(extra) or 'none'}"
            )
        w = np.empty(self.size, dtype=dtype)
        for slot in self.slots:
            array = np.asarray(arrays[slot.name])
            if array.shape != slot.shape:
                raise InputError(
                    f"Layout.from_arrays: {slot.name} must have shape {slot.shape}, got {array.shape}"
                )
            if array.dtype.kind not in "iuf":
                raise InputError(f"Layout.from_arrays: {slot.name} must hold real numbers, got {array.dtype}")
            w[slot.start : slot.stop] = array.ravel()
        return w
