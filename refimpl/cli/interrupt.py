"""What Ctrl-C does: it stops a run after the current round, and a second one stops it at once.

A command that can be continued then says how, and exits with 130.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

from refimpl.cli.app import INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTICE = b"\nrefimpl: stopping after the round in progress; Ctrl-C again stops at once\n"
STDERR = 2


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block, the yielded function returns True after the first Ctrl-C (or termination).

    The second one raises KeyboardInterrupt. Outside the main thread, signals are not handled.
    """
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        with suppress(OSError):  # stderr is full or has no reader
            os.write(STDERR, NOTICE)  # safe while the program itself is writing, unlike a buffered stream

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def resumable(how: Callable[[], str]) -> Iterator[None]:
    """If the block is interrupted, print "stopped" and then `how()`, which says how to go on, and exit."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"refimpl: stopped{how()}", err=True)
        click.get_current_context().exit(INTERRUPTED)
