"""Create folders that are complete or absent at their final place, even if the process is killed.

A folder is filled under a temporary name beside its final place, then renamed; a folder that it replaces is
renamed too before it is deleted. The next process removes what a killed process leaves of either.

Some folders cannot be renamed: mount points, the current folder, and those in a folder without permission
to write. They are filled in place, from a temporary folder inside them. That takes several steps. So the
file that says what the folder is, its mark, is deleted first and written last: a process that is killed in
between leaves a folder that is neither the old one nor the new one, and the same command fills it again.
"""

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

BUILDING, ASIDE = ".new", ".old"  # endings of unfinished and of replaced folders
PATIENCE = 3600.0  # seconds after which an unfinished folder counts as abandoned, even on another host
MOUNTS = Path("/proc/self/mountinfo")


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """An empty temporary folder to be filled and moved to `path` (or to the folder that `path` links to).

    What is left of it is deleted after the block. Raises `RunError` about `path` for everything that the
    system refuses, within the block as well.
    """
    place = _resolved(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        inside = _is_fixed(place) or leftovers(place)
        folder = _within(place if inside else place.parent, place, BUILDING)
        _sweep(place)
        try:
            folder.mkdir()
        except FileExistsError:  # made by another thread, or by a process with our number on another host
            raise _taken(path) from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{path}: cannot make a folder: {reason(error)}") from None


def move_into_place(folder: Path, path: Path, mark: str, locks: Sequence[Path] = ()) -> None:
    """Move the finished `folder` to `path`, where there may be only a folder without complete files.

    mark: the file in it that says what it is. If `locks` are given, what is at `path` is replaced, and
    deleted while they are locked. Raises `RunError` if another process has one of the locks, `TakenError`
    if another process has put something at `path` in the meantime.
    """
    place = _resolved(path)
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(locked(lock, lock.parent))
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
    """Rename the folder to its place, where there may be an empty folder."""
    if place.is_dir():
        resemble(folder, place.stat(), stat.S_IRWXU)
        for torn in place.glob(".*.tmp"):
            torn.unlink()
        if os.name != "posix":  # POSIX replaces an empty folder in the same step
            place.rmdir()
    os.rename(folder, place)
    sync_folder(place.parent)


def _exchange(folder: Path, place: Path) -> None:
    """Put the folder in the place of another one, which is deleted."""
    aside = _within(place.parent, place, ASIDE)
    resemble(folder, place.stat(), stat.S_IRWXU)
    os.utime(place)  # its age is counted from now on, so that nobody else deletes it yet
    os.rename(place, aside)
    try:
        os.rename(folder, place)
    except OSError:
        os.rename(aside, place)
        raise
    sync_folder(place.parent)
    shutil.rmtree(aside)


def _fill(folder: Path, place: Path, mark: str, replace: bool) -> None:
    """Replace the contents of the place by those of the folder; the mark is deleted first and moved last."""
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
    """Names of the temporary folders in `path` of processes that fill it in place or were killed doing so."""
    place = _resolved(path)
    return (
        {item.name for item in place.iterdir() if _owner(item, place, BUILDING)} if place.is_dir() else set()
    )


def _resolved(path: Path) -> Path:
    """The path with all links followed: links stay, and the folder that they name is made or replaced."""
    return Path(os.path.realpath(path))


def _is_fixed(place: Path) -> bool:
    """Whether there is a folder at `place` that cannot be renamed, or should not be."""
    if not place.is_dir():
        return False
    if os.path.ismount(place) or _is_bound(place) or Path.cwd().is_relative_to(place):
        return True
    return not _may_rename(place)


def _is_bound(place: Path) -> bool:
    """Whether the system lists the folder as a mount point; `ismount` misses those of the same disk."""
    with suppress(OSError):
        name = os.fsencode(place).replace(b"\\", rb"\134").replace(b" ", rb"\040")
        return any(line.split()[4] == name for line in MOUNTS.read_bytes().splitlines())
    return False


def _may_rename(place: Path) -> bool:
    """Whether we may rename `place` in the folder that contains it."""
    around = place.parent.stat()
    if around.st_mode & stat.S_ISVTX and os.geteuid() not in (0, around.st_uid, place.stat().st_uid):
        return False
    return os.access(place.parent, os.W_OK | os.X_OK)


def _within(folder: Path, place: Path, ending: str) -> Path:
    """The temporary name that this process uses in `folder` for work on `place`."""
    return folder / f".{place.name}.{_host()}-{os.getpid()}{ending}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", platform.node()) or "unknown"


def _sweep(place: Path) -> None:
    """Delete what killed processes left while they made or replaced the folder at `place`."""
    for folder, ending in itertools.product((place.parent, place), (BUILDING, ASIDE)):
        for item in folder.glob(f".{glob.escape(place.name)}.*-*{ending}"):
            if _abandoned(item, _owner(item, place, ending)):
                shutil.rmtree(item, ignore_errors=True)


def _owner(item: Path, place: Path, ending: str) -> str:
    """The host and process at the end of a name made by `_within`; empty for any other name."""
    owner = item.name.removeprefix(f".{place.name}.").removesuffix(ending)
    known = item.name == f".{place.name}.{owner}{ending}" and owner.rpartition("-")[2].isdecimal()
    return owner if known else ""


def _abandoned(folder: Path, owner: str) -> bool:
    """Whether the folder of `owner`, a host and a process, is old, or of a dead process of this host."""
    host, _, process = owner.rpartition("-")
    if not process:
        return False
    with suppress(OSError):
        if time.time() - folder.stat().st_mtime > PATIENCE:
            return True
    return host == _host() and not _alive(int(process))


def _alive(process: int) -> bool:
    """Whether a process of this host may still run; always true on Windows, where asking would end it."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to another user
    return True
