"""A case from anyone's file is checked before compiled code, which checks nothing, sees its arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refimpl.crosscheck.golden.case import Case
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import COUNTS, run
from refimpl.errors import DataError

NAMES = ("conv-masked", "linear", "relu", "max_pool2d", "batch_norm2d", "cross_entropy", "gated-hard-dense")
CASES = {case.name: case for case in build_cases("ops") if case.name.removeprefix("ops/") in NAMES}
CASES |= {case.name: case for case in build_cases("networks", models=("mlp",)) if "-hard-dense" in case.name}
CASES |= {case.name: case for case in build_cases("prox") if case.name == "prox/group_lasso"}
CASES |= {case.name: case for case in build_cases("local") if case.name == "local/hard"}


def refuse(case: Case, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        run(case)
    assert case.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_right_inputs_pass_and_no_array_may_be_shorter_or_of_another_type(name):
    """Cut along any axis where another array or the network says how long it is; the wrong float."""
    case = CASES[name]
    assert set(run(case)) == set(case.outputs)
    for key, array in case.inputs.items():
        if array.dtype.kind == "f":
            refuse(replace(case, inputs=case.inputs | {key: array.astype(np.float32)}), f"expected {key} as")
        for axis in range(array.ndim):
            if not _may_be_shorter(case, key, axis):
                cut = np.ascontiguousarray(np.delete(array, -1, axis))
                refuse(replace(case, inputs=case.inputs | {key: cut}), "golden|expected|must")


def _may_be_shorter(case: Case, key: str, axis: int) -> bool:
    """Whether nothing else says how long the axis is."""
    free = {("cross_entropy", "logits", 1), ("prox", "v", 0), ("prox", "indices", 0)}
    free.add(("max_pool2d", "x", 2))  # the last row fills no window
    return (case.kind, key, axis) in free


COUNTED = {
    case.name: case for level in ("local", "algorithm", "adapt", "baselines") for case in build_cases(level)
}


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("count", [1001, 10**9, 10**30, 1e9, "many"])
def test_a_file_cannot_ask_for_endless_work(name, count):
    """Also where nothing else in the case says how often: steps of an adaptation, of a personal model."""
    case = COUNTED[name]
    for key in set(COUNTS) & set(case.settings):
        refuse(replace(case, settings={**case.settings, key: count}), f"at most 1000 {key}, got")


@pytest.mark.parametrize("name", ["ops/cross_entropy", "networks/mlp-hard-dense"])
@pytest.mark.parametrize("wrong", [-1, 6, 2**40])
def test_labels_are_classes(name, wrong):
    case = CASES[name]
    labels = case.inputs["labels"].copy()
    labels[-1] = wrong
    refuse(replace(case, inputs=case.inputs | {"labels": labels}), "expected labels in 0")
    floats = case.inputs["labels"].astype(np.float64)
    refuse(replace(case, inputs=case.inputs | {"labels": floats}), "expected labels as int64")


def test_a_mask_is_boolean_and_no_batch_is_empty():
    case = CASES["ops/conv-masked"]
    numbers = case.inputs["mask"].astype(np.int64)
    refuse(replace(case, inputs=case.inputs | {"mask": numbers}), "expected mask as bool")
    none = {key: case.inputs[key][:0] for key in ("x", "dy", "mask")}
    refuse(replace(case, inputs=case.inputs | none), "x holds no sample")


def test_what_does_not_fit_into_numbers_or_memory_is_refused():
    case = CASES["ops/conv-masked"]
    refuse(replace(case, settings={**case.settings, "padding": [2**40, 2**40]}), "golden")
    refuse(replace(case, settings={**case.settings, "stride": [0, 1]}), "stride|cannot compute")
    flat = CASES["ops/batch_norm2d"]
    refuse(replace(flat, settings={"eps": "small"}), "cannot compute")
    step = replace(CASES["prox/group_lasso"], settings={"penalty": {"type": "l1", "rho": 10**400}, "step": 1})
    refuse(step, "prox/group_lasso")


def test_a_network_nested_too_deeply_is_refused():
    case = CASES["networks/mlp-hard-dense"]
    layers = case.settings["layers"]
    for _ in range(3000):
        layers = [{"type": "residual", "name": "r", "body": layers, "shortcut": []}]
    refuse_named = replace(case, settings={**case.settings, "layers": layers})
    with pytest.raises(DataError, match="nested too deeply"):
        run(refuse_named)
