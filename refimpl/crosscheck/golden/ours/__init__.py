"""What this package computes for a case: `run(case)` gives its outputs by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.describe import LAYERS
from refimpl.crosscheck.golden.ours import blocks, federated, ops, prox
from refimpl.crosscheck.golden.ours.inputs import check_case
from refimpl.errors import DataError, InputError, one_of

_KINDS: dict[str, Callable[[Case], Arrays]] = {
    **dict.fromkeys(LAYERS, ops.layer),
    "cross_entropy": ops.cross_entropy,
    "gated": blocks.gated,
    "network": blocks.network,
    "prox": prox.prox,
    "local": federated.local,
    "algorithm": federated.algorithm,
    "adapt": federated.adaptation,
    "baseline": federated.baseline,
}


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
        return {name: _of_dtype(found[name], case.dtype) for name in case.outputs}
    except InputError as error:
        raise DataError(f"golden: {case.name}: {str(error).removeprefix('golden: ')}") from None
    except UNREADABLE as error:
        raise DataError(f"golden: cannot compute {case.name}: {error!r}; check its inputs") from error


def _of_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """Convert losses, which are summed in float64, to the dtype of the case; masks stay masks."""
    return array if array.dtype == np.bool_ else array.astype(dtype, copy=False)
