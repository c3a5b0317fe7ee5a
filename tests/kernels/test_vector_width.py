"""Kernels and training give the same bytes whatever instruction set they are compiled for."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_kernels_plain import DTYPES, make_conv, make_linear
from test_kernels_tile import tile_conv, tile_linear

from refimpl.kernels import jit, norm, target
from refimpl.kernels.shaping import Shaping, shape_gates

pytestmark = [
    pytest.mark.slow,  # compiles the kernels for other processors
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 processors"),
]

PROGRAM = """
import sys
import test_vector_width
print(test_vector_width.digest())
from refimpl.cli import main
main(sys.argv[1:])
"""
FEW_ROUNDS = ("--rounds", "8", "--nodes", "4", "--targets", "2", "--rho", "0.05")


def digest_cases(dtypes):
    """Layers that pass through every kernel of this room and most of its branches."""
    for dtype in dtypes:
        for stride in ((1, 1), (2, 2)):
            for kinds in (("none", "none"), ("mixed", "mixed")):
                case = make_conv(1, dtype, 2, 12, 19, (9, 10), (3, 3), stride, (1, 1), *kinds)
                yield case, tile_conv
        yield make_conv(2, dtype, 2, 3, 32, (16, 16), (3, 3), (1, 1), (1, 1)), tile_conv
        for groups, dilation, kind in ((12, (1, 1), "none"), (4, (2, 3), "mixed"), (1, (1, 2), "none")):
            shape = 2, 12, 12, (9, 10), (3, 3), (1, 1), (2, 2)
            yield make_conv(5, dtype, *shape, kind, kind, dilation, groups), tile_conv
        yield make_linear(3, dtype, 20, 60, 33, 5, "none", "none"), tile_linear
        yield make_linear(4, dtype, 5, 60, 33, 5, "mixed", "mixed"), tile_linear


def normalised(dtype):
    """Batch normalisation behind which there is an activation: its results and its gradients."""
    rng = np.random.default_rng(6)
    x, dy, sums = *rng.standard_normal((2, 3, 5, 37)).astype(dtype), np.empty((2, 5), dtype)
    (gamma, beta), (mean, inverse_std) = rng.standard_normal((2, 5)).astype(dtype), np.empty((2, 5))
    y, dx = np.empty_like(x), np.empty_like(x)
    norm.batch_norm_forward(x, gamma, beta, 1e-5, 0.1, mean, inverse_std, y)
    norm.batch_norm_backward(dy, x, mean, inverse_std, gamma, beta, 0.1, *sums, dx)
    return y, sums, dx


def shaped(dtype):
    """Batch-shaping of seven samples and five channels: N times the term, and its gradient."""
    decisions = 2 * np.random.default_rng(7).standard_normal((7, 5)).astype(dtype)
    slope = np.empty_like(decisions)
    return np.array(shape_gates(decisions, 0.7, Shaping(1.0), slope)), slope


def digest(dtypes=DTYPES):
    """The vector width in bytes and a hash of the results of all cases of this file."""
    others = [array for dtype in dtypes for array in (*normalised(dtype), *shaped(dtype))]
    sha = hashlib.sha256(b"".join(array.tobytes() for array in others))
    for case, run in digest_cases(dtypes):
        for array in run(case):
            sha.update(array.tobytes())
    return f"{target.VECTOR_BYTES} {sha.hexdigest()}"


def run_for(cpu: str, *words: str) -> str:
    """What Python prints, with kernels compiled for a processor, or for this one if `cpu` is empty."""
    here = Path(__file__).parent  # where Python finds this file, but no other refimpl than the one tested
    path = os.pathsep.join(filter(None, (str(here.parent), os.environ.get("PYTHONPATH"))))
    other = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""} if cpu else {}
    environment = {**os.environ, **other, "PYTHONPATH": path}
    command = [sys.executable, *words]
    done = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.skipif(not jit.USE_TILE, reason="REFIMPL_KERNELS=plain or NUMBA_DISABLE_JIT")
def test_the_narrowest_vectors_give_the_same_bytes():
    if target.VECTOR_BYTES <= 16:
        pytest.skip("this machine's vectors are not wider")
    program = "import test_vector_width as t; print(t.digest(t.DTYPES[:1]))"
    width, value = run_for("x86-64-v2", "-c", program).split()
    assert int(width) == 16
    assert value == digest(DTYPES[:1]).split()[1]


def test_kernels_and_checkpoints_are_the_same_bytes_with_narrower_vectors(tmp_path):
    """In both floating-point types; one process for each processor, so that kernels are compiled once."""
    seen = []
    for cpu in ("", "haswell"):
        folder = tmp_path / f"run-{cpu}"
        out = run_for(cpu, "-c", PROGRAM, "train", *FEW_ROUNDS, "--out", str(folder), "-q")
        width, value = out.splitlines()[0].split()
        assert int(width) == 32 if cpu else int(width) >= 16
        files = [(folder / file).read_bytes() for file in ("checkpoint.npz", "meta_model.npz")]
        seen.append([value, *files])
        rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert 0 < rounds[-1]["closed_share"] < 1  # the gates took part
    assert seen[0] == seen[1]
