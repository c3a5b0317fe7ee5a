"""Compile what the tests use, one floating-point type in each of two processes.

Otherwise each process of the tests would compile most of it, at the same time as the others.
`python warm.py float32` is one of the two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

from refimpl.kernels import conv, jit, linear

DTYPES = ("float32", "float64")


def done(dtype: str) -> Path:
    """The empty file that says that all has been compiled for a type."""
    return jit.cache_folder() / f"tests-{dtype}"


def needed() -> bool:
    """Whether there is something to be compiled, and it can be kept."""
    return jit.USE_TILE and jit.keeps_code() and not all(done(dtype).exists() for dtype in DTYPES)


def both() -> None:
    """Run the two processes. What they leave undone, the tests compile; these also say what is wrong."""
    path = os.pathsep.join(map(os.path.abspath, sys.path))  # where pytest found this file and refimpl
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen([*command, dtype], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)
        for dtype in DTYPES
    ]
    for process in processes:
        process.wait()


def compile_for(dtype: str) -> None:
    """Do a little of everything in one floating-point type.

    To import the cases of the walk is to compile in single precision; so both processes do it when one of
    them has done most of that, which the other then finds on the disk.
    """
    from refimpl.federated.warmup import warm_up, warm_up_options

    warnings.simplefilter("ignore")
    warm_up(dtype, threads=1)
    warm_up_options(dtype)
    from walk import call_all
    from walk_cases import CASES

    call_all(CASES, dtype)
    for module in (conv, linear):
        module.USE_TILE = False
    call_all({name: case for name, case in CASES.items() if "layers" in name}, dtype)  # by readable kernels
    done(dtype).touch()


if __name__ == "__main__":
    compile_for(sys.argv[1])
