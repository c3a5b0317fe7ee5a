"""The walk: every public function with arrays of every kind, each array against forbidden pages.

A `Case` calls one function with tidy arrays. The walk replaces one of the arrays at a time: by the same
numbers in another order, type or stride, which must give the same result, or by something wrong. Anything
may be refused, in one line and by an error of ours. `python walk.py` prints one line of JSON for each case:
its name, and what went wrong with it; `python walk.py NAME` does so for one case, and `python walk.py -` for
each case whose name it reads. Each case runs in a process of its own, as a read or write outside of an array
ends the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import inspect
import itertools
import json
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
from forks import fork
from guards import guarded

import refimpl
from refimpl import data, federated, nn
from refimpl.errors import RefimplError
from refimpl.federated import pruning
from refimpl.nn import gradcheck
from refimpl.optim import accel, prox

ROOMS = (nn, gradcheck, prox, accel, federated, pruning, data)
ARRAYS = ("ndarray", "NDArray", "ArrayLike", "Vector", "Floats", "Labels", "Mask", "Arrays", "State", "Rate")
SECONDS = 120  # for one case, on a machine that does other things as well
TOLERANCE = 1e-4  # relative, of a result in another precision

# What is asked of a replacement: the result of the tidy array; a refusal; that NaN is seen in the result;
# that nothing was left unwritten (NaN); or only that it is not answered by a crash. All may be refused.
SAME, REFUSED, SHOWN, WRITTEN, SURVIVED = "same", "refused", "shown", "written", "survived"


class Case:
    """One call of a public function, as `call(**arrays)`.

    written: names of arrays that the call writes into; labels: names of labels, of which there are three
    classes; any_length, any_shape: names of arrays that may be longer, or shaped otherwise; blind: names of
    arrays whose NaN cannot be seen in the result.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        *,
        written: tuple[str, ...] = (),
        labels: tuple[str, ...] = ("y",),
        any_length: tuple[str, ...] = (),
        any_shape: tuple[str, ...] = (),
        blind: tuple[str, ...] = (),
        **arrays: np.ndarray,
    ) -> None:
        self.call, self.arrays, self.written, self.labels = call, arrays, written, labels
        self.any_length, self.any_shape, self.blind = any_length, any_shape, blind


class Form(NamedTuple):
    """What to put in the place of an array, and what is asked of the result."""

    label: str
    value: object
    asked: str


def forms(case: Case, name: str, at_end: bool) -> Iterator[Form]:
    """All replacements of one array of a case."""
    array = case.arrays[name]
    longer = SURVIVED if name in case.any_length else REFUSED
    reshaped = SURVIVED if name in case.any_shape else REFUSED

    def g(values: np.ndarray) -> np.ndarray:
        return guarded(np.ascontiguousarray(values), at_end)

    read_only = g(array)
    read_only.flags.writeable = False
    yield Form("read-only", read_only, REFUSED if name in case.written else SAME)
    yield Form("strided", g(np.repeat(array, 2, axis=-1))[..., ::2], SAME)
    yield Form("backwards in memory", g(array[::-1])[::-1], SAME)
    yield Form("one column", g(array[..., None]), SAME if array.ndim == 1 else reshaped)
    yield Form("one shorter", g(array[:-1]), longer)
    yield Form("one longer", g(np.concatenate([array, array[:1]])), longer)
    yield Form("no axis", g(array.ravel()[:1]).reshape(()), reshaped)
    yield Form("objects", array.astype(object), SAME)
    yield Form("text", array.astype(str), REFUSED)
    yield Form("nothing", g(array[:0]), WRITTEN if name in case.any_length else REFUSED)
    if array.ndim > 1:
        yield Form("Fortran order", g(array.T).T, SAME)
        yield Form("axes in another order", g(np.moveaxis(array, 0, -1)), reshaped)
    yield from (Form(*rest) for rest in _types(case, name, array, g))


