"""Timings of a layer and a network of one's own: right FLOPs, refused mistakes, twins that agree."""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from readme_commands import document

from refimpl import bench, zoo
from refimpl.bench import candidates, oracle, own, process
from refimpl.bench.cases import PASSES, Case, Geometry, layer_data
from refimpl.bench.tables import amount
from refimpl.bench.timing import SMOKE
from refimpl.errors import InputError

GEOMETRIES = (
    Geometry(4, 6, 7, 5, 2),
    Geometry(4, 6, 7, 3, 1, stride=2),
    Geometry(4, 6, 7, 3, 2, dilation=2),
    Geometry(4, 6, 8, 3, 0, 2, 2, 2),
    bench.linear(5, 6),
)
MLP = zoo.mlp((6, 8, 3), gates=("fc1",))


def by_loops(case, data):
    """y, dx and dw one product at a time."""
    g, (x, weight, bias, dy, mask) = case.geometry, data
    gate = np.ones(dy.shape[:2]) if mask is None else mask.astype(float)
    each = g.channels // g.groups
    y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(weight.shape)
    for n, k, p, q in np.ndindex(dy.shape):
        first = k // (g.filters // g.groups) * each
        y[n, k, p, q] += gate[n, k] * bias[k]
        for c, i, j in np.ndindex(each, g.kernel, g.kernel):
            row, col = (g.stride * at + g.dilation * tap - g.pad for at, tap in ((p, i), (q, j)))
            if 0 <= row < g.size and 0 <= col < g.size:
                y[n, k, p, q] += gate[n, k] * weight[k, c, i, j] * x[n, first + c, row, col]
                dx[n, first + c, row, col] += gate[n, k] * dy[n, k, p, q] * weight[k, c, i, j]
                dw[k, c, i, j] += gate[n, k] * dy[n, k, p, q] * x[n, first + c, row, col]
    return {"y": y, "dx": dx, "dw": dw}


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.label)
def test_the_oracle_is_the_sum_over_windows(geometry):
    for pass_ in PASSES:
        case = Case(geometry, pass_, 2, 0.5, "float64")
        data = layer_data(case)
        wanted = by_loops(case, data)
        for name, found in oracle.reference(case, data).arrays.items():
            right = wanted.get(name, (data.dy * data.mask[:, :, None, None]).sum(axis=(0, 2, 3)))
            np.testing.assert_allclose(found, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.label)
def test_a_layer_is_timed_with_its_own_flops(geometry):
    seen = []
    found = bench.time_layer(geometry, 2, 0.5, effort=SMOKE, on_row=seen.append)
    assert found.refused == []
    assert tuple(seen) == found.rows
    mine = {(row["pass"], row["off"]): row for row in found.rows if row["candidate"] == candidates.OURS}
    assert set(mine) == set(product(PASSES, (0.0, 0.5)))
    taps = geometry.channels // geometry.groups * geometry.kernel**2
    for (_, off), row in mine.items():
        dense = 2 * 2 * 6 * taps * geometry.result_size**2  # batch, multiply-add, filters
        assert (row["dense_flops"], row["executed_flops"]) == (dense, dense * (1 - off))
    lines = found.table().splitlines()
    assert len(lines) == 2 + len(mine) + 1
    noise = max(row["noise"] for row in found.rows)
    assert lines[-1].endswith(f"largest spread between quartiles: {noise:.0%} of a median")
    assert re.search(
        rf"forward +2 +50% .+ {re.escape(amount(mine['forward', 0.5]['executed_flops'] / 2))} ", found.table()
    )


def test_flops_are_told_in_a_unit_of_their_size():
    told = [amount(number) for number in (96, 10368, 92160000.0, 1.5e9)]
    assert told == ["96", "10.37 k", "92.16 M", "1.5 G"]


def test_a_wrong_layer_is_refused_and_not_timed(monkeypatch):
    right = candidates.conv.forward
    monkeypatch.setattr(candidates.conv, "forward", lambda *args, **more: 1.01 * right(*args, **more))
    found = bench.time_layer(GEOMETRIES[1], 2, 0.0, ("forward",), effort=SMOKE)
    assert re.search("refimpl differs from the float64 reference", found.refused[0])
    assert "REFUSED: bench: refimpl differs" in found.table()


