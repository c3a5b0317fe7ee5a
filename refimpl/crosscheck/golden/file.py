"""The golden file: an .npz archive of plain arrays, with a manifest that names each of them.

Arrays: `<case>/in/<input>`, `<case>/<output>`, and `manifest`, a uint8 array with the bytes of a JSON table:

    format    "refimpl-golden"
    version   1
    made_by   the program that computed the outputs
    seed      root of all inputs, where it is known (`golden make` writes it)
    cases     a list of tables, in the order of execution:
      name, kind, dtype, settings    as in `case.py`
      inputs     a list of {name, shape, dtype}
      outputs    a list of {name, shape, dtype, relative, floor}, in the order of execution; `relative` is
                 the largest relative norm error that is allowed, 0 for masks, which must be equal; `floor` is
                 the least root mean square that the expected array counts as having (`tolerance.py`)

Another program's outputs are an .npz file with arrays `<case>/<output>`; it needs nothing else. (A golden
file that the program wrote will do as well: arrays that are not outputs are ignored.) The contents depend on
the values only, so equal outputs give equal bytes.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.names import some
from refimpl.crosscheck.tolerance import Expected, expected_of
from refimpl.errors import DataError, InputError
from refimpl.files.npz import Header
from refimpl.files.storage import npz_bytes, npz_headers, read_npz

FORMAT, VERSION = "refimpl-golden", 1
MANIFEST = "manifest"
DTYPES = ("float32", "float64", "int64", "bool")
# Bytes that are read at most: ten times the largest file that `make` writes.
ARRAYS_LIMIT, MANIFEST_LIMIT = 2**30, 2**24


@dataclass(frozen=True, eq=False)
class Golden:
    """A file's contents: cases in order, the expected outputs of each by name, and who computed them.

    seed: root of the inputs, where the file says it.
    """

    made_by: str
    cases: tuple[Case, ...]
    expected: Mapping[str, Mapping[str, Expected]]  # by case, by output
    seed: int | None = None


def golden_of(computed: Iterable[tuple[Case, Arrays]], made_by: str) -> Golden:
    """The contents of a golden file, in memory, from cases and their outputs."""
    pairs = list(computed)
    expected = {case.name: expected_of(case, outputs) for case, outputs in pairs}
    return Golden(made_by, tuple(case for case, _ in pairs), expected)


def golden_bytes(computed: Iterable[tuple[Case, Arrays]], made_by: str, seed: int | None = None) -> bytes:
    """A golden file as bytes; raises `InputError` if outputs are not those that the case names."""
    arrays: Arrays = {}
    tables = []
    for case, outputs in computed:
        _check_outputs(case, outputs)
        arrays |= {f"{case.name}/in/{name}": np.asarray(value) for name, value in case.inputs.items()}
        arrays |= {f"{case.name}/{name}": np.asarray(outputs[name]) for name in case.outputs}
        tables.append(_table(case, outputs))
    root = {} if seed is None else {"seed": seed}
    content = {"format": FORMAT, "version": VERSION, "made_by": made_by, **root, "cases": tables}
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return npz_bytes(arrays | {MANIFEST: np.frombuffer(text.encode(), dtype=np.uint8)})


def _check_outputs(case: Case, outputs: Arrays) -> None:
    if set(outputs) != set(case.outputs):
        odd = sorted(set(outputs) ^ set(case.outputs))
        raise InputError(f"golden: {case.name} and its outputs do not agree about {', '.join(odd[:5])}")
    for name, value in outputs.items():
        kind = str(np.asarray(value).dtype)
        if kind not in (case.dtype, "bool") or not np.isfinite(value).all():
            raise InputError(f"golden: {case.name}: expected {name} as finite {case.dtype}, got {kind}")


def _table(case: Case, outputs: Arrays) -> dict[str, Any]:
    def entry(name: str, value: np.ndarray) -> dict[str, Any]:
        return {"name": name, "shape": list(np.shape(value)), "dtype": str(np.asarray(value).dtype)}

    return {
        "name": case.name,
        "kind": case.kind,
        "dtype": case.dtype,
        "settings": dict(case.settings),
        "inputs": [entry(name, value) for name, value in case.inputs.items()],
        "outputs": [
            entry(name, expected.value) | {"relative": expected.relative, "floor": expected.floor}
            for name, expected in expected_of(case, outputs).items()
        ],
    }


# --- reading ----------------------------------------------------------------------------------------


def read_golden(path: Path) -> Golden:
    """Read a golden file and verify that it holds exactly the arrays of its manifest, all of them finite.

    Raises `DataError` with one line that names the file otherwise. Nothing in the file is executed.
    """
    headers = npz_headers(path)
    manifest = _manifest(path, headers)
    try:
        made_by, seed = str(manifest["made_by"]), manifest.get("seed")
        if seed is not None and type(seed) is not int:
            raise TypeError(f"seed is {seed!r}")
        promised = dict(_promised(manifest["cases"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: its manifest is not that of a golden file ({error!r})") from None
    _check_headers(path, promised, headers)
    arrays = read_npz(path, limit=ARRAYS_LIMIT)
    for name in promised:
        if not np.isfinite(arrays[name]).all():
            raise DataError(f"{path}: {name} holds NaN or infinite numbers; it cannot serve as a reference")
    try:
        read = [_read(table, arrays) for table in manifest["cases"]]
    except InputError as error:  # an unknown level or dtype
        raise DataError(f"{path}: {error}") from None
    expected = {case.name: outputs for case, outputs in read}
    return Golden(made_by, tuple(case for case, _ in read), expected, seed)


def is_golden(headers: Mapping[str, Header]) -> bool:
    """Whether a file with these arrays claims to be a golden file."""
    return MANIFEST in headers


def _manifest(path: Path, headers: Mapping[str, Header]) -> dict[str, Any]:
    """The table of the manifest, which must be of a known format and version."""
    if not is_golden(headers):
        raise DataError(f"{path}: no array `{MANIFEST}`, so it is no golden file; see `refimpl golden make`")
    raw = read_npz(path, (MANIFEST,), MANIFEST_LIMIT)[MANIFEST]
    try:
        table = json.loads(raw.tobytes().decode())
    except (ValueError, RecursionError):
        raise DataError(f"{path}: its manifest is no JSON") from None
    found = (table.get("format"), table.get("version")) if isinstance(table, dict) else None
    if found != (FORMAT, VERSION):
        raise DataError(
            f"{path}: expected format {FORMAT!r}, version {VERSION}, found {str(found)[:80]}; "
            "make it anew with `refimpl golden make`, or use the version of refimpl that made it"
        )
    return dict(table)


def _promised(tables: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, Header]]:
    """Every array that the tables of cases name, with its header; raises if the tables make no sense."""
    seen: set[str] = set()
    cases: set[str] = set()
    for table in tables:
        for key, kind in (("name", str), ("kind", str), ("dtype", str), ("settings", dict)):
            if not isinstance(table[key], kind):
                raise TypeError(f"{key} of a case is {table[key]!r}")
        if table["name"] in cases:
            raise ValueError(f"the case {table['name']} is there twice")
        cases.add(table["name"])
        for name, shape in table["settings"].get("parameters", ()):
            if type(name) is not str or not all(type(length) is int and length >= 0 for length in shape):
                raise ValueError(f"a parameter is {name!r} of shape {shape!r}")
        for part, prefix in (("inputs", f"{table['name']}/in/"), ("outputs", f"{table['name']}/")):
            for entry in table[part]:
                name = prefix + entry["name"]
                if name in seen or entry["dtype"] not in DTYPES:
                    raise ValueError(f"{name} is there twice, or not of {', '.join(DTYPES)}")
                if part == "outputs" and not 0 <= entry["relative"] < 1:
                    raise ValueError(f"{name} has the tolerance {entry['relative']!r}")
                if part == "outputs" and not 0 < entry["floor"] < math.inf:
                    raise ValueError(f"{name} has the floor {entry['floor']!r}")
                seen.add(name)
                yield name, Header(tuple(entry["shape"]), np.dtype(entry["dtype"]))


def _check_headers(path: Path, promised: Mapping[str, Header], found: Mapping[str, Header]) -> None:
    missing, extra = set(promised) - set(found), set(found) - set(promised) - {MANIFEST}
    if missing or extra:
        lists = (some([name[:60] for name in sorted(names)], 3) or "none" for names in (missing, extra))
        raise DataError(
            f"{path}: its arrays are not those of its manifest; missing: {next(lists)}, "
            f"unknown: {next(lists)}"
        )
    for name, header in promised.items():
        if header != found[name]:
            raise DataError(
                f"{path}: expected {name[:60]} as {header.dtype} of shape {header.shape}, "
                f"found {found[name].dtype} of shape {found[name].shape}"
            )


def _read(table: Mapping[str, Any], arrays: Arrays) -> tuple[Case, dict[str, Expected]]:
    """The case of a table, and its expected outputs."""
    name = table["name"]
    inputs = {entry["name"]: arrays[f"{name}/in/{entry['name']}"] for entry in table["inputs"]}
    expected = {
        entry["name"]: Expected(arrays[f"{name}/{entry['name']}"], entry["relative"], entry["floor"])
        for entry in table["outputs"]
    }
    return Case(name, table["kind"], table["dtype"], inputs, table["settings"], tuple(expected)), expected
