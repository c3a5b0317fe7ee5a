"""After a warm-up nothing is left to compile; and a first run says that it compiles."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl.cli.compiling import notice
from refimpl.cli.progress import Progress
from refimpl.config import resolve
from refimpl.experiment import adapt_targets, prepare, train
from refimpl.kernels import jit
from refimpl.kernels.compiling import watch
from refimpl.kernels.jit import kernel
from refimpl.warmup import warm_up


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_after_a_warm_up_nothing_is_compiled(dtype):
    warm_up(dtype)
    compiled = []
    with watch(compiled.append):
        experiment = prepare(resolve(dataset="digits", rounds=1, dtype=dtype))
        adapt_targets(experiment, train(experiment).w)
    assert compiled == []


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
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.3
