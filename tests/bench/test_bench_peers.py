"""The comparison with other frameworks, run from a checkout: bars, tables, peers that compute the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench import (
    deep_speed,
    depth_speed,
    experiments,
    layer_profile,
    layer_speed,
    markdown,
    regime,
    sparse_speed,
)
from bench.bars import geometric_mean, judge
from bench.peers import available, installed
from bench.plans import all_cases, all_programs
from refimpl.bench import endtoend, session
from refimpl.bench.candidates import OURS, time_case
from refimpl.bench.peaks import matrix_peaks
from refimpl.bench.programs import Model, Round
from refimpl.bench.timing import SMOKE

ROOT = Path(__file__).parents[2]


def synthetic(ours_seconds: float) -> dict:
    """Results in which every peer takes 1 ms and we the given time, times the share of channels on."""
    results = session.gather([])
    results["peaks"] = [{"name": "numpy matmul", "dtype": "float32", "gflops": 100.0}]
    for case in all_cases():
        common = {"layer": case.geometry.label, "pass": case.pass_, "batch": case.batch}
        common |= {"dtype": case.dtype, "off": case.off, "gflops": 90.0, "executed_flops": case.flops}
        results["kernels"] += [
            common | {"candidate": OURS, "seconds": ours_seconds * (1 - case.off)},
            common | {"candidate": "torch NCHW", "seconds": 1.5e-3},
            common | {"candidate": "torch channels-last", "seconds": 1e-3},
        ]
    names = ("torch autograd", "torch tuned, NCHW", "jax jit, scan", "onnxruntime (no gates)")
    for program in all_programs():
        for threads in (1, 2):
            common = {"program": program.label, "threads": threads, "gflops": 1.0}
            mine = {"candidate": OURS, "seconds": ours_seconds / 5 / threads}
            results["end_to_end"] += [common | mine]
            results["end_to_end"] += [common | {"candidate": name, "seconds": 1e-3} for name in names]
    results["interpreter"] = [{"solve": "a", "share": 90 * ours_seconds}]
    results["memory"] = [
        {"candidate": OURS, "process_bytes": 1, "round_bytes": 1},
        {"candidate": "torch autograd", "process_bytes": 2, "round_bytes": 2},
    ]
    return results


def test_geometric_mean():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert math.isnan(geometric_mean([]))


def test_the_grids_hold_what_they_promise():
    assert {case.off for case in all_cases()} == {0.0, 0.25, 0.5, 0.75, 0.9}
    assert {case.batch for case in all_cases()} == {1, 32, 256}
    labels = [program.label for program in all_programs()]
    assert len(set(labels)) == len(labels)


def test_bars_are_met_missed_or_not_measured():
    good = judge(synthetic(0.9e-3))
    assert all(bar.met for bar in good), [bar for bar in good if not bar.met]
    slow = {bar.what: bar.met for bar in judge(synthetic(9e-3))}
    own = {what for what, met in slow.items() if met}  # those that compare us with ourselves
    assert own == {
        "50 %, 75 % off: ours / our dense",
        "dense layers at batch 32, rate against the best matrix product",
        "MNIST round, one thread / two threads, ours",
        "cnn3 round (1, 5 steps), one thread / two threads, ours",
        "peak memory of the CIFAR round",
    }
    assert all(bar.met is None for bar in judge(session.gather([])))


def test_a_bar_is_not_met_by_a_part_of_its_programs():
    for seconds, verdict in ((0.9e-3, None), (9e-3, False)):
        results = synthetic(seconds)
        lost = session.rounds(5)[0].label  # one of the two rounds of this bar
        results["end_to_end"] = [row for row in results["end_to_end"] if row["program"] != lost]
        bars = {bar.what: bar for bar in judge(results)}
        found = bars["cnn3 round ungated (1, 5 steps), tuned PyTorch / ours"]
        assert found.met is verdict
        assert "(1 of 2 measured)" in found.measured


def test_readme_tables_and_figure_come_from_the_results(tmp_path):
    results = synthetic(0.5e-3)
    assert "| 64->128@8x8 forward | 90 | 90% | 2.00 | 0.50 | 4.00 | 0.25 | 8.00 |" in markdown.layers(results)
    assert "| 100 us | 50 us | 10.00x | 10.00x | 10.00x | 10.00x |" in markdown.programs(results)
    pytest.importorskip("matplotlib")
    from bench.figure import draw

    draw(results, tmp_path / "a.svg")
    draw(results, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def own_tables() -> dict[str, str]:
    """The tables that programs of their own make, by the command that prints each."""

    def printed(module, *names):
        files = [f"bench/results/speed/{name}.json" for name in names]
        results = [json.loads((ROOT / file).read_text()) for file in files]
        return f"python -m {module.__name__} --table {' '.join(files)}", module.table(results).rstrip("\n")

    layers = printed(layer_speed, "layers-avx512", "layers-avx2-emulated")
    profile = printed(layer_profile, "profile-avx512", "profile-avx2-emulated")
    networks = printed(deep_speed, "networks-avx512", "networks-avx2-emulated")
    depths = printed(depth_speed, "depths-avx512", "depths-avx2-emulated")
    sparse = printed(sparse_speed, "sparse-amd-avx512", "sparse-amd-avx2", "sparse-intel-avx512")
    return dict((layers, profile, networks, depths, sparse))


def test_the_readme_shows_the_committed_results():
    from refimpl.files.tables import inside, put_into

    files = [f"bench/results/speed/{kind}.json" for kind in ("avx512", "avx2-emulated")]
    speed = {markdown.command(f): markdown.readme(json.loads((ROOT / f).read_text())) for f in files}
    tables = {experiments.command(n): experiments.content(n) for n in experiments.names()}
    pages = {"bench": speed | own_tables(), "bench/results": tables}
    texts = {folder: (ROOT / folder / "README.md").read_text(encoding="utf-8") for folder in pages}
    for folder, shown in pages.items():
        for command, content in shown.items():
            assert inside(texts[folder], command) == content
            assert put_into(texts[folder], command, content) == texts[folder]
    for figure in sorted(path for path in (ROOT / "bench").rglob("*") if path.suffix in (".svg", ".png")):
        folder = "bench" if figure.parent.name == "speed" else "bench/results"
        assert f"]({figure.relative_to(ROOT / folder)})" in texts[folder]


def test_differences_to_a_second_baseline_mirror_the_stated_ones():
    results = experiments.read("protocol-1")
    (stated,) = (one for one in results["claims"] if one["label"] == "perfedavg")
    (mirrored,) = (one for one in experiments.differences(results, "perfedavg") if one.label == "fedavg")
    assert mirrored.points == pytest.approx(-stated["points"])
    assert (mirrored.low, mirrored.high) == pytest.approx((-stated["high"], -stated["low"]))
    assert mirrored.seeds == 20


def test_a_regime_is_tuned_compared_and_shown(monkeypatch, tmp_path):
    small = {
        "nodes": 2,
        "targets": 1,
        "folds": 3,
        "per_round": 0,
        "rounds": 2,
        "node_min": 20,
        "node_max": 24,
    }
    monkeypatch.setattr(regime, "SETTING", regime.SETTING | small)
    monkeypatch.setattr(regime, "TRAININGS", 1)
    monkeypatch.setattr(regime, "VALIDATION", 1)
    cells = regime.regime(2, 0, range(4))
    assert [cell["name"] for cell in cells] == ["fedavg", "ghadimi-lan", "bounded", "nesterov"]
    assert all(0.03 <= cell["eta"] <= 1 and cell["accuracy"] > 0 for cell in cells)
    assert all(cell["low"] <= cell["points"] <= cell["high"] and cell["seeds"] == 4 for cell in cells[1:])
    text = regime.table({"cells": cells})
    assert text.splitlines()[0].startswith("| local steps | batch | FedAvg % | ghadimi-lan: points |")
    assert text.splitlines()[2].startswith("| 2 | all |")
    pytest.importorskip("matplotlib")
    assert regime.draw({"cells": cells}, tmp_path / "regime.png").is_file()


PEERS = (
    pytest.param("torch", marks=pytest.mark.torch),
    "jax",
    pytest.param("onnxruntime", marks=pytest.mark.onnx),
)


@pytest.mark.parametrize("peer", PEERS)
def test_peers_compute_the_same(monkeypatch, peer):
    pytest.importorskip(peer)

    if peer not in installed():
        pytest.skip("a part of it is missing")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    offers = available([peer], 1)
    mlp = Round(Model("mlp"), nodes=2, steps=2, batch=3, samples=5)
    checked = 0
    for case in session.smallest_cases():
        rows = time_case(case, offers.layers, SMOKE)
        assert not [r["refused"] for r in rows if "refused" in r]
        checked += len(rows)
    for program in (*session.smallest_programs(), mlp):
        rows = endtoend.time_program(program, offers.programs, 1, SMOKE)
        assert not [r["refused"] for r in rows if "refused" in r]
        checked += len(rows)
    assert checked >= 2
    for peak in matrix_peaks(offers.products, "float32", SMOKE, (16,)):
        assert peak.gflops > 0
