"""Golden files of a network of one's own: implementations written apart compute every level alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plain_metagater
import pytest

from refimpl import Network, zoo
from refimpl.crosscheck.compare import as_theirs, compare
from refimpl.crosscheck.golden.case import LEVELS
from refimpl.crosscheck.golden.file import golden_bytes, golden_of, read_golden
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.models import tiny
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.golden.subject import Subject
from refimpl.errors import InputError
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import Flatten, MaxPool2d

BLOCKS = (
    (Conv2d("conv1", 1, 3, 3, padding=1), ReLU(), MaxPool2d(2)),
    (Conv2d("conv2", 3, 3, 3, padding=1), ReLU(), MaxPool2d(2)),
    (Flatten(),),
    (Linear("fc", 3 * 2 * 2, 4),),
)
CONVOLUTIONAL = Network("my net", zoo.with_gates(BLOCKS, gates=("conv1", "conv2")), (1, 8, 8))
PLAIN = Network("plain", zoo.with_gates(BLOCKS, gates=()), (1, 8, 8))
MINE = """
from refimpl.crosscheck.golden.models import model
def network():
    return model("digits")
three = 3
"""


def cases_of(own, level="all"):
    return {case.name: case for case in build_cases(level, own=own)}


def test_every_level_has_cases_of_a_gated_network():
    cases = cases_of(Subject(CONVOLUTIONAL, batch=2))
    assert {case.level for case in cases.values()} == set(LEVELS)
    assert all(name.split("/")[1].startswith("my-net-") for name in cases)
    rounds = cases["algorithm/my-net-hard"]
    assert rounds.inputs["batches"].shape[-1] == 2
    assert [entry["type"] for entry in rounds.settings["layers"]][:2] == ["gated", "gated"]
    modes = {c.settings["gating"]["mode"] for c in cases.values() if c.kind in ("network", "algorithm")}
    assert modes == {"hard", "gumbel", "soft", "ste"}


def test_an_ungated_network_has_no_groups_and_no_modes():
    names = set(cases_of(Subject(PLAIN)))
    assert {"networks/plain-ungated", "algorithm/plain-ungated", "local/plain", "adapt/plain"} <= names
    assert not [name for name in names if name.startswith("prox/")]


def test_layers_that_occur_twice_are_one_case():
    kinds = [case.kind for case in cases_of(Subject(CONVOLUTIONAL), "ops").values()]
    assert kinds.count("conv2d") == 2
    same = (Linear("a", 4, 4), ReLU(), Linear("b", 4, 4), ReLU(), Linear("c", 4, 3))
    kinds = [case.kind for case in cases_of(Subject(Network("same", same, (4,))), "ops").values()]
    assert kinds == ["linear", "relu", "linear"]


@pytest.mark.parametrize(
    ("level", "title"), [("local", "hard"), ("algorithm", "hard"), ("network", "hard-dense")]
)
def test_a_second_implementation_computes_the_same(level, title):
    """In plain NumPy: the network 6-5-3 as if it were a user's."""
    place = "networks" if level == "network" else level
    case = cases_of(Subject(tiny(), batch=5), place)[f"{place}/tiny-{title}"]
    golden = golden_of([(case, run(case))], "refimpl")
    theirs = as_theirs({case.name: getattr(plain_metagater, level)(case)})
    comparison = compare(golden, theirs)
    assert not comparison.departures
    assert len(comparison.rows) - len(comparison.missing) > 10


@pytest.mark.torch
@pytest.mark.parametrize("network", [CONVOLUTIONAL, PLAIN, zoo.residual()], ids=lambda one: one.name)
def test_pytorch_computes_the_same_at_every_level(network):
    pytest.importorskip("torch")
    from refimpl.crosscheck.bridges.torch.run import run as torch_run

    cases = list(cases_of(Subject(network)).values())
    golden = golden_of([(case, run(case)) for case in cases], "refimpl")
    comparison = compare(golden, as_theirs({case.name: torch_run(case) for case in cases}))
    assert not comparison.departures
    assert not comparison.missing


def test_samples_come_from_the_data_with_their_labels():
    x = np.arange(20.0)[:, None, None, None] + np.zeros((20, 1, 8, 8))
    labels = np.arange(20) % 4
    for case in cases_of(Subject(CONVOLUTIONAL, 3, (x, labels)), "local").values():
        numbers = case.inputs["x"][..., 0, 0, 0].astype(int)
        assert np.array_equal(numbers % 4, case.inputs["labels"])
        assert len(np.unique(numbers)) > 1


@dataclass(frozen=True)
class Twice(ReLU):
    """A layer that files cannot describe."""


def test_what_cannot_be_written_is_refused_in_one_line():
    odd = Network("odd", (Linear("fc1", 4, 4), Twice(), Linear("fc2", 4, 3)), (4,))
    with pytest.raises(InputError, match=r"no file can describe the layer Twice of odd; .* are conv2d"):
        Subject(odd)
    with pytest.raises(InputError, match=r"takes samples of shape \(1, 8, 8\) .* has \(1, 6, 6\) and 1"):
        Subject(PLAIN, samples=(np.zeros((5, 1, 6, 6)), np.zeros(5, dtype=int)))


def test_a_file_is_made_from_the_command_line(tmp_path, refimpl):
    (tmp_path / "mine.py").write_text(MINE)
    make = ("golden", "make", "--network", f"{tmp_path}/mine.py:network", "--level", "ops")
    out = tmp_path / "mine.npz"
    assert refimpl(*make, "--dataset", "digits", "--batch", "2", "--out", str(out), "-q")[0] == 2  # 4 classes
    assert refimpl(*make, "--batch", "2", "--out", str(out), "-q") == (0, "", "")
    assert all(len(case.inputs["x"]) == 2 for case in read_golden(out).cases)
    same = golden_bytes(
        [(case, run(case)) for case in read_golden(out).cases], read_golden(out).made_by, seed=0
    )
    assert out.read_bytes() == same
    code, printed, _ = refimpl("golden", "check", str(out), "-q")
    assert (code, "conforms" in printed) == (0, True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--network", "mine.py:three"), "expected mine.py:three to be a refimpl.Network, got int"),
        (("--network", "mine.py:netwrk"), "did you mean network?"),
        (("--level", "ops", "--batch", "3"), "go with --network"),
        ((), "--level is needed"),
        (("--network", "mine.py:network", "--model", "mlp"), "not mine.py:network"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, monkeypatch, refimpl, options, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    code, _, err = refimpl("golden", "make", *options, "--out", "x.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert word in err
