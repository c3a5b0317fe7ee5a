"""Training gives the same bytes whatever instruction set the kernels are compiled for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

AVX2_ONLY = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2"}


@pytest.mark.slow  # compiles the kernels for another processor
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is an x86 instruction set")
def test_checkpoints_are_the_same_bytes_with_narrower_vectors(tmp_path):
    command = [
        sys.executable,
        "-m",
        "refimpl.cli",
        "train",
        "--rounds",
        "3",
        "--nodes",
        "4",
        "--targets",
        "2",
    ]
    files = []
    for name, extra in (("host", {}), ("avx2", AVX2_ONLY)):
        folder = tmp_path / name
        environment = os.environ | extra
        subprocess.run(
            [*command, "--out", str(folder), "-q"], check=True, env=environment, capture_output=True
        )
        files.append([(folder / file).read_bytes() for file in ("checkpoint.npz", "meta_model.npz")])
    assert files[0] == files[1]
