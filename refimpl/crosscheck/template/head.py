"""Files: the cases of a golden file, and the outputs under their names."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, Any]
KINDS: dict[str, Callable[[Arrays, Arrays], Arrays]] = {}  # what computes a kind of case


def computes(*kinds: str) -> Callable[[Any], Any]:
    """Decorator: the function gives the outputs of cases of these kinds from inputs and settings."""

    def add(function: Any) -> Any:
        KINDS.update(dict.fromkeys(kinds, function))
        return function

    return add


def main(golden: str, theirs: str) -> None:
    """Compute every case of the file `golden` that can be computed, and write the file `theirs`."""
    archive, found = np.load(golden), dict[str, Any]()
    for case in json.loads(bytes(archive["manifest"]))["cases"]:
        name, kind = case["name"], case["kind"]
        given = {one["name"]: archive[f"{name}/in/{one['name']}"] for one in case["inputs"]}
        outputs = KINDS[kind](given, {**case["settings"], "kind": kind}) if kind in KINDS else {}
        wanted = [one["name"] for one in case["outputs"]]
        found |= {f"{name}/{key}": np.asarray(outputs[key]) for key in wanted if key in outputs}
    np.savez(theirs, **found)


def named(given: Arrays, prefix: str) -> Arrays:
    """The inputs whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}


def vector(arrays: Arrays, settings: Arrays) -> Any:
    """The arrays as one vector, in the order of the parameters; what is missing counts as zero."""
    parts = [arrays.get(name, np.zeros(shape)) for name, shape in settings["parameters"]]
    return np.concatenate([np.ravel(part) for part in parts])


def parameters(w: Any, settings: Arrays) -> Arrays:
    """The inverse: every parameter by name, as a part of the vector."""
    arrays, start = {}, 0
    for name, shape in settings["parameters"]:
        size = int(np.prod(shape))
        arrays[name], start = w[start : start + size].reshape(shape), start + size
    return arrays
