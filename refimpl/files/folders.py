"""Folders that stand complete at their place or not at all, whenever the process is killed.

They are made beside their place under another name, then renamed; a folder they replace is moved aside in
the same way before it is deleted. What a killed process leaves of either, the next one sweeps.
"""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from refimpl.errors import RunError
from refimpl.files.lock import locked
from refimpl.files.storage import reason, sync_folder

BUILDING, ASIDE = ".new", ".old"  # endings of folders in the making, and of those that were replaced
PATIENCE = 3600.0  # seconds after which a folder in the making is nobody's, whoever made it


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, to be filled and then moved there; it does not outlive the block.

    Raises `RunError` about `path` for what the system refuses, in the block as well.
    """
    folder = _beside(path, BUILDING)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        folder.mkdir()
        yield folder
    except OSError as error:
        raise RunError(f"{path}: cannot make a folder: {reason(error)}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into_place(folder: Path, path: Path, locks: Sequence[Path] = ()) -> None:
    """Rename the finished `folder` to `path`, where nothing may be but a folder without whole files.

    Where `locks` are named, what is at `path` is replaced: it is moved aside and deleted while they are
    held. Raises `RunError` where another process holds one.
    """
    if not locks:
        if path.is_dir():
            for torn in path.glob(".*.tmp"):
                torn.unlink()
            path.rmdir()
        os.rename(folder, path)
        sync_folder(path.parent)
        return
    aside = _beside(path, ASIDE)
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(locked(lock, lock.parent))
        os.utime(path)  # it is aside from now on, however old
        os.rename(path, aside)
        try:
            os.rename(folder, path)
        except OSError:
            os.rename(aside, path)
            raise
        sync_folder(path.parent)
        shutil.rmtree(aside)


def _beside(path: Path, ending: str) -> Path:
    """This process's own name beside `path`."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}{ending}")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", platform.node()) or "unknown"


def _sweep(path: Path) -> None:
    """Delete what processes that were killed while they made or replaced the folder at `path` have left."""
    for ending in (BUILDING, ASIDE):
        for folder in path.parent.glob(f".{glob.escape(path.name)}.*-*{ending}"):
            owner = folder.name.removeprefix(f".{path.name}.").removesuffix(ending)
            if _abandoned(folder, owner):
                shutil.rmtree(folder, ignore_errors=True)


def _abandoned(folder: Path, owner: str) -> bool:
    """Whether the folder of `owner`, a host and a process, is nobody's: old, or of a dead process here."""
    host, _, process = owner.rpartition("-")
    if not process.isdecimal():
        return False
    with suppress(OSError):
        if time.time() - folder.stat().st_mtime > PATIENCE:
            return True
    return host == _host() and not _alive(int(process))


def _alive(process: int) -> bool:
    """Whether a process of this host may still be there; always, where asking would end it."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # someone else's
    return True
