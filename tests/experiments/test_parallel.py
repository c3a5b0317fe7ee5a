"""Jobs over processes: every result at its place, errors as results, stopped when asked or when orphaned."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refimpl.errors import InputError, RunError
from refimpl.experiments.jobs import run_jobs


def square(job, tell, stop):
    tell(f"{job} squared")
    if job == 3:
        raise InputError("three is too many")
    return job * job, os.getpid()


def patient(job, tell, stop):
    tell("begun")
    while not stop():
        time.sleep(0.01)
    return "stopped"


def dying(job, tell, stop):
    os._exit(7)


def broken(job, tell, stop):
    raise ZeroDivisionError(f"in job {job}")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once_and_told_of(workers):
    told = []
    results = dict(run_jobs(square, [2, 3, 4, 5], workers, lambda *message: told.append(message)))
    assert sorted(results) == [0, 1, 2, 3]
    assert [results[index][0] for index in (0, 2, 3)] == [4, 16, 25]
    assert isinstance(results[1], InputError)  # a user's mistake is a result: the other jobs go on
    assert str(results[1]) == "three is too many"
    assert sorted(told) == [(0, "2 squared"), (1, "3 squared"), (2, "4 squared"), (3, "5 squared")]
    processes = {results[index][1] for index in (0, 2, 3)}
    assert (os.getpid() in processes) == (workers == 1)
    assert len(processes) <= workers


@pytest.mark.parametrize("workers", [1, 2])
def test_when_stopped_jobs_are_asked_and_no_more_begun(workers):
    told = []
    stop = lambda: len(told) >= workers  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(patient, range(9), workers, lambda *message: told.append(message), stop))
    assert len(told) == workers


def killed(job, tell, stop):
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize(
    ("work", "why"), [(dying, r"\(exit code 7\)"), (killed, r"\(killed; out of memory\?\)")]
)
def test_a_worker_that_dies_is_one_line(work, why):
    with pytest.raises(RunError, match=f"worker process died {why}"):
        list(run_jobs(work, range(2), 2))


def in_a_worker(jobs):
    return dict(run_jobs(square, jobs, 2)), os.getpid()


def test_in_a_worker_of_a_pool_the_jobs_are_done_there():
    """Such a process may have no children."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        results, process = pool.apply(in_a_worker, ([2, 5],))
    assert results == {0: (4, process), 1: (25, process)}


SCRIPT = """
import sys
sys.path.insert(0, "tests")
from refimpl.experiments.jobs import run_jobs
from test_parallel import square
print("begun", sorted(result[0] for _, result in run_jobs(square, [2, 5], 2)))
"""


@pytest.mark.parametrize("place", ["stdin", "file"])
def test_a_script_without_main_guard_runs_once_wherever_it_stands(tmp_path, place):
    """Workers do not run it, and need not find it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-" if place == "stdin" else str(tmp_path / "script.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    done = subprocess.run(
        command, input=SCRIPT * (place == "stdin"), capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("begun [4, 25]\n", "")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_defect_is_not_swallowed(workers):
    with pytest.raises(ZeroDivisionError, match="in job"):
        list(run_jobs(broken, range(2), workers))


ORPHANED = """
import os, sys
sys.path.insert(0, "tests")
from refimpl.experiments.jobs import run_jobs
from test_parallel import whoami
if __name__ == "__main__":
    list(run_jobs(whoami, range(2), 2, lambda index, pid: print(pid, flush=True)))
"""


def whoami(job, tell, stop):
    tell(os.getpid())
    return patient(job, lambda message: None, stop)


@pytest.mark.skipif(os.name != "posix", reason="asks /proc-like questions of processes")
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ORPHANED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as p:
        pids = [int(p.stdout.readline()) for _ in range(2)]
        p.kill()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # an orphan that nobody waits for is dead as well
    return not (status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")
