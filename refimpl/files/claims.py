"""Claims on jobs: several machines that share a folder divide work, and any of them may die.

A claim is a file NAME.0 that its owner makes exclusively, which network file systems do atomically too. Every
few seconds the owner writes something new into it. A file that does not change for long, by the clock of the
one who looks, has lost its owner, and whoever makes the file NAME.1 first has the job. Clocks of machines are
not compared, and no claim is deleted: one that is given back says so.
"""

import threading
import time
import uuid
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self

from refimpl.errors import RunError
from refimpl.files.storage import make_folder, reason

STALE = 60.0  # seconds without news after which the owner of a claim counts as dead, the same for all
FREE = b"free\n"  # what a claim says that was given back


class Claims:
    """This process's claims in `folder`, which it renews until the end of the block.

    Without a folder there are no other processes, and every job is free.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._stale, self._token = folder or Path(), STALE, uuid.uuid4().hex
        self.shared = folder is not None
        self._own: dict[str, int] = {}  # the number of the claim on each job
        self._seen: dict[Path, tuple[bytes, float]] = {}  # what a claim of another says, and since when
        self._lost: list[str] = []
        self._end, self._lock = threading.Event(), threading.Lock()
        self._renewing = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Self:
        if self.shared:
            make_folder(self._folder)
            self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self.shared:
            self._renewing.join()
        for name in list(self._own):
            self.give_back(name)

    def is_free(self, name: str) -> bool:
        """Whether nobody is known to work on the job."""
        last = self._last(name)
        return last < 0 or self._has_ended(self._file(name, last))

    def take(self, name: str) -> bool:
        """Claim a job; False where somebody else has it."""
        if not self.is_free(name):
            return False
        number = self._last(name) + 1
        try:
            if self.shared:
                with open(self._file(name, number), "xb") as file:
                    file.write(self._token.encode())
        except FileExistsError:
            return False
        except OSError as error:
            raise RunError(f"{self._folder}: cannot write: {reason(error)}") from None
        with self._lock:
            self._own[name] = number
        return True

    def give_back(self, name: str) -> None:
        """Say that this process no longer works on the job."""
        with self._lock:
            number = self._own.pop(name)
        if self.shared:
            with suppress(OSError):
                self._file(name, number).write_bytes(FREE)

    @property
    def lost(self) -> bool:
        """Whether somebody else has taken over a job of this process."""
        return bool(self._lost)

    def check(self) -> None:
        """Raise `RunError` if somebody else has taken over a job of this process."""
        if self._lost:
            raise RunError(
                f"{self._folder}: another process took {self._lost[0]} over, because this one was silent for "
                f"{self._stale:g} s; start it again"
            )

    def _file(self, name: str, number: int) -> Path:
        return self._folder / f"{name}.{number}"

    def _last(self, name: str) -> int:
        """The number of the last claim on a job; -1 if there is none."""
        if not self.shared:
            return -1
        return next(number for number in count() if not self._file(name, number).exists()) - 1

    def _has_ended(self, file: Path) -> bool:
        """Whether a claim was given back, or has not changed for long."""
        with suppress(OSError):
            content, now = file.read_bytes(), time.monotonic()
            if file not in self._seen or self._seen[file][0] != content:
                self._seen[file] = content, now
            return content == FREE or now - self._seen[file][1] > self._stale
        return False

    def _keep(self) -> None:
        for beat in count(1):
            if self._end.wait(self._stale / 6):
                return
            self.renew(beat)

    def renew(self, beat: int) -> None:
        """Write another number into all claims, and see whether one has been taken over."""
        with self._lock:
            for name, number in self._own.items():
                if self._file(name, number + 1).exists():
                    self._lost.append(name)
                    continue
                with suppress(OSError):
                    self._file(name, number).write_bytes(f"{self._token} {beat}".encode())
