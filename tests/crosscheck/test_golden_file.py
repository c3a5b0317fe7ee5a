"""Golden files: what is written reads back, the same is the same bytes, and no damage goes unnoticed."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from checks import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

from refimpl.crosscheck.golden.case import LEVELS, Case
from refimpl.crosscheck.golden.describe import build, describe, network_of
from refimpl.crosscheck.golden.file import MANIFEST, golden_bytes, read_golden
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.levels.networks import context_of
from refimpl.crosscheck.golden.ours import run
from refimpl.errors import DataError, InputError
from refimpl.files.storage import npz_bytes, npz_headers, read_npz
from refimpl.nn.layers import Conv2d
from refimpl.nn.norms import with_summaries
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.pooling import AvgPool2d, MaxPool2d
from refimpl.nn.zoo import digits

ALL = list(build_cases("all"))
SMALL = [case for case in ALL if case.name in ("ops/relu", "ops/gated-hard-dense", "prox/group_lasso")]


@pytest.fixture(scope="module")
def content():
    return golden_bytes([(case, run(case)) for case in SMALL], "refimpl")


@pytest.fixture
def place(tmp_path):
    """Writes bytes to a file and returns its path."""

    def write(content, name="golden.npz"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def arrays_of(content):
    with np.load(io.BytesIO(content)) as archive:
        return dict(archive)


def with_manifest(content, change):
    """The file with its manifest changed by a function of the table."""
    arrays = arrays_of(content)
    table = json.loads(arrays[MANIFEST].tobytes())
    changed = json.dumps(change(table) or table).encode()
    return npz_bytes(arrays | {MANIFEST: np.frombuffer(changed, dtype=np.uint8)})


# --- cases ------------------------------------------------------------------------------------------


def test_every_level_has_cases_with_names_of_their_own():
    assert {case.level for case in ALL} == set(LEVELS)
    assert len({case.name for case in ALL}) == len(ALL)
    for case in ALL:
        assert len(set(case.outputs)) == len(case.outputs) > 0
        assert json.loads(json.dumps(dict(case.settings))) == case.settings


def test_the_seed_decides_the_inputs():
    for one, same, other in zip(ALL, build_cases("all"), build_cases("all", seed=1), strict=True):
        assert all(np.array_equal(one.inputs[name], same.inputs[name]) for name in one.inputs)
        assert not all(np.array_equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


def test_descriptions_build_the_layers_they_describe():
    for case in ALL:
        if "layers" in case.settings:
            assert describe(build(case.settings["layers"])) == case.settings["layers"]
        if "parameters" in case.settings and case.kind != "cooperative":  # whose parameters are a team's
            slots = network_of(case.settings).layout.slots
            assert [[slot.name, list(slot.shape)] for slot in slots] == case.settings["parameters"]


@pytest.mark.parametrize("kind", ["normalised", "centred"])
def test_descriptions_tell_how_gates_see_their_summaries(kind):
    network = with_summaries(digits(gates=("conv2",)), kind)
    (gate,) = (layer.gate for layer in build(describe(network.layers)) if hasattr(layer, "gate"))
    assert gate == network.gates[0].gate


def test_descriptions_leave_out_usual_windows_and_tell_of_others():
    plain = (Conv2d("c", 4, 4), MaxPool2d(3), AvgPool2d(3))
    other = (Conv2d("c", 4, 4, dilation=(2, 1), groups=2), MaxPool2d(3, padding=1), AvgPool2d(3, 1, (0, 1)))
    for layers, told in ((plain, set()), (other, {"dilation", "groups"})):
        tables = json.loads(json.dumps(describe(layers)))
        assert {"dilation", "groups"} & set(tables[0]) == told
        assert all(("padding" in table) == bool(told) for table in tables[1:])
        for mine, layer in zip(build(tables), layers, strict=True):
            assert (mine.window, mine.step, mine.pad) == (layer.window, layer.step, layer.pad)
        assert build(tables)[0] == layers[0]


@pytest.mark.parametrize("layers", [[{"type": "dropout", "name": "d"}], [{"type": "linear"}], 3, [3]])
def test_a_description_that_makes_no_sense_is_refused(layers):
    with pytest.raises(DataError, match="golden"):
        build(layers)


def test_cases_have_what_implementations_part_at():
    """Units at exactly zero before their ReLU, ties of gates, masks of both kinds in every 0/1 mode."""
    for mode in ("hard", "ste"):
        case = next(case for case in ALL if case.name == f"networks/cnn3-{mode}-dense")
        found = run(case)
        assert (found["forward.conv1"][:, 0] == 0).all()
        assert (found["forward.conv3.gate.hidden"][:, 0] == 0).all()
        off, on = (found["forward.conv3.gate.logits"][:, i::2] for i in (0, 1))
        assert (off[:, -1] == on[:, -1]).all()
        assert not found["forward.conv3.gate.mask"][:, -1].any()
        assert 0 < found["forward.conv3.gate.mask"].mean() < 1


@pytest.mark.parametrize("name", ["networks/cnn7-gumbel-dense", "networks/residual-soft-dense"])
def test_what_is_noted_is_what_training_computes(name):
    case = next(case for case in ALL if case.name == name)
    network, found = network_of(case.settings), run(case)
    w = network.layout.from_arrays(case.params(), case.dtype)
    context = context_of(case, case.named("noise."))
    gradient = np.empty_like(w)
    loss = NetworkObjective(network, case.inputs["x"], case.inputs["labels"], context)(w, gradient)
    assert found["loss"] == loss
    for parameter, view in network.layout.views(gradient).items():
        assert_same_bits(found[f"grad.{parameter}"], view, parameter)


# --- files ------------------------------------------------------------------------------------------


def test_what_is_written_reads_back(content, place):
    golden = read_golden(place(content))
    assert golden.made_by == "refimpl"
    for case, read in zip(SMALL, golden.cases, strict=True):
        assert (read.name, read.kind, read.dtype, read.outputs) == (
            case.name, case.kind, case.dtype, case.outputs,
        )  # fmt: skip
        assert read.settings == case.settings
        assert list(read.inputs) == list(case.inputs)
        for name, value in case.inputs.items():
            assert_same_bits(read.inputs[name], value, name)
        for name, value in run(read).items():
            assert_same_bits(golden.expected[case.name][name].value, value, name)


def test_the_seed_is_kept_where_it_is_given(place, content):
    pairs = [(case, run(case)) for case in SMALL]
    assert read_golden(place(golden_bytes(pairs, "refimpl", seed=3))).seed == 3
    assert read_golden(place(content)).seed is None
    odd = with_manifest(content, lambda table: table | {"seed": "<3>"})
    with pytest.raises(DataError, match="its manifest is not that of a golden file"):
        read_golden(place(odd))


def test_the_same_outputs_are_the_same_bytes(content):
    assert golden_bytes([(case, run(case)) for case in SMALL], "refimpl") == content


def test_outputs_must_be_those_of_the_case_and_finite():
    case = SMALL[0]
    right = run(case)
    for wrong in ({}, right | {"z": right["y"]}, right | {"y": right["y"] * np.nan}, right | {"y": None}):
        with pytest.raises((InputError, TypeError)):
            golden_bytes([(case, wrong)], "test")


def test_unknown_levels_and_kinds_are_refused():
    with pytest.raises(InputError, match="unknown level"):
        Case("opps/x", "relu", "float64", {})
    with pytest.raises(InputError, match="unknown kind"):
        run(Case("ops/x", "rule", "float64", {}))
    with pytest.raises(DataError, match="cannot compute ops/x"):
        run(Case("ops/x", "relu", "float64", {}, {}, ("y",)))


def refuse(path, match):
    with pytest.raises(DataError, match=match) as caught:
        read_golden(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def drop(table):
    del table["cases"][0]["outputs"][0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda table: table.update(version=2), "version 1, found"),
        (lambda table: table.update(format="golden"), "expected format"),
        (lambda table: [1, 2], "expected format"),
        (lambda table: table.pop("cases"), "not that of a golden file"),
        (lambda table: table.update(cases=3), "not that of a golden file"),
        (lambda table: table["cases"][0].update(name=7), "not that of a golden file"),
        (lambda table: table["cases"][0].update(name="opps/x"), "golden"),
        (lambda table: table["cases"][1]["settings"].update(parameters=[["w", "x"]]), "golden file"),
        (lambda table: table["cases"].append(table["cases"][0]), "there twice"),
        (
            lambda table: table["cases"].append({**table["cases"][0], "inputs": [], "outputs": []}),
            "there twice",
        ),
        (lambda table: table["cases"][0].update(dtype="float16"), "golden.npz: .*unknown dtype"),
        (lambda table: table["cases"][0].update(name="opps/x", inputs=[], outputs=[]), "golden.npz"),
        (lambda table: table["cases"][1]["settings"].update(parameters=[["w", [2.5]]]), "a parameter is 'w'"),
        (
            lambda table: table["cases"][1]["settings"].update(parameters=[["w", [True]]]),
            "a parameter is 'w'",
        ),
        (lambda table: table["cases"][1]["settings"].update(parameters=[["w", [-1, -1]]]), "a parameter"),
        (lambda table: table["cases"][1]["settings"].update(parameters=[[7, [1]]]), "a parameter is 7"),
        (lambda table: table["cases"][0]["outputs"][0].update(dtype="object"), "not of float32"),
        (lambda table: table["cases"][0]["outputs"][0].update(relative=-1), "tolerance"),
        (lambda table: table["cases"][0]["outputs"][0].update(floor=0), "floor"),
        (lambda table: table["cases"][0]["outputs"][0].update(floor=math.inf), "floor"),
        (lambda table: table["cases"][0]["outputs"][0].pop("floor"), "not that of a golden file"),
        (lambda table: table["cases"][0]["outputs"][0].update(relative="0"), "not that of a golden file"),
        (lambda table: table["cases"][0]["outputs"][0].update(shape=[7]), "expected ops/relu/y as float64"),
        (lambda table: table["cases"][0]["outputs"][0].update(name="q"), "missing: ops/relu/q"),
        (drop, "unknown: ops/relu/y"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(content, place, change, match):
    def changed(table):
        out = change(table)
        return out if isinstance(out, list) and out == [1, 2] else None

    path = place(with_manifest(content, changed))
    with pytest.raises(InputError, match=match):
        read_golden(path)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"NaN", b"[" * 10**5, b"null"])
def test_a_manifest_that_is_no_table_is_refused(content, place, raw):
    broken = arrays_of(content) | {MANIFEST: np.frombuffer(raw, dtype=np.uint8)}
    refuse(place(npz_bytes(broken)), "manifest|expected format")


def test_other_files_are_no_golden_files(place, tmp_path):
    refuse(tmp_path / "none.npz", "no such file")
    refuse(place(b"not a zip"), "found damage")
    refuse(place(npz_bytes({"x": np.zeros(3)})), "no array `manifest`")
    refuse(tmp_path, "cannot read")
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    refuse(place(single.getvalue()), "a single array")


def test_references_are_finite(content, place):
    arrays = arrays_of(content)
    arrays["ops/relu/y"][0, 0, 0] = np.nan
    refuse(place(npz_bytes(arrays)), "holds NaN")


def test_pickles_in_it_are_not_run(content, place, tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    packed = io.BytesIO()
    np.savez(packed, **{**arrays_of(content), "ops/relu/y": np.array([Evil()], dtype=object)})
    refuse(place(packed.getvalue()), "golden.npz")
    refuse(place(pickle.dumps(Evil())), "golden.npz")
    assert not marker.exists()


def huge(shape):
    """An archive whose one array promises more than is there."""
    header = io.BytesIO()
    fields = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"{MANIFEST}.npy", header.getvalue() + b"\0" * 64)
    return content.getvalue()


def test_a_single_array_is_refused_before_it_is_read(place):
    header = io.BytesIO()
    fields = {"descr": "<f8", "fortran_order": False, "shape": (10**9,)}
    np.lib.format.write_array_header_1_0(header, fields)
    refuse(place(header.getvalue()), "a single array")


@pytest.mark.parametrize("shape", [(10**12,), (10**6, 10**6), (9,), (2**62, 4), (0,)])
def test_a_header_that_promises_more_than_is_there_allocates_nothing(place, shape):
    path = place(huge(shape))
    tracemalloc.start()
    try:
        refuse(path, "should take|found damage")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10**6


def zeros(count):
    """A small file whose one array is large: it is compressed."""
    content = io.BytesIO()
    np.savez_compressed(content, **{MANIFEST: np.zeros(count, dtype=np.uint8)})
    return content.getvalue()


def test_a_small_file_may_not_unpack_to_a_large_one(place):
    refuse(place(zeros(2**24 + 1)), "more than the 16777216 admitted")


def test_long_names_are_cut_in_messages(content, place):
    """Whatever a file says, its refusal is a line that can be read."""
    arrays = arrays_of(content)
    manifest = bytes(arrays["manifest"]).decode()
    for old, new in (("refimpl-golden", "refimpl-g" * 99), ("ops/relu", "x" * 999)):
        changed = arrays | {"manifest": np.frombuffer(manifest.replace(old, new).encode(), np.uint8)}
        with pytest.raises(DataError) as caught:
            read_golden(place(npz_bytes(changed)))
        assert len(str(caught.value)) < 600


def test_arrays_that_come_twice_are_refused(place):
    array, content = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros(2))
    with zipfile.ZipFile(content, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name is there twice
        for _ in range(2):
            archive.writestr("x.npy", array.getvalue())
    with pytest.raises(DataError, match="two members of one name"):
        read_npz(place(content.getvalue()))


def test_headers_are_known_without_reading(content, place):
    headers = npz_headers(place(content))
    for name, array in arrays_of(content).items():
        assert (headers[name].shape, headers[name].dtype) == (array.shape, array.dtype)
        assert headers[name].size == math.prod(array.shape) * array.itemsize
    assert set(read_npz(place(content), ("ops/relu/y", "no such"))) == {"ops/relu/y"}


@given(kind=st.sampled_from(["cut", "byte", "zeros"]), share=st.floats(0, 1), flip=st.integers(1, 255))
def test_damage_is_refused_in_one_line_or_harmless(tmp_path_factory, content, kind, share, flip):
    """Bytes cut off, changed or blanked."""
    at, broken = int(share * (len(content) - 1)), bytearray(content)
    if kind == "cut":
        del broken[at:]
    elif kind == "byte":
        broken[at] ^= flip
    else:
        broken[at : at + 50] = bytes(len(broken[at : at + 50]))
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(bytes(broken))
    try:
        said = f"{len(read_golden(path).cases)} cases"
    except InputError as error:
        said = str(error)
    assert said == f"{len(SMALL)} cases" or (str(path) in said and "\n" not in said)