def test_a_network_is_timed_with_the_flops_of_its_masks():
    found = bench.time_network(MLP, 0.75, (1, 3), effort=SMOKE)
    assert found.refused == []
    rows = {(row["pass"], row["batch"], row["off"]): row for row in found.rows}
    assert set(rows) == set(product(own.PROGRAMS, (1, 3), (0.0, 0.75)))
    for batch in (1, 3):
        dense, gated = rows["forward", batch, 0.0], rows["forward", batch, 0.75]
        assert dense["dense_flops"] == batch * (2 * 6 * 8 + 8 + 8 + 2 * 8 * 3 + 3)
        saved = batch * 6 * (2 * 6 + 1 + 1 + 2 * 3)  # six of eight units: products in and out, bias, ReLU
        assert 0 <= dense["executed_flops"] - gated["executed_flops"] - saved <= 8 * batch
    content = json.loads(found.json())
    assert len(content["rows"]) == len(found.rows)
    assert content["peak_gflops"] > 0


def test_a_wrong_network_is_refused(monkeypatch):
    class Off(own.Predictor):
        def __call__(self, x):
            found = super().__call__(x)
            return found._replace(logits=1.01 * found.logits)

    monkeypatch.setattr(own, "Predictor", Off)
    found = bench.time_network(MLP, 0, 2, ("forward",), effort=SMOKE)
    assert len(found.refused) == 1


@pytest.mark.parametrize(
    ("network", "given", "message"),
    [
        (zoo.mlp((4, 3), ()), {}, "has no gates, so no channels can be closed"),
        (MLP, {"off": 1.5}, "0 <= off <= 1, got 1.5"),
        (MLP, {"batch": 0}, "expected batch > 0"),
        (MLP, {"programs": ("backward",)}, "unknown program 'backward'"),
    ],
)
def test_what_cannot_be_timed_is_refused(network, given, message):
    with pytest.raises(InputError, match=message):
        bench.time_network(network, **given)


def test_a_layer_without_results_is_refused():
    with pytest.raises(InputError, match="at least the kernel's extent"):
        bench.time_layer(Geometry(4, 6, 2, 5, 0))
    with pytest.raises(InputError, match="channels that the groups divide"):
        bench.time_layer(Geometry(4, 6, 8, groups=4))


@pytest.mark.torch
def test_torch_computes_the_same_layers_and_networks():
    pytest.importorskip("torch")
    for geometry in GEOMETRIES:
        found = bench.time_layer(geometry, 2, 0.5, torch=True, effort=SMOKE)
        assert found.refused == []
        assert sum(row["candidate"] == "torch" for row in found.rows) == 6
    digits = zoo.digits((3, 4), gates=("conv1", "conv2"))
    found = bench.time_network(digits, 0.5, 2, torch=True, effort=SMOKE)
    assert found.refused == []
    assert sum(row["candidate"] == "torch" for row in found.rows) == 8


def test_onnxruntime_computes_the_same_logits():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    digits = zoo.digits((3, 4), gates=("conv1", "conv2"))
    found = bench.time_network(digits, 0.5, 2, ("forward",), onnx=True, effort=SMOKE)
    assert found.refused == []
    assert sum(row["candidate"] == "onnxruntime" for row in found.rows) == 2


# --- the commands -----------------------------------------------------------------------------------


def test_the_command_times_a_layer_in_a_process_of_its_own(refimpl):
    words = (
        "--in",
        4,
        "--out",
        6,
        "--size",
        6,
        "--kernel",
        5,
        "--batch",
        2,
        "--off",
        0.5,
        "--pass",
        "forward",
    )
    code, out, err = refimpl("bench", "layer", *words, "--smallest", "--json")
    assert code == 0
    assert "bench  forward, batch 2, 50% off: numpy + BLAS" in err
    assert "0:00 left" in err.splitlines()[-1]  # the last row was expected to be the last
    content = json.loads(out)
    assert content["subject"] == "4->6@6x6 k5"
    assert {row["off"] for row in content["rows"]} == {0.0, 0.5}


def test_the_command_times_the_network_of_a_file(refimpl, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from refimpl import zoo\n\n\ndef network():\n    return zoo.mlp((6, 8, 3), gates=('fc1',))\n"
    )
    words = ("--off", "0.5", "--batch", "2", "--pass", "forward", "--pass", "gradient", "--smallest", "-q")
    code, out, err = refimpl("bench", "network", f"{tmp_path}/mine.py:network", *words)
    assert (code, err) == (0, "")
    assert re.search(r"^gradient +2 +50% ", out, re.M)


