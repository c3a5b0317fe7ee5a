"""The order of rooms, and what may be imported where (refimpl/README.md), read from the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import refimpl

ROOT = Path(refimpl.__file__).parent

# The list of rooms in the package's README: a module may import its own room and those above.
TABLE = re.findall(r"^\| (\d+) \| ([^|]*) \|", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
RANK = {room: int(rank) for rank, rooms in TABLE for room in re.findall(r"`(\w+)`", rooms)} | {"_version": 0}

# Who may import what from outside. Everything not named here and not in the standard library is an error.
OUTSIDE = {
    "numpy": set(RANK),
    "scipy": set(RANK) - {"kernels", "nn"},  # training depends on nothing whose bits change with a version
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "click": {"cli"},
    "matplotlib": {"report"},
    "torch": {"crosscheck"},
    "onnx": {"crosscheck"},
    "onnxruntime": {"crosscheck"},
    "flwr": {"engine"},
}

ASKED_ONLY = {("refimpl.files.environment", "llvmlite")}  # for the processor's name, which a run writes down

# Methods, theory and solvers see objectives, never networks; adaptation switches sub-networks.
BLIND_TO_NETWORKS = ("optim", "theory", "federated")
SEES_NETWORKS = {  # networks are what these are about
    "refimpl.federated.adapt",
    "refimpl.federated.warmup",
    "refimpl.federated.methods.metasnip",
    "refimpl.federated.pruning.snip",
    "refimpl.theory.soft_network",
    "refimpl.theory.stationarity",
}

# These wire the compiler, emit vector instructions or move numbers; the formulae are their callers'.
NO_MATHEMATICS = {
    f"refimpl.kernels.{name}"
    for name in (
        "arrays",
        "checked",
        "compiling",
        "jit",
        "linking",
        "panels",
        "simd",
        "target",
        "tile",
        "views",
        "workspace",
    )
}
MATHEMATICS = ("kernels", "nn", "optim", "federated", "fewshot", "cooperative", "theory")


def name_of(path: Path) -> str:
    parts = ("refimpl", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
INSIDE = [name for name in FILES if name != "refimpl"]  # the front door opens every room


def room(module: str) -> str:
    return module.split(".")[1]


def imports(module: str, tree: ast.AST) -> set[str]:
    """Dotted names of everything imported anywhere in the tree; `from a import b` gives a.b if it exists."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return found


def test_every_module_belongs_to_a_known_room():
    assert {room(module) for module in INSIDE} <= set(RANK)


@pytest.mark.parametrize("module", INSIDE)
def test_imports_go_upwards_only(module):
    for target in imports(module, TREES[module]):
        if not target.startswith("refimpl"):
            continue
        assert target != "refimpl", f"{module} imports the front door"
        assert RANK[room(target)] <= RANK[room(module)], f"{module} must not import {target}"


@pytest.mark.parametrize("module", FILES)
def test_other_packages_stay_in_their_rooms(module):
    for target in imports(module, TREES[module]):
        package = target.split(".")[0]
        if package == "refimpl" or package in sys.stdlib_module_names:
            continue
        if (module, package) in ASKED_ONLY:
            continue
        assert package in OUTSIDE, f"{module} imports {package}, which is no dependency"
        assert module != "refimpl", "importing the package must cost nothing"
        assert room(module) in OUTSIDE[package], f"{module} must not import {package}"


@pytest.mark.parametrize("module", [m for m in INSIDE if room(m) in BLIND_TO_NETWORKS])
def test_methods_and_solvers_see_objectives_not_networks(module):
    seen = {target for target in imports(module, TREES[module]) if target.startswith("refimpl.nn")}
    assert not seen or module in SEES_NETWORKS, f"{module} must not import {seen}"


# The second implementation reads what a case and a network are; it borrows no arithmetic.
NO_ARITHMETIC = {
    f"refimpl.{name}"
    for name in (
        "errors",
        "crosscheck.golden.case",
        "crosscheck.golden.describe",
        "crosscheck.template",
        "nn.context",
        "nn.layout",
        "nn.network",
    )
}


@pytest.mark.parametrize("module", [m for m in INSIDE if m.startswith("refimpl.crosscheck.bridges.torch")])
def test_the_second_implementation_shares_no_arithmetic_with_the_first(module):
    for target in imports(module, TREES[module]):
        if target.startswith("refimpl.") and not target.startswith("refimpl.crosscheck.bridges.torch"):
            assert target in NO_ARITHMETIC, f"{module} must not import {target}"


def test_no_module_imports_itself_in_a_circle():
    graph = {}
    for module in INSIDE:
        body = [node for node in TREES[module].body if isinstance(node, (ast.Import, ast.ImportFrom))]
        targets = imports(module, ast.Module(body=body, type_ignores=[]))
        graph[module] = {target for target in targets if target.startswith("refimpl.")} - {module}
    list(TopologicalSorter(graph).static_order())


def test_importing_the_package_compiles_and_loads_nothing():
    code = "import sys, refimpl; print([m for m in ('numba', 'scipy', 'click', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_theory_starts_without_networks():
    """Its first line comes the earlier: layers and their kernels take a fifth of the time of importing it."""
    code = "import sys, refimpl.theory; print([m for m in sys.modules if m.startswith('refimpl.nn')])"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def docstrings(tree: ast.AST) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]


FORMULAE = [
    module
    for module in INSIDE
    if room(module) in MATHEMATICS and module not in NO_MATHEMATICS and FILES[module].name != "__init__.py"
]


@pytest.mark.parametrize("module", FORMULAE)
def test_mathematics_says_where_it_comes_from(module):
    sources = [text.split("Source:", 1)[1] for text in docstrings(TREES[module]) if "Source:" in text]
    assert sources, f"{module} names no source"
    for source in sources:
        assert re.search(r"mathematics\.md|\[\w+\]|\(?\d{4}\)?|after ", source), f"{module}: {source!r}"


@pytest.mark.parametrize("module", [m for m in FORMULAE if room(m) == "nn" or m == "refimpl.optim.accel"])
def test_mathematics_says_how_far_it_can_be_trusted(module):
    sources = [text.split("Source:", 1)[1].lower() for text in docstrings(TREES[module]) if "Source:" in text]
    assert any(re.search("verified|derived|reconstructed", source) for source in sources), module


def test_kernels_keep_ieee_arithmetic():
    for module in FILES:
        if module.startswith("refimpl.kernels"):
            for node in ast.walk(TREES[module]):
                assert not (isinstance(node, ast.keyword) and node.arg in ("fastmath", "parallel")), module
