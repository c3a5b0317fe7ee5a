"""After a warm-up nothing is left to compile; and a first run says that it compiles."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from refimpl.cli import progress as cli_progress
from refimpl.cli.progress import Progress, notice
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import adapt_targets, prepare, train
from refimpl.federated import warmup
from refimpl.federated.warmup import warm_up
from refimpl.kernels import compiling as kernels_compiling
from refimpl.kernels import jit
from refimpl.kernels.compiling import watch
from refimpl.kernels.jit import kernel


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_after_a_warm_up_nothing_is_compiled(dtype):
    warm_up(dtype)
    compiled = []
    with watch(compiled.append):
        experiment = prepare(resolve(dataset="digits", rounds=1, dtype=dtype))
        adapt_targets(experiment, train(experiment).w)
    assert compiled == []


LOADED = """
import sys
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import adapt_targets, prepare, train
from refimpl.federated.warmup import warm_up, warm_up_options
from refimpl.registry import PENALTIES

def loaded():
    rooms = [vars(sys.modules[name]) for name in list(sys.modules) if name.startswith("refimpl.kernels")]
    kernels = [k for names in rooms for k in names.values() if hasattr(k, "py_func")]
    return {(k.py_func.__name__, str(types)) for k in kernels for types in k.signatures}

warm_up()
if "options" in sys.argv:
    warm_up_options()
before = loaded()
for penalty in PENALTIES:
    experiment = prepare(resolve(dataset="digits", rounds=1, nodes=2, targets=1, penalty=penalty))
    adapt_targets(experiment, train(experiment).w)
print(*{name for name, _ in loaded() - before})
"""


RARE = {"soft_threshold", "absolute_sum", "positive_threshold", "shrink_groups", "safe_norm"}


@pytest.mark.parametrize(("asked", "later"), [("options", set()), ("", RARE)])
def test_the_command_compiles_for_every_penalty(asked, later):
    """Told by what is loaded, so that code which is on the disk already hides nothing."""
    command = [sys.executable, "-P", "-c", LOADED, asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == later


TWICE = """
from refimpl.federated import warmup
from refimpl.kernels import loss, program, tiled_conv, tiled_linear, tiled_weight_grad

kernels = [
    loss.add_losses, program.predict, tiled_conv.convolve, tiled_linear.forward,
    tiled_linear.input_grad, tiled_linear.weight_grad, tiled_weight_grad.weight_grad,
]
for part in (warmup.single_layers, warmup.fully_connected):
    part("float32")
parts = [len(kernel.signatures) for kernel in kernels]
warmup.everything("float32")
print(parts, [len(kernel.signatures) for kernel in kernels])
"""


def test_the_parts_of_a_shared_warm_up_compile_the_large_kernels_once_for_the_types_in_use():
    done = subprocess.run([sys.executable, "-P", "-c", TWICE], capture_output=True, text=True, check=True)
    assert done.stdout == f"{[1] * 7} {[1] * 7}\n"


@pytest.fixture
def stages(monkeypatch):
    """What a warm-up asks of another process, and does itself, in order; nothing is compiled."""
    done = []

    @contextmanager
    def beside(module, *arguments):
        assert module == "refimpl.federated.warmup"
        done.append(("begin", *arguments))
        yield
        done.append(("end", *arguments))

    def part(name):
        return lambda dtype: done.append((name, dtype))

    monkeypatch.setattr(kernels_compiling, "beside", beside)
    monkeypatch.setattr(kernels_compiling, "may_share", lambda threads: threads != 1)
    monkeypatch.setattr(kernels_compiling, "is_kept", lambda kernel, w: w == "float64")
    for name in ("fully_connected", "everything"):
        monkeypatch.setattr(warmup, name, part(name))
    return done


def test_a_cold_warm_up_is_shared_by_two_processes(stages):
    warm_up("float32", 2)
    assert stages == [
        ("begin", "float32"),
        ("fully_connected", "float32"),
        ("end", "float32"),
        ("everything", "float32"),
    ]


@pytest.mark.parametrize(("dtype", "threads"), [("float64", 2), ("float32", 1)])
def test_where_code_is_kept_or_one_thread_is_wanted_there_is_one_process(stages, dtype, threads):
    warm_up(dtype, threads)
    assert stages == [("everything", dtype)]


def test_a_compilation_is_announced_once(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)  # an earlier run of this test kept the code

    @kernel
    def fresh(x):
        return x + 1

    stream = io.StringIO()
    with Progress(1, stream=stream) as progress, notice(progress) as names:
        assert fresh(1) == 2
        assert fresh(1) == 2
    assert names == ["fresh"]
    assert stream.getvalue().count("compiling kernels") == 1


@pytest.mark.parametrize(
    ("kept", "line"),
    [
        ((), r"compiling kernels: 20 of about 180 functions  [\d.e+]+/s  [\d:]+ left"),
        (("a/x.1.nbc",), "compiling kernels: 20 functions so far"),
    ],
)
def test_how_much_is_left_is_said_where_nothing_was_kept(tmp_path, monkeypatch, kept, line):
    for name in kept:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    @contextmanager
    def watch(told):
        for number in range(20):
            told(f"function {number}")
        yield

    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(kernels_compiling, "watch", watch)
    stream = io.StringIO()
    with Progress(1, stream=stream) as progress, notice(progress, total=180):
        pass
    assert re.fullmatch(line, stream.getvalue().splitlines()[1])


def test_the_number_of_functions_of_a_warm_up_is_about_right():
    """Measured from an empty cache; most kernels are compiled, some of them in two processes, a few not."""
    sources = [path.read_text() for path in Path(jit.__file__).parent.glob("*.py")]
    decorated = sum(
        len(re.findall(r"^@(?:kernel|large_kernel|inlined|shared)\n", text, re.MULTILINE)) for text in sources
    )
    assert 0.8 * decorated <= cli_progress.WARM_UP <= 1.2 * decorated


def test_a_cache_that_cannot_be_written_is_kept_elsewhere(tmp_path, monkeypatch):
    """Read-only homes and installs: compiled code then goes to the temporary folder."""
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    monkeypatch.setattr(jit.settings, "CACHE_DIR", str(blocked / "numba"))
    monkeypatch.setattr(jit, "_user_cache", lambda: blocked)
    monkeypatch.setattr(jit.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    folder = jit.cache_folder.__wrapped__()
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path / "tmp")
    package = Path(jit.__file__).parents[1]
    assert not jit.cache_folder().is_relative_to(package)


def test_importing_the_package_is_quick_and_compiles_nothing():
    code = (
        "import sys, time; t = time.perf_counter(); import refimpl; "
        "assert 'numba' not in sys.modules and 'numpy' not in sys.modules; "
        "print(time.perf_counter() - t)"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.3
