"""Forking beside threads that the child does not need; and the command line in a forked process."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, Self

from refimpl.cli import main


def fork() -> int:
    """`os.fork`, without the warning that newer Pythons, and JAX where it is loaded, give of threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


class Command:
    """The command line in a process of its own, used as `subprocess.Popen` with two pipes for text is.

    The process is forked from this one, in which everything is imported and the kernels are loaded, so that
    it begins with its work at once.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.returncode: int | None = None
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = fork()
        if not self.pid:
            _become(words, out_end, err_end)
        os.close(out_end), os.close(err_end)
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self._wait(0)
        self.stdout.close(), self.stderr.close()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None if the process is still at work."""
        if self.returncode is None:
            self._wait(os.WNOHANG)
        return self.returncode

    def _wait(self, options: int) -> None:
        found, status = os.waitpid(self.pid, options)
        if found:
            self.returncode = os.waitstatus_to_exitcode(status)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """Wait for its end; all that was printed and not yet read, which must fit into a pipe."""
        err, out = self.stderr.read(), self.stdout.read()
        if self.returncode is None:
            self._wait(0)
        return out, err


def _become(words: Sequence[str], out: int, err: int) -> NoReturn:
    """Be the process that runs the command line and has nothing to do with the tests any more."""
    code = 99
    try:
        os.dup2(out, 1), os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        main(words)
    except SystemExit as end:
        code = int(end.code or 0)
        sys.stdout.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)