def _types(case: Case, name: str, array: np.ndarray, g: Callable[..., Any]) -> Iterator[tuple[str, Any, str]]:
    """Replacements by arrays of other types and by wrong numbers: label, value, what is asked."""
    if name in case.written:
        yield "half precision", g(array.astype(np.float16)), REFUSED
        yield "whole numbers", g(np.zeros(array.shape, np.int64)), REFUSED
        return
    if array.dtype.kind == "b":
        yield "whole numbers", g(array.astype(np.int8)), SAME
        return
    yield "big-endian", g(array.astype(array.dtype.newbyteorder(">"))), SAME
    yield "complex", g(array.astype(np.complex128)), REFUSED
    if array.dtype.kind == "f":
        yield "half precision", g(array.astype(np.float16)), SAME
        yield "double precision", g(array.astype(np.float64)), SAME
        for label, where in (("NaN", 0), ("NaN at its end", -1)):
            bad = array.copy()
            bad.flat[where] = np.nan
            yield label, g(bad), SURVIVED if name in case.blind else SHOWN
        return
    yield "narrow", g(array.astype(np.int8)), SAME
    if name in case.labels:
        yield "floats", g(array + 0.5), REFUSED
        for label in (-1, 3, 10**9, -(10**9)):
            bad = array.copy()
            bad[-1] = label
            yield f"label {label}", g(bad), REFUSED


def numbers(result: object) -> list[np.ndarray]:
    """All numbers in a result, in order; times are left out by the cases."""
    if isinstance(result, np.ndarray | float | int | np.generic):
        return [np.asarray(result, dtype=np.float64)]
    if isinstance(result, dict):
        return numbers(list(result.values()))
    if is_dataclass(result) and not isinstance(result, type):
        return numbers([getattr(result, field.name) for field in fields(result)])
    if isinstance(result, list | tuple | Iterator):
        return [array for part in result for array in numbers(part)]
    return []


def outcome(case: Case, arrays: dict[str, Any]) -> list[np.ndarray]:
    """The numbers that the call gives and writes. What it is given to read must stay as it is."""
    reads = {name: arrays[name].copy() for name in case.arrays if isinstance(arrays[name], np.ndarray)}
    result = numbers(case.call(**arrays))
    for name, before in reads.items():
        if name not in case.written:
            np.testing.assert_array_equal(arrays[name], before, err_msg=f"{name} was changed")
    return result + [np.array(arrays[name], dtype=np.float64) for name in case.written]


def fault(case: Case, tidy: list[np.ndarray], name: str, form: Form, at_end: bool) -> str:
    """What is wrong with the answer to one replacement; empty if nothing is."""
    arrays = {other: guarded(array, at_end) for other, array in case.arrays.items()}
    arrays[name] = form.value
    try:
        got = outcome(case, arrays)
    except RefimplError as error:
        return "" if str(error) and "\n" not in str(error) else f"refused in more than one line: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    if form.asked == REFUSED:
        return "taken without a word"
    if form.asked == SHOWN and not any(np.isnan(part).any() for part in got):
        return "NaN vanished"
    if form.asked == WRITTEN and any(np.isnan(part).any() for part in got):
        return "NaN in the result"
    return "another result" if form.asked == SAME and not _alike(got, tidy, form.label) else ""


def _alike(got: list[np.ndarray], tidy: list[np.ndarray], label: str) -> bool:
    """Whether the numbers are the same ones: to the bit, or nearly so in another precision."""
    if [part.shape for part in got] != [part.shape for part in tidy]:
        return False
    limit = TOLERANCE if label == "double precision" else 0.0
    pairs = zip(got, tidy, strict=True)
    return all(np.allclose(a, b, rtol=limit, atol=limit, equal_nan=True) for a, b in pairs)


def walk(case: Case, say: Callable[[str], object]) -> None:
    """Try all replacements; `say` is told what is tried next, and then what was wrong with it (or "")."""
    for at_end in (True, False):
        say("tidy arrays")
        tidy = outcome(case, {name: guarded(array, at_end) for name, array in case.arrays.items()})
        say("")
        for name in case.arrays:
            for form in forms(case, name, at_end):
                where = f"{name}, {form.label} ({'end' if at_end else 'start'} guarded)"
                say(where)
                say(fault(case, tidy, name, form, at_end))


