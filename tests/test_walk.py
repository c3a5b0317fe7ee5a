"""Public functions give the right result or one line, whatever array they get, and stay inside of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import walk
from numpy.lib.stride_tricks import as_strided
from walk_cases import CASES, INNER

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses mprotect and fork")
HERE = Path(walk.__file__).parent


@pytest.fixture(scope="module")
def faults():
    """Says what is wrong with a case, which it asks of a process without other threads, which can fork."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command, pipe = [sys.executable, str(HERE / "walk.py"), "-"], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as walker:

        def ask(name):
            print(name, file=walker.stdin, flush=True)
            answer = walker.stdout.readline()
            assert answer, "the process has ended; python tests/walk.py says why"
            return json.loads(answer)[1]

        yield ask


@pytest.mark.parametrize("name", CASES)
def test_arrays_of_any_kind_are_taken_rightly_or_refused_in_one_line(name, faults):
    assert not (found := faults(name)), "\n".join(found)


def test_every_public_function_that_takes_arrays_is_walked():
    walked = {name.split(",")[0] for name in CASES}
    missing = walk.discovered() - walked - INNER
    assert not missing, (
        f"no example arguments for {', '.join(sorted(missing))}: add a case to tests/walk_cases.py that "
        "calls it, or name it in INNER there if only its own room calls it"
    )


def test_nothing_is_left_out_that_is_not_there():
    assert not INNER - walk.discovered()


def wrong_by(call, **options):
    """What the walk says about a function that takes one vector x."""
    return "\n".join(walk.alone(walk.Case(call, x=np.ones(4), **options)))


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda x: float(x[0]), "x, one longer (end guarded): taken without a word"),
        (lambda x: 0.0 if np.isnan(x).any() else float(x.size), "x, NaN (end guarded): NaN vanished"),
        (lambda x: float(x.strides[0]), "x, strided (end guarded): another result"),
        (lambda x: x.reshape(4), "x, one shorter (end guarded): ValueError"),
        (lambda x: x.fill(2), "tidy arrays: AssertionError"),
        (lambda x: float(as_strided(x, (5,)).sum()), "tidy arrays: ended by SIGSEGV"),
    ],
)
def test_the_walk_finds_what_is_wrong(call, found):
    assert found in wrong_by(call)
