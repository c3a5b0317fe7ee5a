"""What this package computes for a case: `run(case)` gives its outputs by name.

Files may come from anyone, so the inputs of a case are checked before compiled code gets them.
"""

from collections.abc import Callable, Sequence

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.describe import LAYERS, build
from refimpl.crosscheck.golden.levels import MODULES, ops
from refimpl.errors import DataError, InputError, one_of
from refimpl.nn.chain import chain_parameters, chain_shape
from refimpl.nn.layers import Layer

_KINDS: dict[str, Callable[[Case], Arrays]] = {
    kind: compute for level in MODULES.values() for kind, compute in level.KINDS.items()
}
COUNTS = ("nodes", "rounds", "steps", "inner_steps", "prox_steps", "length")
MOST = 1000  # most repetitions of each; files of `golden make` have at most ten

# What a case that makes no sense may raise while it is computed, also because of its size or nesting.
UNREADABLE = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


def run(case: Case) -> Arrays:
    """The outputs of the case, in the order of `case.outputs`; scalars as arrays of shape ().

    Raises `DataError` if the case, which may come from anyone's file, makes no sense.
    """
    one_of("golden", "kind of case", case.kind, tuple(_KINDS))
    try:
        check_case(case)
        found = _KINDS[case.kind](case)
        # Losses, which are summed in float64, get the dtype of the case; masks stay masks.
        kinds = {True: "bool", False: case.dtype}
        arrays = {name: found[name] for name in case.outputs}
        return {name: x.astype(kinds[x.dtype == np.bool_], copy=False) for name, x in arrays.items()}
    except InputError as error:
        raise DataError(f"golden: {case.name}: {str(error).removeprefix('golden: ')}") from None
    except UNREADABLE as error:
        raise DataError(f"golden: cannot compute {case.name}: {error!r}; check its inputs") from error


def check_case(case: Case) -> None:
    """Raise `DataError` unless the inputs have the dtypes and shapes that the case's settings imply.

    Numbers of repetitions are limited, so that the check comes to an end. `run` adds the case's name to
    messages.

    Networks that train (`local`, `algorithm`, `adapt`, `baseline`, `cooperative`, `episode`) check their
    parameters, batches and labels themselves, and penalties check their groups. Of these only the dtype is
    checked here.
    """
    for name in COUNTS:
        count = case.settings.get(name, 0)
        if not isinstance(count, int) or count > MOST:
            raise DataError(f"expected at most {MOST} {name}, got {count!r:.40}")
    for name, array in case.inputs.items():
        if array.dtype.kind == "f" and array.dtype != case.dtype:
            raise DataError(f"expected {name} as {case.dtype}, got {array.dtype}")
    if case.kind == "cross_entropy":
        _check_labels(case, _expect(case, "logits", (len(case.inputs["labels"]), None), case.dtype))
    elif case.kind in ("gated", "network"):
        _check_chain(case, build(case.settings["layers"]), "", tuple(case.settings["input_shape"]))
    elif case.kind in LAYERS:
        _check_chain(case, (ops.layer_of(case),), f"{ops.NAME}.", case.inputs["x"].shape[1:])
    elif case.kind == "gate_shaping":
        if not all(_expect(case, "d", (None, None), case.dtype)):
            raise DataError("d holds no decision")
    elif case.kind == "prox":
        _expect(case, "v", (None,), case.dtype)


def _check_chain(case: Case, layers: Sequence[Layer], own: str, input_shape: tuple[int, ...]) -> None:
    """Check parameters, x, and arrays shaped like the output; parameters' names begin with `own`."""
    for parameter in chain_parameters(layers):
        name = parameter.name.removeprefix(own) if own else f"param.{parameter.name}"
        _expect(case, name, parameter.shape, case.dtype)
    count, *_ = _expect(case, "x", (None, *input_shape), case.dtype)
    if not count:
        raise DataError("x holds no sample")
    output = (count, *chain_shape(layers, input_shape))
    if case.kind == "network":
        _check_labels(case, output)
    else:
        _expect(case, "dy", output, case.dtype)
    if "mask" in case.inputs:
        _expect(case, "mask", output[:2], "bool")


def _check_labels(case: Case, logits: tuple[int, ...]) -> None:
    """Check that each row of the logits (N, classes) has a label, which is one of the classes."""
    _expect(case, "labels", logits[:1], "int64")
    labels = case.inputs["labels"]
    if not labels.size or labels.min() < 0 or labels.max() >= logits[1]:
        raise DataError(f"expected labels in 0..{logits[1] - 1}, got others, or none")


def _expect(case: Case, name: str, shape: tuple[int | None, ...], dtype: str) -> tuple[int, ...]:
    """Check an input's dtype and shape, in which None stands for any length; returns its shape."""
    array = case.inputs[name]
    fits = array.ndim == len(shape) and all(
        wanted in (None, got) for wanted, got in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype != np.dtype(dtype):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise DataError(
            f"expected {name} as {dtype} of shape ({wanted}), got {array.dtype} of shape {array.shape}"
        )
    return tuple(array.shape)
