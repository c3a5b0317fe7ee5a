"""The doctor finds wrong kernels and every trap it knows, and passes a sound machine."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest

from refimpl.bench import formulas
from refimpl.machine import doctor
from refimpl.machine.doctor import FAILED, OK, WARNING
from refimpl.nn.task import CompiledObjective

right = CompiledObjective.__call__


def states(finding: doctor.Finding) -> tuple[str, str]:
    return finding.state, finding.detail


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sound_kernels_pass(dtype):
    state, detail = states(doctor.check_kernels(dtype))
    assert state == OK
    assert detail.startswith("convolution and linear, forward and both gradients, open and gated: bits of")


def spoiled(how):
    def ours(case, data):
        candidate = doctor.ours.__wrapped__(case, data)
        return candidate._replace(arrays=lambda result: how(candidate.arrays(result)))

    ours.__wrapped__ = doctor.ours
    return ours


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda arrays: {name: np.nextafter(a, 9) for name, a in arrays.items()}, "differs in some bit"),
        (lambda arrays: {name: 1.01 * a for name, a in arrays.items()}, "differs from the float64 reference"),
        (lambda arrays: {}, "differs from the float64 reference"),
    ],
)
def test_wrong_kernels_fail(monkeypatch, how, words):
    monkeypatch.setattr(doctor, "ours", spoiled(how))
    state, detail = states(doctor.check_kernels("float32"))
    assert state == FAILED
    assert words in detail


@pytest.mark.parametrize("name", ["forward", "input_grad"])
def test_wrong_strided_convolutions_fail(monkeypatch, name):
    sound = getattr(doctor.conv, name)

    def wrong(*args, **more):
        strided = any(isinstance(arg, tuple) and arg == (2, 2) for arg in args)
        return np.nextafter(sound(*args, **more), 9) if strided else sound(*args, **more)

    monkeypatch.setattr(doctor.conv, name, wrong)
    state, detail = states(doctor.check_kernels("float32"))
    assert state == FAILED
    assert "stride 2" in detail


LAYERS = list(formulas.comparisons("float32"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sound_layers_pass(dtype):
    state, detail = states(doctor.check_layers(dtype))
    assert state == OK
    assert all(layer.name in detail for layer in LAYERS)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_a_wrong_layer_fails(monkeypatch, layer, factor):
    for name, array in layer.got.items():
        wrong = layer._replace(got={**layer.got, name: array * factor})
        monkeypatch.setattr(doctor, "comparisons", lambda dtype, wrong=wrong: [wrong])
        state, detail = states(doctor.check_layers("float32"))
        assert state == FAILED
        assert detail.startswith(f"{layer.name}: ")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sound_program_passes(dtype):
    state, detail = states(doctor.check_program(dtype))
    assert state == OK
    assert not re.search(r" (0|100)% of channels off", detail)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("loss", lambda self, w, out: np.nextafter(right(self, w, out), 9)),
        ("gradient", lambda self, w, out: (right(self, w, out), np.nextafter(out, 9, out=out))[0]),
    ],
)
def test_a_wrong_program_fails(monkeypatch, name, wrong):
    monkeypatch.setattr(CompiledObjective, "__call__", wrong)
    assert states(doctor.check_program("float32")) == (
        FAILED,
        f"the {name} of a gated network is not that of the layers",
    )


@pytest.mark.parametrize("name", ["halved_by_numpy", "halved_by_kernels"])
def test_denormals_that_become_zero_fail(monkeypatch, name):
    assert states(doctor.check_denormals()) == (OK, "kept")
    monkeypatch.setattr(doctor, name, lambda number: 0.0)
    state, detail = states(doctor.check_denormals())
    assert state == FAILED
    assert "below 1.2e-38 become zero" in detail


def test_slow_kernels_are_a_warning(monkeypatch):
    monkeypatch.setenv("REFIMPL_KERNELS", "plain")
    assert doctor.check_choice().state == WARNING
    assert "because REFIMPL_KERNELS is set" in doctor.check_choice().detail
    monkeypatch.delenv("REFIMPL_KERNELS")
    monkeypatch.setattr(doctor.settings, "DISABLE_JIT", 1)
    assert "because NUMBA_DISABLE_JIT is set" in doctor.check_choice().detail


# --- the cache


def test_a_cache_in_order_is_described(monkeypatch, tmp_path):
    write = doctor.seconds_to_write
    monkeypatch.setattr(doctor, "seconds_to_write", lambda folder: 0.0 * write(folder))  # on any disk
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor.settings, "CACHE_DIR", str(tmp_path.parent))
    assert states(doctor.check_cache()) == (OK, f"{tmp_path}: nothing compiled yet: refimpl warmup")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kernel.nbc").write_bytes(bytes(2**20))
    assert states(doctor.check_cache()) == (OK, f"{tmp_path}: 1 file, 1.0 MiB")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_cache_elsewhere_than_asked_for_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor.settings, "CACHE_DIR", "/read/only")
    state, detail = states(doctor.check_cache())
    assert state == WARNING
    assert "NUMBA_CACHE_DIR=/read/only cannot be written" in detail


def test_a_read_only_cache_is_a_warning(monkeypatch, tmp_path):
    def refused(folder):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor.settings, "CACHE_DIR", "")
    monkeypatch.setattr(doctor, "seconds_to_write", refused)
    state, detail = states(doctor.check_cache())
    assert state == WARNING
    assert "cannot be written (read-only file system)" in detail


def test_a_slow_cache_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor.settings, "CACHE_DIR", "")
    monkeypatch.setattr(doctor, "seconds_to_write", lambda folder: 3.0)
    state, detail = states(doctor.check_cache())
    assert state == WARNING
    assert detail.startswith("slow (3.00 s for a small file)")


# --- threads


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(doctor, "cores", lambda: 4)
    for name in doctor.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_threads_that_fit_are_fine(four_cores):
    assert states(doctor.check_threads(4)) == (OK, "4 on 4 cores")
    four_cores.setenv("OMP_NUM_THREADS", "1")
    assert doctor.check_threads(4).state == OK
    four_cores.setenv("OMP_NUM_THREADS", "2")
    assert doctor.check_threads(2).state == OK


@pytest.mark.parametrize("name", doctor.THREAD_VARIABLES)
def test_more_threads_than_cores_are_a_warning(four_cores, name):
    assert states(doctor.check_threads(8)) == (WARNING, "8 threads on 4 cores; use --threads 4")
    four_cores.setenv(name, "3")
    state, detail = states(doctor.check_threads(2))
    assert state == WARNING
    assert detail == f"2 threads with {name}=3 each are more than 4 cores; set {name}=1"


@pytest.mark.parametrize(
    ("files", "cores", "state"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5, WARNING),
        ({"cpu.max": "max 100000\n"}, None, OK),
        ({"cpu.max": "800000 100000\n"}, 8.0, OK),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0, WARNING),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, OK),
        ({"cpu.max": "what\n"}, None, OK),
        ({}, None, OK),
    ],
)
def test_a_containers_quota_below_its_cores_is_a_warning(four_cores, tmp_path, files, cores, state):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    four_cores.setattr(doctor, "CGROUP", tmp_path)
    assert doctor.quota() == cores
    assert doctor.check_quota().state == state


def test_a_busy_machine_is_a_warning(four_cores):
    four_cores.setattr(os, "getloadavg", lambda: (7.5, 0.0, 0.0))
    assert states(doctor.check_load()) == (WARNING, "7.5 on 4 cores: do not trust seconds measured now")
    four_cores.setattr(os, "getloadavg", lambda: (0.5, 9.0, 9.0))
    assert doctor.check_load().state == OK


def test_the_library_of_linear_algebra_has_a_name():
    assert doctor.blas().strip()


# --- the command


def test_info_checks_on_request(refimpl, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda threads: [doctor.Finding("kernels", WARNING, f"{threads}")])
    code, out, err = refimpl("info", "--check", "--threads", 3)
    assert (code, err) == (0, "checked kernels\n")
    assert refimpl("info", "--check", "-q")[2] == ""
    assert out.splitlines()[-1] == "warning  kernels: 3"
    checks = json.loads(refimpl("info", "--check", "--json")[1])["checks"]
    assert checks == [{"check": "kernels", "state": "warning", "detail": "None"}]
    assert "checks" not in json.loads(refimpl("info", "--json")[1])


def test_info_shows_the_threads_that_runs_will_use(refimpl):
    assert re.search(r"^threads +7 ", refimpl("info", "--threads", 7)[1], re.MULTILINE)
    assert json.loads(refimpl("info", "--threads", 7, "--json")[1])["threads"] == 7
    assert json.loads(refimpl("info", "--json")[1])["threads"] == doctor.cores()


def test_a_failed_check_is_exit_code_one(refimpl, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda threads: [doctor.Finding("kernels", FAILED, "wrong")])
    assert refimpl("info", "--check")[0] == 1
    assert refimpl("info", "--check", "--json")[0] == 1


def test_every_check_has_its_turn():
    checks = [finding.check for finding in doctor.examine(1)]
    assert checks == [
        *("kernels float32", "layers float32", "program float32"),
        *("kernels float64", "layers float64", "program float64"),
        *("compiled models", "denormals", "kernel choice", "cache", "threads", "cpu quota", "load", "blas"),
    ]
    assert len(checks) == doctor.CHECKS
