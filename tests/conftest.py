"""Settings and fixtures for all tests."""

import gc
import sys
from pathlib import Path

import pytest
import warm
from hypothesis import settings

from refimpl.cli import app

# The benchmarks in bench/ are not installed. Last, so that an installed refimpl stays the one tested.
sys.path.append(str(Path(__file__).parents[1]))
settings.register_profile("untimed", deadline=None)  # a deadline judges how busy the machine is
settings.load_profile("untimed")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before processes of tests are started, compile the kernels that all of them use."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput") and warm.needed():
        config.pluginmanager.getplugin("terminalreporter").write_line("compiling kernels for the tests, once")
        warm.both()


def pytest_collection_finish() -> None:
    """Leave what stays to the end out of Python's collections of garbage, which then take no time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def refimpl(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFIMPL_DATA", raising=False)

    def run(*args: object) -> tuple[int, str, str]:
        code = app.run([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    return run
