"""Compare another program's outputs with the expected ones, array by array, in the order of execution."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.file import Expected, Golden, is_golden, read_golden
from refimpl.crosscheck.golden.names import with_nearest
from refimpl.errors import DataError
from refimpl.files.npz import Header
from refimpl.files.storage import npz_headers, read_npz

FINE, DEPARTS, MISSING, SHAPE, DTYPE, BROKEN = "ok", "departs", "missing", "shape", "dtype", "not finite"
NUMBERS = "biuf"  # the kinds of NumPy types that can be compared


@dataclass(frozen=True)
class Row:
    """The comparison of one output. status: ok, departs, missing, shape, dtype or not finite.

    max_abs: largest difference; relative: norm of the difference relative to that of the expected array,
    whose root mean square counts as at least `floor`; allowed: the largest `relative` that agrees; ulp: the
    largest distance in units in the last place, for float32 only; where: the entry that is furthest off;
    note: what else there is to say; narrower: the given and the expected dtype, where the given one has fewer
    digits.
    """

    case: str
    output: str
    status: str
    allowed: float
    floor: float
    max_abs: float = math.nan
    relative: float = math.nan
    ulp: int | None = None
    where: str = ""
    note: str = ""
    narrower: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """The name of the array in a file."""
        return f"{self.case}/{self.output}"

    @property
    def departs(self) -> bool:
        """Whether the output is present but not as expected."""
        return self.status not in (FINE, MISSING)


@dataclass(frozen=True)
class Comparison:
    """All outputs in the order of execution, and names of arrays that belong to none."""

    rows: tuple[Row, ...]
    extra: tuple[str, ...] = ()

    @property
    def departures(self) -> list[Row]:
        """Outputs that are present but not as expected, in the order of execution."""
        return [row for row in self.rows if row.departs]

    @property
    def missing(self) -> list[Row]:
        """Outputs that are missing."""
        return [row for row in self.rows if row.status == MISSING]

    @property
    def first_by_case(self) -> list[Row]:
        """The first departing output of each case that has one."""
        return list({row.case: row for row in reversed(self.departures)}.values())[::-1]

    def of(self, case: str) -> list[Row]:
        """The outputs of one case."""
        return [row for row in self.rows if row.case == case]


class Theirs(NamedTuple):
    """Another program's outputs: the headers of all arrays, and the contents of those that fit."""

    headers: Mapping[str, Header]
    arrays: Arrays


def read_theirs(path: Path, golden: Golden) -> Theirs:
    """The outputs in `path`, an .npz file with arrays `<case>/<output>`.

    Only arrays that have the size of an expected output are read. If the file is a golden file, it is
    verified. Raises `DataError` where the file is damaged, or is a golden file of other cases.
    """
    headers = npz_headers(path)
    if is_golden(headers):
        own = read_golden(path)
        _check_same_inputs(path, own, golden)
        outputs = {f"{case.name}/{name}" for case in own.cases for name in case.outputs}
        headers = {name: header for name, header in headers.items() if name in outputs}
    wanted = {f"{case}/{name}": e for case, outputs in golden.expected.items() for name, e in outputs.items()}
    if headers and not set(headers) & set(wanted):
        known, found = next(iter(wanted), "none"), with_nearest(next(iter(headers)), wanted)
        raise DataError(f"{path}: none of its arrays is expected; names are like {known}, found {found}")
    fitting = {
        name
        for name, (shape, dtype, _) in headers.items()
        if name in wanted and math.prod(shape) == wanted[name].value.size and dtype.kind in NUMBERS
    }
    return Theirs(headers, read_npz(path, fitting))


def _check_same_inputs(path: Path, theirs: Golden, golden: Golden) -> None:
    """Raise `DataError` if a golden file has other computations."""
    known = {case.name: case for case in theirs.cases}
    for case in golden.cases:
        other = known.get(case.name)
        if other is None:
            continue
        facts, others = ((c.kind, c.dtype, c.settings, set(c.inputs)) for c in (case, other))
        if facts != others or not all(np.array_equal(case.inputs[n], other.inputs[n]) for n in case.inputs):
            raise DataError(
                f"{path}: {case.name} has other inputs there, or settings; "
                "were both made with one seed and dtype?"
            )