def alone(case: Case) -> list[str]:
    """The faults of a case, which runs in a process of its own."""
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        signal.alarm(SECONDS)
        faulthandler.disable()  # to be ended is an answer, which the parent tells
        try:
            walk(case, lambda text: os.write(writer, f"{json.dumps(text)}\n".encode()))
        except BaseException as error:
            os.write(writer, f"{json.dumps(f'{type(error).__name__}: {error}')}\n".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as lines:
        said = [json.loads(line) for line in lines]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    faults = [f"{where}: {wrong}" for where, wrong in zip(said[::2], said[1::2], strict=False) if wrong]
    if len(said) % 2:  # it has not come to say what was wrong with the last one
        faults.append(f"{said[-1]}: ended by {signal.Signals(-status).name}")
    return faults


def place(function: Any, more: str = "") -> str:
    """Where a function, method or class is, as `room.module.Class.method`; `more` tells cases of it apart."""
    function = getattr(function, "__func__", function)
    where = f"{function.__module__.removeprefix('refimpl.')}.{function.__qualname__}"
    return f"{where}, {more}" if more else where


def discovered() -> set[str]:
    """The place of every public function or class that takes arrays."""
    things = [getattr(refimpl, name) for name in refimpl.__all__]
    things += [thing for room in ROOMS for thing in _public(room)]
    return {place(function) for thing in things for function in _callables(thing)}


def _public(room: Any) -> list[Any]:
    """What a room says is public; where it says nothing, all that its modules define under public names."""
    if hasattr(room, "__all__"):
        return [getattr(room, name) for name in room.__all__]
    inner = pkgutil.walk_packages(getattr(room, "__path__", []), f"{room.__name__}.")
    modules = [room, *(importlib.import_module(info.name) for info in inner)]
    return [
        thing
        for module in modules
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", "") == module.__name__
    ]


def _callables(thing: object) -> Iterator[Any]:
    """The thing itself and its methods, where they take arrays; protocols and records do nothing."""
    if inspect.isfunction(thing) and _takes_arrays(thing):
        yield thing
    if not inspect.isclass(thing) or getattr(thing, "_is_protocol", False):
        return
    if not issubclass(thing, tuple) and _takes_arrays(thing.__init__):
        yield thing
    for key, member in vars(thing).items():
        function = getattr(member, "__func__", member)
        public = not key.startswith("_") or key == "__call__"
        if public and inspect.isfunction(function) and _takes_arrays(function):
            yield function


def _takes_arrays(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(word in str(parameter.annotation) for parameter in parameters for word in ARRAYS)


def call_all(cases: dict[str, Case], *dtypes: str) -> None:
    """Call all cases with tidy arrays of each of these types."""
    for case, dtype in itertools.product(cases.values(), dtypes):
        arrays = {k: a.astype(dtype) if a.dtype.kind == "f" else a.copy() for k, a in case.arrays.items()}
        with contextlib.suppress(Exception):  # the walk itself will say so
            case.call(**arrays)


def compile_no_more(cases: dict[str, Case]) -> None:
    """Run all cases in both precisions; from then on a kernel that meets a new type of array raises.

    Reading a strided or read-only array as it is would be right as well, but costs seconds of compiling.
    """
    call_all(cases, "float32", "float64")
    for info in pkgutil.walk_packages(
        importlib.import_module("refimpl.kernels").__path__, "refimpl.kernels."
    ):
        for thing in vars(importlib.import_module(info.name)).values():
            if hasattr(thing, "py_func") and thing.signatures:
                thing.disable_compile()


def main(names: list[str]) -> None:
    from walk_cases import CASES  # which imports `Case` from here

    warnings.simplefilter("ignore")
    asked = names == ["-"]
    chosen = {name: case for name, case in CASES.items() if asked or not names or name in names}
    compile_no_more(chosen)
    for name in (line.strip() for line in sys.stdin) if asked else chosen:
        print(json.dumps([name, alone(chosen[name])]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
