"""Folders that stand complete at their place or not at all, whenever the process is killed.

They are made beside their place under another name, then renamed; a folder they replace is moved aside in
the same way before it is deleted. What a killed process leaves of either, the next one sweeps.

Some folders cannot be renamed: mount points, the current folder, and those in a folder where nothing may be
made. They are filled in place, from a folder made inside them. That is not done at one stroke, so the file
that says what the folder is, its mark, goes first and comes last: a process that is killed meanwhile leaves
a folder that is neither the old nor the new, and that the same command fills again.
"""

from __future__ import annotations

import errno
import glob
import itertools
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from refimpl.errors import RunError, TakenError
from refimpl.files.lock import locked
from refimpl.files.storage import reason, resemble, sync_folder

BUILDING, ASIDE = ".new", ".old"  # endings of folders in the making, and of those that were replaced
PATIENCE = 3600.0  # seconds after which a folder in the making is nobody's, whoever made it
MOUNTS = Path("/proc/self/mountinfo")


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """An empty folder to be filled and then moved to `path`, or what it links to; it ends with the block.

    Raises `RunError` about `path` for what the system refuses, in the block as well.
    """
    place = _resolved(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        inside = _is_fixed(place) or leftovers(place)
        folder = _within(place if inside else place.parent, place, BUILDING)
        _sweep(place)
        try:
            folder.mkdir()
        except FileExistsError:  # of another thread, or of a process with our number elsewhere
            raise _taken(path) from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{path}: cannot make a folder: {reason(error)}") from None


def move_into_place(folder: Path, path: Path, mark: str, locks: Sequence[Path] = ()) -> None:
    """Move the finished `folder` to `path`, where nothing may be but a folder without whole files.

    mark: the file in it that says what it is. Where `locks` are named, what is at `path` is replaced: it is
    deleted while they are held. Raises `RunError` where another process holds one, `TakenError` where one
    has put something at `path` meanwhile.
    """
    place = _resolved(path)
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(locked(lock, lock.parent))
        try:
            if folder.parent == place:
                _fill(folder, place, mark, replace=bool(locks))
            elif locks:
                _exchange(folder, place)
            else:
                _settle(folder, place)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise _taken(path) from None
            raise


def _taken(path: Path) -> TakenError:
    return TakenError(f"{path}: another process took it meanwhile; choose another --out")


def _settle(folder: Path, place: Path) -> None:
    """Rename the folder to its place, where an empty one may be."""
    if place.is_dir():
        resemble(folder, place.stat(), stat.S_IRWXU)
        for torn in place.glob(".*.tmp"):
            torn.unlink()
        if os.name != "posix":  # elsewhere a folder takes the place of an empty one at one stroke
            place.rmdir()
    os.rename(folder, place)
    sync_folder(place.parent)


def _exchange(folder: Path, place: Path) -> None:
    """Rename the folder to the place of another, which is deleted."""
    aside = _within(place.parent, place, ASIDE)
    resemble(folder, place.stat(), stat.S_IRWXU)
    os.utime(place)  # it is aside from now on, however old
    os.rename(place, aside)
    try:
        os.rename(folder, place)
    except OSError:
        os.rename(aside, place)
        raise
    sync_folder(place.parent)
    shutil.rmtree(aside)


def _fill(folder: Path, place: Path, mark: str, replace: bool) -> None:
    """Delete what is at the place, the mark first, and move there what is in the folder, the mark last."""
    others = [item for item in place.iterdir() if item != folder]
    if leftovers(place) != {folder.name} or ((place / mark).exists() and not replace):
        raise FileExistsError(errno.EEXIST, "in use", place)
    for item in sorted(others, key=lambda item: item.name != mark):
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()
    sync_folder(place)
    for item in sorted(folder.iterdir(), key=lambda item: item.name == mark):
        os.rename(item, place / item.name)
    sync_folder(place)


def leftovers(path: Path) -> set[str]:
    """Names in a folder of what processes that fill it in place, or were killed at it, have made there."""
    place = _resolved(path)
    return (
        {item.name for item in place.iterdir() if _owner(item, place, BUILDING)} if place.is_dir() else set()
    )


def _resolved(path: Path) -> Path:
    """Where `path` leads in the end: links stay, what they name is made or replaced."""
    return Path(os.path.realpath(path))


def _is_fixed(place: Path) -> bool:
    """Whether the folder at `place` is there and cannot be renamed, or not without harm."""
    if not place.is_dir():
        return False
    if os.path.ismount(place) or _is_bound(place) or Path.cwd().is_relative_to(place):
        return True
    return not _may_rename(place)


def _is_bound(place: Path) -> bool:
    """Whether the system lists the folder as a mount point; one of the same disk is not seen otherwise."""
    with suppress(OSError):
        name = os.fsencode(place).replace(b"\\", rb"\134").replace(b" ", rb"\040")
        return any(line.split()[4] == name for line in MOUNTS.read_bytes().splitlines())
    return False


def _may_rename(place: Path) -> bool:
    """Whether the folder around `place` lets us rename what is in it."""
    around = place.parent.stat()
    if around.st_mode & stat.S_ISVTX and os.geteuid() not in (0, around.st_uid, place.stat().st_uid):
        return False
    return os.access(place.parent, os.W_OK | os.X_OK)


def _within(folder: Path, place: Path, ending: str) -> Path:
    """This process's own name in `folder` for what concerns `place`."""
    return folder / f".{place.name}.{_host()}-{os.getpid()}{ending}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", platform.node()) or "unknown"


def _sweep(place: Path) -> None:
    """Delete what processes that were killed while they made or replaced the folder at `place` have left."""
    for folder, ending in itertools.product((place.parent, place), (BUILDING, ASIDE)):
        for item in folder.glob(f".{glob.escape(place.name)}.*-*{ending}"):
            if _abandoned(item, _owner(item, place, ending)):
                shutil.rmtree(item, ignore_errors=True)


def _owner(item: Path, place: Path, ending: str) -> str:
    """The host and the process that a name as `_within` gives it ends in; empty for any other name."""
    owner = item.name.removeprefix(f".{place.name}.").removesuffix(ending)
    known = item.name == f".{place.name}.{owner}{ending}" and owner.rpartition("-")[2].isdecimal()
    return owner if known else ""


def _abandoned(folder: Path, owner: str) -> bool:
    """Whether the folder of `owner`, a host and a process, is nobody's: old, or of a dead process here."""
    host, _, process = owner.rpartition("-")
    if not process:
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
