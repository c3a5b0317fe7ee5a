"""Training gives the same bytes whatever instruction set the kernels are compiled for."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

AVX2_ONLY = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2"}

PROGRAM = """
import sys
from refimpl.kernels.target import VECTOR_BYTES
print(VECTOR_BYTES)
from refimpl.cli import main
main(sys.argv[1:])
"""
FEW_ROUNDS = ("--rounds", "8", "--nodes", "4", "--targets", "2", "--rho", "0.05")


@pytest.mark.slow  # compiles the kernels for another processor
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is an x86 instruction set")
def test_checkpoints_are_the_same_bytes_with_narrower_vectors(tmp_path):
    seen = []
    for name, extra in (("host", {}), ("avx2", AVX2_ONLY)):
        folder = tmp_path / name
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, "train", *FEW_ROUNDS, "--out", str(folder), "-q"],
            check=True,
            env=os.environ | extra,
            capture_output=True,
            text=True,
        )
        width = int(result.stdout.splitlines()[0])
        assert width == 32 if extra else width >= 16
        seen.append([(folder / file).read_bytes() for file in ("checkpoint.npz", "meta_model.npz")])
        rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert 0 < rounds[-1]["closed_share"] < 1  # the gates took part
    assert seen[0] == seen[1]
