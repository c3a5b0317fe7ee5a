"""Templates run without this package, and what they compute is what the files expect."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refimpl import zoo
from refimpl.crosscheck.compare import compare, read_theirs
from refimpl.crosscheck.golden.file import golden_bytes, read_golden
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.golden.subject import Subject
from refimpl.crosscheck.hints import examine
from refimpl.crosscheck.template import PARTS, text
from refimpl.errors import InputError
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten, MaxPool2d


def computed(tmp_path, level, using, change=lambda source: source, own=None):
    """The comparison of a level with what its template computes, in a process that cannot see refimpl."""
    golden, theirs, script = (tmp_path / name for name in ("golden.npz", "theirs.npz", "mine.py"))
    golden.write_bytes(golden_bytes([(case, run(case)) for case in build_cases(level, own=own)], "refimpl"))
    script.write_text(change(text(level, using)))
    blind = "import sys, runpy; sys.modules['refimpl'] = None; file = sys.argv.pop(1); "
    runs = [
        sys.executable,
        "-c",
        f"{blind}runpy.run_path(file, run_name='__main__')",
        script,
        golden,
        theirs,
    ]
    done = subprocess.run([*map(str, runs)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    expected = read_golden(golden)
    return compare(expected, read_theirs(theirs, expected))


@pytest.mark.parametrize("level", PARTS)
def test_the_template_in_numpy_computes_its_level(tmp_path, level):
    comparison = computed(tmp_path, level, "numpy")
    assert not comparison.departures
    missing = {row.case.split("/")[1] for row in comparison.missing}
    assert missing == ({"maml", "maml-soft"} if level == "baselines" else set())


@pytest.mark.torch
@pytest.mark.parametrize("level", PARTS)
def test_the_template_in_pytorch_computes_its_level(tmp_path, level):
    pytest.importorskip("torch")
    comparison = computed(tmp_path, level, "torch")
    assert not comparison.departures
    assert not comparison.missing


def test_a_mistake_in_a_replaced_piece_departs_there(tmp_path):
    def wrong(source):
        assert "lam * (w - centre)" in source
        return source.replace("lam * (w - centre)", "2 * lam * (w - centre)")

    comparison = computed(tmp_path, "local", "numpy", wrong)
    assert {row.output for row in comparison.first_by_case} == {"step2.w"}


def test_a_mask_before_the_pool_of_its_block_is_named(tmp_path):
    """In the template, blocks end before their pools, which follow them."""

    def wrong(source):
        right = 'run.chain(settings["layers"], x)\n    loss'
        parts = '[{**e, "body": e["body"][:-1]}, e["body"][-1]] if e["type"] == "gated" else [e]'
        assert right in source
        return source.replace(
            right, f"run.chain([p for e in settings['layers'] for p in ({parts})], x)\n    loss"
        )

    blocks = ((Conv2d("conv", 1, 4, 3, padding=1), ReLU(), MaxPool2d(2)), (Flatten(), Linear("fc", 64, 3)))
    own = Subject(Network("pooled", zoo.with_gates(blocks, gates=("conv",)), (1, 8, 8)), batch=3)
    comparison = computed(tmp_path, "local", "numpy", wrong, own)
    golden = read_golden(tmp_path / "golden.npz")
    hints = examine(golden, read_theirs(tmp_path / "theirs.npz", golden), comparison).hints
    assert "step1.gradient" in {row.output for row in comparison.first_by_case}
    assert {"mask before/after the pool"} == {hint.rule for hint in hints if hint.rule != "pattern"}


def test_a_template_is_whole_and_short(refimpl):
    """It has no name of this package, defines what it uses, and is printed by the command."""
    for level in PARTS:
        for using in ("numpy", "torch"):
            source = text(level, using)
            compile(source, "mine.py", "exec")
            assert "import refimpl" not in source
            assert "from refimpl" not in source
            assert len(source.splitlines()) < 650
    code, out, _ = refimpl("golden", "template", "--level", "prox")
    assert (code, out) == (0, text("prox"))
    with pytest.raises(InputError, match="unknown library 'jax'"):
        text("ops", "jax")
    with pytest.raises(InputError, match=r"unknown level 'cooperative'; .*ops, networks, .*baselines"):
        text("cooperative")


def test_the_template_computes_a_network_of_ones_own(tmp_path):
    comparison = computed(tmp_path, "algorithm", "numpy", own=Subject(zoo.residual(), batch=2))
    assert not comparison.departures
    assert not comparison.missing


README = (Path(__file__).parents[2] / "refimpl" / "crosscheck" / "README.md").read_text(encoding="utf-8")


def test_the_readme_example_of_ones_own_network_runs(refimpl, monkeypatch):
    """Its file is the block that begins with the name; the commands are those printed below it."""
    section = README.split("## Your own network")[1].split("\n## ")[0]
    (source,) = re.findall(r"```py\n(# mine\.py\n.*?)```", section, flags=re.S)
    Path("mine.py").write_text(source)
    make, template, compute, check = re.findall(r"^\$ (.*)$", section, flags=re.M)
    assert refimpl(*make.split()[1:], "-q")[0] == 0
    command, file = template.split(" > ")
    Path(file).write_text(refimpl(*command.split()[1:])[1])
    subprocess.run([sys.executable, *compute.split()[1:]], check=True)
    code, out, _ = refimpl(*check.split()[1:], "-q")
    assert (code, "51 of 51 arrays agree" in out) == (0, True)
    source, (wrong, right) = Path(file).read_text(), re.findall(r"`(prox\(md.*?\))`", section)
    assert right in source
    Path(file).write_text(source.replace(right, wrong))
    subprocess.run([sys.executable, *compute.split()[1:]], check=True)
    with np.load("mine.npz") as golden, np.load("theirs.npz") as theirs:  # one case, because causes take time
        rest = {name: golden[name] for name in theirs if "/mine-hard/" not in name}
        np.savez("theirs.npz", **rest, **{name: theirs[name] for name in theirs if name not in rest})
    code, out, _ = refimpl(*check.split()[1:], "-q")
    first, hint = re.search(r"```text\n(first .*)\nhint for .*?: (prox .*?);", section).groups()
    assert (code, first in out, f"hint for algorithm/mine-hard: {hint};" in out) == (1, True, True)