def test_a_refused_result_exits_with_one(refimpl, monkeypatch):
    row = {"layer": "4->6", "pass": "forward", "batch": 2, "off": 0.0, "candidate": "refimpl"}
    row["refused"] = "refimpl is wrong"
    monkeypatch.setattr(process, "listen", lambda *args: iter([("row", row), ("peak", 1.0)]))
    code, out, _ = refimpl("bench", "layer", "--in", 4, "--out", 6, "-q")
    assert code == 1
    assert "REFUSED: refimpl is wrong" in out


def test_wrong_use_is_told_before_anything_is_measured(refimpl, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "listen", lambda *args: pytest.fail("measured"))
    (tmp_path / "mine.py").write_text(
        "from refimpl import zoo\n\nplain = zoo.mlp((6, 8, 3), ())\nnumber = 3\n"
    )
    for words, message in (
        (("network", f"{tmp_path}/mine.py:plain"), "has no gates, so nothing can be closed; give --off 0"),
        (("network", f"{tmp_path}/mine.py:number"), "to be a refimpl.Network, got 3"),
        (("layer", "--in", 4, "--out", 6, "--off", "half"), "expected shares like 0,0.5"),
        (("layer", "--in", 4, "--out", 6, "--off", 1.5), "expected shares 0 <= off <= 1, got 1.5"),
        (("layer", "--in", 4, "--out", 6, "--groups", 4), "channels that the groups divide"),
        (("layer", "--in", 4, "--out", 6, "--size", 2, "--pad", 0), "kernel's extent, and channels that"),
    ):
        code, _, err = refimpl("bench", *words)
        assert code == 2
        assert message in err
    monkeypatch.setattr("refimpl.cli.ownbench.find_spec", lambda name: None)
    code, _, err = refimpl("bench", "layer", "--in", 4, "--out", 6, "--torch")
    assert code == 2
    assert 'pip install "refimpl[torch]"' in err


def test_the_figure_tells_passes_and_candidates_apart():
    """A panel for each batch, and in it no two series with the same colour and marker."""
    pytest.importorskip("matplotlib")
    from refimpl.report.results import timings_figure

    keys = [*product(own.PROGRAMS, (1, 8), ("refimpl", "torch", "onnxruntime"), (0.0, 0.5))]
    rows = [
        {"pass": p, "batch": n, "candidate": c, "off": off, "executed_flops": 9.0 * n, "seconds": n * 2.0}
        for p, n, c, off in keys
    ]
    figure = timings_figure(bench.Timings("mine", tuple(rows), 1.0))
    assert [axes.get_title() for axes in figure.axes] == ["mine, batch 1", "mine, batch 8"]
    for axes in figure.axes:
        points = [line for line in axes.lines if line.get_marker() != "None"]
        looks = {(line.get_color(), line.get_marker()) for line in points}
        assert len(points) == len(looks) == 12
        assert {tuple(line.get_xydata()[0]) for line in points} == {(9.0, 2.0)}


def test_the_figure_draws_every_candidate(tmp_path):
    pytest.importorskip("matplotlib")
    found = bench.time_layer(GEOMETRIES[0], 2, 0.5, effort=SMOKE)
    assert found.figure(tmp_path / "layer.png").stat().st_size > 10_000


def test_the_examples_of_the_room_run(capsys, refimpl, monkeypatch):
    """The file, the two commands (without what needs an extra), and the calls from Python."""
    page = document("refimpl/bench/README.md")
    (file,) = re.findall(r"```py\n# mine\.py\n(.*?)```", page, flags=re.S)
    Path("mine.py").write_text(file)
    for command in re.findall(r"^\$ refimpl (.*)$", page, flags=re.M):
        words = re.sub(r" --(torch|onnx|figure \S+)", "", command).split()
        code, out, _ = refimpl(*words, "--smallest", "-q")
        assert (code, "FLOPs of a sample" in out) == (0, True)
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (block,) = re.findall(r"```python\n(.*?)\n```", page, flags=re.S)
    exec(compile(block, "refimpl/bench/README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "mine: FLOPs of a sample" in printed
    assert "6->12@4x4: FLOPs of a sample" in printed
