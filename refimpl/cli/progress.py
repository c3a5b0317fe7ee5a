"""Progress on stderr. On a terminal it is one line that is rewritten, elsewhere plain lines at intervals.

Results go to stdout, so that they can be piped. `Talk` says how much is shown: nothing, the usual progress,
or a plain line for every step, even on a terminal.
"""

from __future__ import annotations

import enum
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from refimpl.federated.rounds import RoundRecord

REDRAW_SECONDS = 0.1
PLAIN_SHARE, PLAIN_SECONDS = 0.1, 30.0  # a plain line at least this often
EVERY = 20  # functions compiled between two plain lines of progress
WARM_UP = 227  # about how many functions a warm-up in one floating-point type compiles with an empty cache
SECOND = 165  # about how many a warm-up in the other type adds


class Talk(enum.Enum):
    """How much is shown: with -q, without an option, and with -v."""

    QUIET = "quiet"
    USUAL = "usual"
    VERBOSE = "verbose"


class Progress:
    """Counts `total` steps, and shows the text of each with the rate and the remaining time.

    Use it as a context manager, so that the line on a terminal is ended. `clock` returns seconds.
    """

    def __init__(
        self,
        total: int,
        talk: Talk = Talk.USUAL,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.done = 0
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self.terminal = self._stream.isatty() and talk != Talk.VERBOSE  # where a person watches one line
        self._talk = talk
        self._first: float | None = None  # when the first step was done; only that step includes compilation
        self._shown_at = -float("inf")
        self._shown_done = 0
        self._open_line = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open_line:
            self._stream.write("\n")
            self._stream.flush()
            self._open_line = False

    def step(self, text: str) -> None:
        """Count one more step; `text` describes it."""
        self.done += 1
        now = self._clock()
        self._first = now if self._first is None else self._first
        if self._due(now):
            self._shown_at, self._shown_done = now, self.done
            self.say("  ".join([text, *self._pace(now)]))

    def _due(self, now: float) -> bool:
        if self._talk == Talk.VERBOSE or self.done in (1, self.total):
            return True
        if self.terminal:
            return now - self._shown_at >= REDRAW_SECONDS
        many = self.done - self._shown_done >= PLAIN_SHARE * self.total
        return many or now - self._shown_at >= PLAIN_SECONDS

    def _pace(self, now: float) -> list[str]:
        """Rate and remaining time, from the second step on."""
        elapsed = 0.0 if self._first is None else now - self._first
        if self.done < 2 or elapsed <= 0:
            return []
        rate = (self.done - 1) / elapsed
        shown = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
        return [shown, f"{duration((self.total - self.done) / rate)} left"]

    def say(self, text: str) -> None:
        """Show `text` at once, without counting a step."""
        if self._talk == Talk.QUIET:
            return
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{text[:width]}\x1b[K")
            self._open_line = True
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()


def round_text(method: str, record: RoundRecord, rounds: int, gated: bool) -> str:
    """The text of a round for `Progress.step`: method, round, loss, and gap and sparsity if there are any."""
    parts = [method, f"round {record.round}/{rounds}", f"loss {record.loss:.4f}"]
    if not math.isnan(record.gap):
        parts.append(f"gap {record.gap:.2e}")
    if gated:
        parts.append(f"off {record.closed_share:.0%}")
    return "  ".join(parts)


def adapted_text(accuracy: float) -> str:
    """The text of an adaptation for `Progress.step`; `accuracy` is NaN if it diverged."""
    return "diverged" if math.isnan(accuracy) else f"accuracy {accuracy:.1%}"


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- compiling


@contextmanager
def notice(progress: Progress, total: int | None = None) -> Iterator[list[str]]:
    """Show within the block that kernels are being compiled, if they are; yields the names so far.

    total: how many there will be if the cache on disk is empty; then the time left is shown as well.
    """
    from refimpl.kernels import compiling, jit

    names: list[str] = []
    kept = any(jit.cache_folder().glob("*/*.nb[ic]"))
    first = time.monotonic()

    def told(name: str) -> None:
        nonlocal first
        names.append(name)
        if len(names) == 1:
            first = time.monotonic()
            progress.say("compiling kernels for this machine, once; this takes about a minute")
        elif len(names) % EVERY == 0:
            expected = None if kept else total
            progress.say(f"compiling kernels: {_so_far(len(names), expected, time.monotonic() - first)}")

    with compiling.watch(told):
        yield names


@contextmanager
def working(steps: int, talk: Talk, compiled: int | None = None) -> Iterator[Progress]:
    """Show progress of `steps` steps, and a `notice` of `compiled` functions if kernels are compiled."""
    with Progress(steps, talk) as progress, notice(progress, compiled):
        yield progress


def _so_far(done: int, total: int | None, seconds: float) -> str:
    """How many functions are compiled after so many seconds, and of how many with the time left, if known."""
    if total is None or done > total:
        return f"{done} functions so far"
    rate = done / max(seconds, 1e-3)  # some clocks are coarse and may have shown no time yet
    return f"{done} of about {total} functions  {rate:.3g}/s  {duration((total - done) / rate)} left"
