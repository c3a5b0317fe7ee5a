"""Locks that the system releases when their process ends: one writer at a time for a run, a search, a file.

The package `filelock` is not used. It has fifteen thousand lines where two calls of `flock` suffice, and on
file systems without locks it falls back to marker files, which a killed process leaves behind. `RunFolder`
also needs a lock that holds while the folder around the locked file is renamed.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refimpl.errors import BusyError, RunError

try:
    import fcntl

    CAN_LOCK = True
except ImportError:  # Windows has no locks of this kind, so runs are not protected there
    CAN_LOCK = False

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems that cannot lock


def take_lock(file: Path, who: Path, shared: bool = False) -> int | None:
    """Lock `file`, creating it if needed, until the handle is released; None where the system has no locks.

    shared: others may have the lock as well, if theirs are shared too. Raises `BusyError` about `who` if
    another process, or another handle of this one, has the lock.
    """
    if not CAN_LOCK:
        return None
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    try:
        return _lock(os.open(file, os.O_RDWR | os.O_CREAT, 0o644), file, how)
    except (BlockingIOError, FileNotFoundError):
        raise BusyError(
            f"{who}: in use by another refimpl process; wait for it or choose another --out"
        ) from None
    except OSError as error:
        raise RunError(f"{who}: cannot be locked: {(error.strerror or 'unknown').lower()}") from None


def _lock(handle: int, file: Path, how: int) -> int | None:
    """Lock the open file; None where the system has no locks; the handle is closed unless it is locked.

    Raises `FileNotFoundError` if another process has renamed, deleted or replaced the file meanwhile.
    """
    try:
        fcntl.flock(handle, how)
        if os.path.samestat(os.fstat(handle), os.stat(file)):
            return handle
        raise FileNotFoundError(errno.ENOENT, "replaced", file)
    except OSError as error:
        os.close(handle)
        if error.errno in _NO_LOCKS:
            return None
        raise


def release_lock(handle: int | None) -> None:
    """Release the lock that `take_lock` returned."""
    if handle is not None:
        os.close(handle)


@contextmanager
def locked(file: Path, who: Path, shared: bool = False) -> Iterator[None]:
    """Keep `file` locked within the block; `shared`, and what it raises, as for `take_lock`."""
    handle = take_lock(file, who, shared)
    try:
        yield
    finally:
        release_lock(handle)


@contextmanager
def locked_when_free(file: Path) -> Iterator[None]:
    """Wait until no other process has locked `file`, creating it if needed, and lock it within the block.

    The block may rename or delete the file. Where the system has no locks, nothing is locked.
    """
    handle, waiting = None, CAN_LOCK
    while waiting:
        opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(FileNotFoundError):  # the block, in another process, has moved the file: open it again
            handle, waiting = _lock(opened, file, fcntl.LOCK_EX), False
    try:
        yield
    finally:
        release_lock(handle)
