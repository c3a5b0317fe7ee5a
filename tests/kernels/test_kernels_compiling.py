"""What compiling costs, and that another process may take a part of it, come what may."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refimpl.kernels import compiling, jit
from refimpl.kernels.compiling import beside, is_kept, may_share, tell_names, watch

ROOM = Path(jit.__file__).parent
FAST = [path for path in sorted(ROOM.glob("*.py")) if path.name != "plain.py"]

PART = """
import sys
import numpy as np
from refimpl.kernels.compiling import tell_names
from refimpl.kernels.jit import kernel

@kernel
def doubled(x):
    return 2 * x[0]

def work():
    print("not a name")
    doubled(np.ones(1, sys.argv[1]))
    if "fails" in sys.argv:
        raise RuntimeError

if __name__ == "__main__":
    tell_names(work)
"""


def compiled_functions(path: Path) -> list[ast.FunctionDef]:
    decorators = {"kernel", "large_kernel", "inlined"}
    return [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id in decorators for d in node.decorator_list)
    ]


def assigns_a_slice(node: ast.AST) -> bool:
    targets = [node.target] if isinstance(node, ast.AugAssign) else getattr(node, "targets", [])
    places = [target.slice for target in targets if isinstance(target, ast.Subscript)]
    return any(isinstance(part, ast.Slice) for place in places for part in ast.walk(place))


@pytest.mark.parametrize("path", FAST, ids=lambda path: path.stem)
def test_no_kernel_assigns_to_a_slice(path):
    """Numba would compile its own code for shapes that differ, with their messages: seconds for each."""
    found = [f.name for f in compiled_functions(path) if any(map(assigns_a_slice, ast.walk(f)))]
    assert found == []


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A module with one kernel that another process can run, whose code is kept in an empty folder."""
    monkeypatch.setattr(jit.settings, "CACHE_DIR", str(tmp_path / "cache"))
    folder = jit.cache_folder.__wrapped__()
    monkeypatch.setattr(jit, "cache_folder", lambda: folder)
    (tmp_path / "refimpl_test_part.py").write_text(PART)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    import refimpl_test_part

    yield refimpl_test_part
    del sys.modules["refimpl_test_part"]


@pytest.mark.parametrize("more", [(), ("fails",)])
def test_what_another_process_compiled_is_loaded_and_told(part, more):
    """Also what it had compiled before it failed."""
    names = []
    with watch(names.append), beside(part.__name__, "float32", *more):
        pass
    assert names == ["doubled"]
    assert is_kept(part.doubled, x="float32")
    assert not is_kept(part.doubled, x="float64")
    with watch(names.append):
        assert part.doubled(np.ones(1, np.float32)) == 2
    assert names == ["doubled"]


def test_another_process_keeps_what_this_one_would(part):
    with beside(part.__name__, "float32"):
        pass
    theirs = jit.kept_types(part.doubled)
    part.doubled._cache.flush()
    part.doubled(np.ones(1, np.float32))
    assert jit.kept_types(part.doubled) == theirs != []


def test_another_process_runs_this_package_and_not_one_in_the_current_folder(part, tmp_path, monkeypatch):
    (tmp_path / "here" / "refimpl").mkdir(parents=True)
    (tmp_path / "here" / "refimpl" / "__init__.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path / "here")
    with beside(part.__name__, "float32"):
        pass
    assert is_kept(part.doubled, x="float32")


def test_a_process_that_fails_or_cannot_begin_is_harmless(part, monkeypatch):
    with beside("refimpl_no_such_module"):
        pass
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with beside(part.__name__, "float32"):
        pass
    assert not is_kept(part.doubled, x="float32")
    assert part.doubled(np.ones(1, np.float32)) == 2


def test_an_interruption_ends_the_other_process(part, monkeypatch):
    begun = []
    popen = compiling.subprocess.Popen

    def noted(*args, **named):
        begun.append(popen(*args, **named))
        return begun[0]

    monkeypatch.setattr(compiling.subprocess, "Popen", noted)
    with pytest.raises(KeyboardInterrupt), beside(part.__name__, "float32"):
        raise KeyboardInterrupt
    assert begun[0].returncode is not None


def test_a_damaged_index_counts_as_nothing_kept(part):
    part.doubled(np.ones(1, np.float32))
    (index,) = jit.cache_folder().rglob("*.nbi")
    index.write_bytes(b"damaged")
    assert jit.kept_types(part.doubled) == []


def test_one_core_or_thread_a_worker_or_no_folder_means_one_process(monkeypatch):
    monkeypatch.setattr(compiling, "USE_TILE", True)
    monkeypatch.setattr(compiling, "cores", lambda: 2)
    assert may_share(None)
    assert may_share(2)
    assert not may_share(1)
    for name, value in (
        ("cores", lambda: 1),
        ("parent_process", lambda: "a parent"),
        ("USE_TILE", False),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(compiling, name, value)
            assert not may_share(None)
    monkeypatch.setattr(jit, "_writable", lambda folder: False)
    assert not may_share(None)


def test_names_alone_reach_the_output(capsys):
    tell_names(lambda: print("something else"))
    assert capsys.readouterr().out == ""


LARGE = """
import sys
from refimpl.kernels import linking
from refimpl.kernels.jit import kernel, large_kernel

@large_kernel
def inner(x) -> float:
    return 2 * x

@large_kernel
def other(x) -> float:
    return 3 * x

@large_kernel
def broken(x):
    return x + 1

@kernel
def outer(x, which):
    if which == 2:
        broken(x)
    return (inner(x) if which == 0 else other(x)) + 1

def interrupted(compile):
    def compiled(types):
        inner.compile = compile
        raise KeyboardInterrupt
    return compiled

if __name__ == "__main__":
    import large
    inner = large.inner
    if "interrupt" in sys.argv:
        inner.compile = interrupted(inner.compile)
        try:
            large.outer(3.0, 0)
        except KeyboardInterrupt:
            print("interrupted")
    if "broken" in sys.argv:
        try:
            large.outer(3.0, 2)
        except RuntimeError as error:
            print(error)
    print(large.outer(3.0, 0), *(len(k.stats.cache_misses) for k in (large.outer, inner, large.other)))
"""


@pytest.fixture
def run_large(tmp_path):
    """Run LARGE with more arguments; returns what it prints."""
    (tmp_path / "large.py").write_text(LARGE)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run(*arguments):
        command = [sys.executable, str(tmp_path / "large.py"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    return run


def test_a_large_kernel_is_compiled_once_where_it_is_called_and_found_on_the_disk(run_large, tmp_path):
    """Each line: the result, and how often the caller, what it calls and another were compiled."""
    assert run_large() == "7.0 1 1 0\n"
    assert run_large() == "7.0 0 0 0\n"
    for path in tmp_path.glob("cache/**/large.inner*"):
        path.unlink()
    assert run_large() == "7.0 0 1 0\n"


def test_an_interrupted_or_impossible_compilation_inside_a_kernel_is_told_and_tried_again(run_large):
    assert run_large("interrupt", "broken") == "interrupted\nbroken was not compiled\n7.0 1 1 0\n"
