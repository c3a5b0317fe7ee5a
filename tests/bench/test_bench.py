"""The benchmark: its oracle is right, it refuses what is wrong, it times what it says, its programs agree."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from bench import depth_speed, layer_profile
from refimpl.bench import cases, endtoend, peaks, process, session, tables, timing
from refimpl.bench.candidates import OURS, Candidate, numpy_blas, ours, time_case
from refimpl.bench.cases import Case, Geometry, grid, layer_data
from refimpl.bench.oracle import Reference, WrongResultError, check, reference, rounding
from refimpl.bench.peaks import blas, matrix_peaks, tile_peak
from refimpl.bench.programs import Adaptation, Inference, Model, Round
from refimpl.bench.timing import SMOKE, Effort, Timing, interleave
from refimpl.errors import InputError, RefimplError
from refimpl.files.environment import cores
from refimpl.kernels import plain
from refimpl.kernels.conv import or_all_on
from refimpl.nn.context import Context
from refimpl.nn.objective import NetworkObjective

ROOT = Path(__file__).parents[2]
SHAPES = (Geometry(3, 4, 7), Geometry(2, 5, 6, kernel=5, pad=2), Geometry(4, 3, 5, kernel=2, pad=0))
ALL = grid((*SHAPES, cases.linear(6, 5)), (3,), (0.0, 0.4), "float64")


def by_readable_kernels(case: Case) -> dict[str, np.ndarray]:
    x, weight, bias, dy, mask = layer_data(case)
    step, pad, on = (1, 1), (case.geometry.pad, case.geometry.pad), or_all_on(None)
    gate = or_all_on(mask)
    if case.pass_ == "forward":
        y = np.empty_like(dy)
        plain.conv_forward(x, weight, bias, step, pad, (1, 1), on, gate, y)
        return {"y": y}
    if case.pass_ == "input_grad":
        dx = np.empty_like(x)
        plain.conv_input_grad(dy, weight, step, pad, (1, 1), gate, on, dx)
        return {"dx": dx}
    dw, db = np.empty_like(weight), np.empty_like(bias)
    plain.conv_weight_grad(x, dy, step, pad, (1, 1), on, gate, dw, db)
    return {"dw": dw, "db": db}


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.label)
def test_the_oracle_is_the_readable_kernels(case):
    check("plain", by_readable_kernels(case), reference(case, layer_data(case)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [ours, numpy_blas])
def test_candidates_of_every_installation_are_right(make, dtype):
    for case in grid((*SHAPES, cases.linear(6, 5)), (1, 3), (0.0, 0.4, 0.9), dtype):
        data = layer_data(case)
        candidate = make(case, data)
        check(case.label, candidate.arrays(candidate.run()), reference(case, data))


# --- what is refused


@pytest.mark.parametrize("case", grid(cases.GRID[:1], (2,), (0.0,)), ids=lambda case: case.label)
def test_a_missing_tap_channel_or_sample_is_noticed(case):
    data = layer_data(case)
    wanted = reference(case, data)
    reads = {"forward": ("weight", "x"), "input_grad": ("weight", "dy"), "weight_grad": ("x", "dy")}
    missing = {"weight": [np.s_[:, :, 0, 0], np.s_[3]], "x": [np.s_[:, 3]], "dy": [np.s_[1], np.s_[:, 3]]}
    for name in reads[case.pass_]:
        for cut in missing[name]:
            wrong = getattr(data, name).copy()
            wrong[cut] = 0
            arrays = reference(case, data._replace(**{name: wrong})).arrays
            with pytest.raises(WrongResultError, match="not timed"):
                check("cut", arrays, wanted)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"y": np.ones(3)},
        {"y": np.array([1.0, np.nan])},
        {"y": np.array([1.0, 2.0 + 1e-3])},
        {"y": np.array([2.0, 1.0])},
    ],
)
def test_missing_misshapen_undefined_or_wrong_results_are_refused(arrays):
    wanted = Reference({"y": np.array([1.0, 2.0])}, rounding("float32", 100))
    assert check("right", {"y": np.array([1.0, 2.0 + 1e-6])}, wanted) < 1e-6
    with pytest.raises(WrongResultError):
        check("wrong", arrays, wanted)


def test_a_wrong_candidate_is_not_timed():
    calls = []

    def wrong(case, data):
        right = ours(case, data)

        def run():
            calls.append(case)
            return 1.01 * right.run()

        return Candidate("wrong", run, right.arrays)

    case = Case(Geometry(3, 8, 8), "forward", 2)
    rows = {row["candidate"]: row for row in time_case(case, (wrong, ours), SMOKE)}
    assert len(calls) == 1
    assert "seconds" not in rows["wrong"]
    assert "differs from the float64 reference" in rows["wrong"]["refused"]
    assert rows[OURS]["seconds"] > 0
    results = session.gather([("kernels", row) for row in rows.values()])
    assert session.refused(results) == [rows["wrong"]["refused"]]
    assert "wrong" not in tables.layer_table(results)[0]


def test_a_program_that_does_something_else_is_not_timed():
    program = session.smallest_programs()[0]

    def without_the_pull_to_the_centre(program, threads):
        changed = Round(**{**vars(program), "lam": 0.0})
        return ours_of(changed)._replace(name="other")

    rows = endtoend.time_program(program, (ours_of_any, without_the_pull_to_the_centre), 1, SMOKE)
    assert {row["candidate"]: "refused" in row for row in rows} == {OURS: False, "other": True}


def test_a_program_whose_steps_are_too_long_is_not_timed():
    def wrong(program, threads):
        right = endtoend.ours(program, threads)

        def arrays(result):
            return {name: 1.01 * array for name, array in right.arrays(result).items()}

        return Candidate("wrong", right.run, arrays)

    for program in session.smallest_programs():
        rows = {
            row["candidate"]: row for row in endtoend.time_program(program, (wrong, endtoend.ours), 1, SMOKE)
        }
        assert "differs from the float64 reference by 0.01 " in rows["wrong"]["refused"]
        assert rows[OURS]["seconds"] > 0


def ours_of(program):
    return endtoend.ours(program)


def ours_of_any(program, threads):
    return endtoend.ours(program, threads)


# --- what is timed


def test_candidates_take_turns_and_the_median_is_reported(monkeypatch):
    now, order = [0.0], []
    durations = {"a": [9.0, 9.0, 1.0, 2.0, 30.0], "b": [9.0, 9.0, 4.0, 4.0, 4.0]}
    used = {"a": 0, "b": 0}

    def run(name):
        def call():
            order.append(name)
            now[0] += durations[name][used[name]]
            used[name] += 1

        return call

    monkeypatch.setitem(timing.CLOCKS, "fake", lambda: now[0])
    effort = Effort(rounds=3, most=3, seconds=0.0, sample=0.0, clock="fake")
    found = interleave({"a": run("a"), "b": run("b")}, effort)
    assert order[4:] == ["a", "b", "b", "a", "a", "b"]  # after warming up
    assert found["a"][:4] == (2.0, 1.5, 16.0, 3)
    assert (found["b"].seconds, found["b"].noise) == (4.0, 0.0)


def test_short_calls_are_repeated_to_fill_a_sample():
    calls = [0]

    def run():
        calls[0] += 1

    found = interleave({"a": run}, Effort(rounds=2, most=2, seconds=0.0, sample=1e-3))
    assert found["a"].calls > 10
    assert calls[0] == 2 + 2 * found["a"].calls


@pytest.mark.parametrize("off", [0.25, 0.5, 0.75, 0.9])
def test_every_sample_closes_its_own_share_of_channels(off):
    case = Case(cases.GRID[0], "forward", 8, off)
    mask = layer_data(case).mask
    closed = round(off * 64)
    assert (mask.sum(axis=1) == 64 - closed).all()
    assert len({row.tobytes() for row in mask}) == 8
    assert case.flops / case.dense_flops == (64 - closed) / 64
    assert case.dense_flops == 8 * 2 * 32 * 64 * 9 * 16 * 16


def test_of_several_sizes_the_one_with_the_most_operations_a_second_wins(monkeypatch):
    seconds = iter([2e-6, 1e-4, 3e-3])  # 0.5, 17.7 and 11.2 GFLOP/s

    def timed(runs, effort):
        return dict.fromkeys(runs, Timing(next(seconds), 0.0, 0.0, 1, 1))

    monkeypatch.setattr(peaks, "interleave", timed)
    (found,) = matrix_peaks((blas,), "float32", SMOKE, (8, 96, 256))
    assert found.size == 96
    assert found.gflops == pytest.approx(2e-9 * 96**3 / 1e-4)


def test_peaks_are_measured_and_their_products_checked():
    (found,) = matrix_peaks((blas,), "float32", SMOKE, (8,))
    assert found.gflops > 0
    assert tile_peak("float64", SMOKE).gflops > 0
    with pytest.raises(WrongResultError):
        matrix_peaks((lambda a, b: blas(a, b.T),), "float32", SMOKE, (8,))


def test_the_shares_of_a_layers_time_add_up():
    tile, *layers = layer_profile.measure(2, smoke=True)
    assert tile["gflops"] > 0
    assert [row["pass"] for row in layers] == ["forward", "weight grad"]
    for row in layers:
        assert sum(row["shares"].values()) == pytest.approx(1.0)
        assert ("stores" in row["shares"]) == (row["pass"] == "forward")


# --- whole programs


@pytest.mark.parametrize("off", [0.0, 0.5, 0.75])
def test_gates_close_the_chosen_share_for_every_input(off):
    model = Model("digits", ("conv1", "conv2"), off)
    x, _ = model.samples(5)
    _, trace = model.network.forward(model.parameters(), x)
    for mask in model.network.masks(trace).values():
        assert (mask == mask[0]).all()
        assert (~mask[0]).mean() == off


def test_the_published_batches_are_those_of_the_round():
    program = Round(Model("digits"), nodes=2, steps=1, batch=3, samples=7)
    network, w = program.model.network, program.model.parameters("float64")
    moved, gradient = np.zeros_like(w), np.empty_like(w)
    for x, y, batches in zip(*program.data("float64"), program.batches(), strict=True):
        objective = NetworkObjective(network, x[batches[0]], y[batches[0]], Context(train=("theta", "phi")))
        objective(w, gradient)
        moved -= program.eta * gradient / 2
    # one step from the centre: g = lam (w - mean), xag = w - beta g
    wanted = {"ag": program.beta * program.lam * moved, "x": program.beta * program.lam * moved / 2}
    candidate = endtoend.ours(program, dtype="float64")
    arrays = candidate.arrays(candidate.run())
    for name, right in wanted.items():
        np.testing.assert_allclose(arrays[name], right, rtol=1e-12, atol=1e-15)


def test_executed_work_follows_what_is_closed():
    def share(off):
        program = Inference(Model("cnn3", ("conv3",), off), 1)
        return endtoend.executed_flops(program), endtoend.dense_flops(program)

    (none, dense), (most, same) = share(0.0), share(0.75)
    conv3, fc = 2 * 64 * 128 * 9 * 8 * 8, 2 * 2048 * 10
    assert dense == same
    assert none > dense  # the gate's own work
    assert none - most == pytest.approx(0.75 * (conv3 + fc), rel=0.01)


def test_threads_change_nothing():
    program = session.smallest_programs()[0]
    one, two = (endtoend.ours(program, threads) for threads in (1, 2))
    first, second = one.arrays(one.run()), two.arrays(two.run())
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_the_smoke_test_has_programs_of_all_kinds():
    assert {type(program) for program in session.smallest_programs()} == {Round, Adaptation, Inference}


# --- the measuring process


def test_more_threads_than_cores_are_refused():
    with pytest.raises(InputError, match="cores"):
        process.pin(cores() + 1)


def test_a_failing_process_is_one_line():
    with pytest.raises(RefimplError, match="measuring failed") as caught:
        list(process.listen("refimpl.bench", ["--only", "nonsense"], 1))
    assert "\n" not in str(caught.value)


def test_results_name_no_host_and_no_folder():
    plan = session.installed_plan(True, "end-to-end", 1, "wall")._replace(programs=[])
    text = json.dumps(session.gather(session.play(plan)))
    for private in (socket.gethostname(), str(Path.home()), str(ROOT), os.getcwd()):
        assert len(private) < 3 or private not in text


# --- tables


def row(candidate, seconds, off=0.0, **others):
    case = {"layer": "a->b", "pass": "forward", "batch": 2, "dtype": "float32", "off": off}
    return (
        case
        | {
            "candidate": candidate,
            "seconds": seconds,
            "gflops": 1.0,
            "executed_flops": 2e6,
            "noise": 0.1,
        }
        | others
    )


def test_the_layer_table_relates_times():
    rows = [row(OURS, 2e-3), row("x", 3e-3), row(OURS, 1e-3, 0.5), row("x", 3e-3, 0.5)]
    header, lines = tables.layer_table(session.gather([("kernels", r) for r in rows]))
    assert header[-3:] == ["GFLOP/s", "of dense", "x"]
    assert [line[5:] for line in lines] == [
        ["2 ms", "1", "1.00", "1.50x"],
        ["1 ms", "1", "0.50", "3.00x"],
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2 s"), (1.234e-3, "1.23 ms"), (5e-6, "5 us"), (5e-8, "0.05 us")]
)
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


def test_depths_are_timed_and_judged():
    found = depth_speed.rows("resnet20", "cpu", 3, sizes=(1,))
    assert [row["depth"] for row in found] == [1, 2, 3]
    assert found[-1]["proportion"] == 1
    assert all(0 <= row["kept"] <= 1 and row["ms"] > 0 for row in found)
    known = {"model": "resnet20", "batch": 1, "mflops": 2.0, "ms": 1.0, "budget": 1.5}
    numbers = ((1, 1.16, 0.9), (2, 0.86, 1.0), (3, 1.0, 0.95))
    rows = [{**known, "depth": d, "proportion": p, "kept": k} for d, p, k in numbers]
    one = {"kind": "AVX", "machine": "a CPU, wall time, 9 calls a row", "rows": rows}
    text = depth_speed.table([one, {**one, "kind": "SSE"}])
    assert text.startswith("a CPU, wall time, 9 calls a row.")
    own = " 1 | 1.5 | 0.86 | 100.0 % |"
    assert f"| resnet20 | 2 | 1 | 2 |{own}{own}" in text.replace("  ", " ")
    said = (
        "SSE: milliseconds per FLOP, relative to the full depth, are within 15 % of 1 in 2 of 3 rows; "
        "depth 1 of resnet20 with 1 samples has 1.16. The time that 95 % of new calls should keep was kept "
        "by 95.0 % of them, and by at least 95 % in 2 rows."
    )
    assert said in text