def compare(golden: Golden, theirs: Theirs) -> Comparison:
    """Compare every expected output with theirs."""
    rows = [
        _row(case, name, golden.expected[case.name][name], theirs)
        for case in golden.cases
        for name in case.outputs
    ]
    known = {row.name for row in rows}
    return Comparison(tuple(rows), tuple(sorted(set(theirs.headers) - known)))


def as_theirs(computed: Mapping[str, Arrays]) -> Theirs:
    """Outputs in memory, by case and output, in the form in which `read_theirs` returns them."""
    arrays = {
        f"{case}/{name}": np.asarray(value)
        for case, outputs in computed.items()
        for name, value in outputs.items()
    }
    return Theirs({name: Header(array.shape, array.dtype) for name, array in arrays.items()}, arrays)


def _row(case: Case, name: str, expected: Expected, theirs: Theirs) -> Row:
    full, value = f"{case.name}/{name}", expected.value
    header = theirs.headers.get(full)

    def row(status: str, **what: Any) -> Row:
        return Row(case.name, name, status, expected.relative, expected.floor, **what)

    if header is None:
        return row(MISSING)
    if header.dtype.kind not in NUMBERS:
        return row(DTYPE, note=f"expected {value.dtype}, got {header.dtype}")
    if header.shape != value.shape:
        return row(SHAPE, note=f"expected shape {value.shape}, got {header.shape}")
    array = theirs.arrays[full]
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        return row(BROKEN, note=f"first at [{', '.join(map(str, bad))}]")
    note = "" if header.dtype == value.dtype or value.dtype == np.bool_ else f"given as {header.dtype}"
    status = FINE if is_close(array, expected) else DEPARTS
    floats, fewer = header.dtype.kind == value.dtype.kind == "f", header.dtype.itemsize < value.dtype.itemsize
    narrower = (str(header.dtype), str(value.dtype)) if floats and fewer else None
    return row(status, note=note, narrower=narrower, **_distances(case, array, expected))


def _distances(case: Case, array: np.ndarray, expected: Expected) -> dict[str, Any]:
    """How far an array is from the expected one, and where it is farthest."""
    value = expected.value
    with np.errstate(over="ignore"):  # numbers that float64 cannot hold become infinite
        difference = np.abs(array.astype(np.float64) - value.astype(np.float64))
    furthest = int(np.argmax(difference)) if difference.size else 0
    return {
        "max_abs": float(np.max(difference, initial=0.0)),
        "relative": relative_error(array, expected),
        "ulp": ulp_distance(array, value) if value.dtype == np.float32 else None,
        "where": label(case, value.shape, furthest) if difference.any() else "",
    }


def is_close(array: np.ndarray, expected: Expected) -> bool:
    """Whether an array, which is finite and of the right shape, is as expected."""
    return relative_error(array, expected) <= expected.relative


def relative_error(array: np.ndarray, expected: Expected) -> float:
    """||array - value|| / ||value||, in float64; the root mean square of value counts as at least `floor`."""
    wide = np.asarray(expected.value, dtype=np.float64)
    size = max(_norm(wide), expected.floor * math.sqrt(max(wide.size, 1)))
    with np.errstate(over="ignore"):
        return _norm(np.asarray(array, dtype=np.float64) - wide) / size


def _norm(x: np.ndarray) -> float:
    """Euclidean norm, scaled so that no square overflows."""
    largest = float(np.max(np.abs(x), initial=0.0))
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(np.linalg.norm(np.ravel(x) / largest))


def ulp_distance(one: np.ndarray, other: np.ndarray) -> int:
    """The largest distance between entries of two arrays, counted in neighbouring float32 numbers."""

    def rank(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x, dtype=np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    with np.errstate(over="ignore"):  # numbers that are too large for float32 become infinite
        return int(np.max(np.abs(rank(one) - rank(other)), initial=0))


def label(case: Case, shape: tuple[int, ...], index: int) -> str:
    """The indices of an entry and, for a vector of parameters, the parameter that it belongs to."""
    places, whose = case.places(), ""
    if shape == (sum(map(len, places.values())),):
        whose = next(name for name, place in places.items() if index in place)
        shape = tuple(dict(case.settings["parameters"])[whose])
        index -= places[whose].start
    return f"{whose}[{', '.join(str(int(i)) for i in np.unravel_index(index, shape))}]"
