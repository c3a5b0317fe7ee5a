"""Independent jobs over processes: deterministic, one display, stopped by one request.

The only message a job can get while it works is to stop. So each worker has one pipe: whatever arrives on it
during work means stop, and so does the end of the pipe, which comes when the parent process has died.

`concurrent.futures.ProcessPoolExecutor` is not used: its workers go on with their jobs when the parent is
killed, it does not say how a worker died, and it has no channel for messages or for the request to stop.
"""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from refimpl.errors import BusyError, RefimplError, RunError
from refimpl.files.claims import Claims

Tell = Callable[[Any], None]
Stop = Callable[[], bool]
Claim = Callable[[int], bool]
Work = Callable[[Any, Tell, Stop], Any]  # (job, tell, stop) -> result; all of them can be pickled

POLL_SECONDS = 0.2  # between two calls of `stop`
PAUSE_SECONDS = 1.0  # between two looks at jobs of which others have claimed all
TOLD, DONE, FAILED = "told", "done", "failed"
KILL = 9  # the signal that a system short of memory sends
PATIENCE_SECONDS = 5.0  # that a terminated worker gets to end


def run_jobs(
    work: Work,
    jobs: Sequence[Any],
    workers: int,
    on_told: Callable[[int, Any], None] = lambda index, message: None,
    stop: Stop = lambda: False,
    claim: Claim = lambda index: True,
) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) of work(job, tell, stop) for every job, in the order in which they end.

    A job is left out if `claim(index)` is false when its turn comes: others do it.

    The result is a `RefimplError` if the job raised one. Whatever a job passes to `tell` is passed on to
    `on_told`. With one worker, or one job, everything runs in this process; so it does in a worker of
    another pool, which may not start processes. When `stop` returns true, jobs in progress are asked to stop,
    no others are started, and `KeyboardInterrupt` is raised at the end. `work` must return early when its own
    `stop` returns true; its result is then not used.
    """
    if min(workers, len(jobs)) <= 1 or multiprocessing.current_process().daemon:
        yield from _run_here(work, jobs, on_told, stop, claim)
        return
    with _workers(work, min(workers, len(jobs))) as pool:
        yield from _run_there(pool, jobs, on_told, stop, claim)


def divide_jobs(
    work: Work,
    left: Callable[[], Mapping[str, Any]],
    workers: int,
    claims: Claims,
    on_told: Callable[[Any, Any], None] = lambda job, message: None,
    stop: Stop = lambda: False,
) -> Iterator[tuple[Any, Any]]:
    """`run_jobs` on what `left()` has, by name, again and again until that is nothing: (job, result).

    A job that another process has claimed is waited for, and done here where that process dies before it is
    done. Raises `RunError` if this process has lost a claim.
    """
    while there := left():
        free = {name: job for name, job in there.items() if claims.is_free(name)}
        done = 0
        try:
            for found in _claimed(work, free, left, workers, claims, on_told, lambda: claims.lost or stop()):
                done += 1
                yield found
            if not done and stop():
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            claims.check()
            raise
        time.sleep(0 if done else PAUSE_SECONDS)


def _claimed(
    work: Work,
    there: Mapping[str, Any],
    left: Callable[[], Mapping[str, Any]],
    workers: int,
    claims: Claims,
    on_told: Callable[[Any, Any], None],
    stop: Stop,
) -> Iterator[tuple[Any, Any]]:
    """(job, result) of those jobs that this process can claim and that are still left then."""
    names, jobs = list(there), list(there.values())

    def claim(index: int) -> bool:
        if not claims.take(names[index]):
            return False
        if not claims.shared or names[index] in left():
            return True
        claims.give_back(names[index])
        return False

    def told(index: int, message: Any) -> None:
        on_told(jobs[index], message)

    for index, result in run_jobs(work, jobs, workers, told, stop, claim):
        if not (claims.shared and isinstance(result, BusyError)):  # a process that is about to die
            yield jobs[index], result
        claims.give_back(names[index])


def _run_here(
    work: Work, jobs: Sequence[Any], on_told: Callable[[int, Any], None], stop: Stop, claim: Claim
) -> Iterator[tuple[int, Any]]:
    for index, job in enumerate(jobs):
        if stop():
            raise KeyboardInterrupt
        if not claim(index):
            continue
        result = _attempt(work, job, partial(on_told, index), stop)
        if stop():
            raise KeyboardInterrupt
        yield index, result


def _attempt(work: Work, job: Any, tell: Tell, stop: Stop) -> Any:
    try:
        return work(job, tell, stop)
    except RefimplError as error:
        return error


@dataclass
class _Worker:
    """A process, this end of its pipe, and the number of the job it works on."""

    process: BaseProcess
    pipe: Connection
    index: int | None = None
    asked: bool = False

    def begin(self, index: int, job: Any) -> None:
        """Send it a job."""
        self.index = index
        self._send(job)

    def ask(self) -> None:
        """Ask it, once, to stop."""
        if not self.asked:
            self.asked = True
            self._send(None)

    def _send(self, content: Any) -> None:
        with suppress(OSError):  # the worker has died: `_receive` will notice
            self.pipe.send(content)


@contextmanager
def _workers(work: Work, count: int) -> Iterator[list[_Worker]]:
    """`count` running worker processes, which are ended when the block is left."""
    context, pool = multiprocessing.get_context("spawn"), list[_Worker]()
    try:
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(work, there), daemon=True)
            with _interrupts_blocked(), _without_script():
                process.start()
            there.close()
            pool.append(_Worker(process, here))
        yield pool
    finally:
        for worker in pool:
            worker.pipe.close()
        for worker in pool:
            worker.process.terminate()
            worker.process.join(PATIENCE_SECONDS)


@contextmanager
def _without_script() -> Iterator[None]:
    """Processes started within the block do not run the program's script, which they do not need.

    The script may not be a file (standard input), or may have no main guard and start everything again.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C is blocked in processes started within the block, until `_serve` ignores it for good.

    Ctrl-C reaches all processes of the terminal, but only the parent decides what to do about it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_there(
    pool: list[_Worker], jobs: Sequence[Any], on_told: Callable[[int, Any], None], stop: Stop, claim: Claim
) -> Iterator[tuple[int, Any]]:
    waiting = iter(range(len(jobs)))
    taken = filter(claim, waiting)
    while True:
        stopping = stop()
        for worker in pool:
            if worker.index is None and not stopping and (index := next(taken, None)) is not None:
                worker.begin(index, jobs[index])
            elif worker.index is not None and stopping:
                worker.ask()
        busy = [worker for worker in pool if worker.index is not None]
        if not busy:
            break
        ready = wait([worker.pipe for worker in busy], POLL_SECONDS)
        for worker in (worker for worker in busy if worker.pipe in ready):
            kind, content = _receive(worker, stop)
            assert worker.index is not None
            if kind == TOLD:
                on_told(worker.index, content)
                continue
            if kind == FAILED and not isinstance(content, RefimplError):
                raise content
            done, worker.index = worker.index, None
            if not worker.asked:
                yield done, content
    if next(waiting, None) is not None or any(worker.asked for worker in pool):
        raise KeyboardInterrupt


def _receive(worker: _Worker, stop: Stop) -> tuple[str, Any]:
    try:
        kind, content = worker.pipe.recv()
    except (EOFError, OSError):
        if stop():  # all processes were asked to end
            raise KeyboardInterrupt from None
        raise RunError(f"a worker process died ({_fate(worker.process)}); use fewer --threads") from None
    return kind, content


def _fate(process: BaseProcess) -> str:
    """How the process ended, in words."""
    process.join(PATIENCE_SECONDS)
    code = process.exitcode or 0
    if code < 0:
        return "killed; out of memory?" if code == -KILL else f"signal {-code}"
    return f"exit code {code}"


def _serve(work: Work, pipe: Connection) -> None:
    """The main function of a worker process: run the jobs from the pipe until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        while (job := pipe.recv()) is not None:
            try:
                content = _attempt(work, job, lambda message: pipe.send((TOLD, message)), pipe.poll)
                kind = FAILED if isinstance(content, RefimplError) else DONE
            except BrokenPipeError:
                return
            except Exception as error:
                kind, content = FAILED, error
            pipe.send((kind, content))
    except (EOFError, OSError):
        return
