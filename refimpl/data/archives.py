"""Read named files of a tar or zip archive; the content decides how it is packed, not the name."""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from refimpl.data.source import plain_name
from refimpl.data.unpack import LIMIT, Unpacked, decompress, read_zip
from refimpl.errors import DataError
from refimpl.files.sniff import ZIP, is_leftover, looks_like

_TAR_LIMIT = 1024 * 2**20  # bytes of a whole unpacked archive; CIFAR's are below 190 million


def read_members(archive: str | Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, unpacked content) of the files whose name, made plain by `plain_name`, is in `wanted`.

    The archive is read in one pass. Of two files with the same name the first counts; files that the archive
    lacks are left out. Raises `DataError` for a damaged archive.
    """
    path, seen = Path(archive), set[str]()
    for inside, data in _members(path, wanted):
        name = _name(inside)
        if name not in seen:
            seen.add(name)
            yield name, decompress(data, f"{path}: {name}", LIMIT)


def _name(inside: str) -> str:
    return plain_name(PurePosixPath(inside).name)


def _members(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    head = b""
    try:
        with path.open("rb") as raw:
            head = raw.read(64)
            raw.seek(0)
            if head.startswith(ZIP):
                yield from read_zip(raw, str(path), LIMIT, lambda names: _chosen(names, wanted))
                return
            stream = cast(BinaryIO, Unpacked(raw, str(path), _TAR_LIMIT))  # tarfile only ever calls read
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                yield from _from_tar(tar, wanted, str(path))
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: not a readable tar or zip archive ({error}){looks_like(head)}; fetch it again"
        ) from error


def _chosen(names: list[str], wanted: tuple[str, ...]) -> list[str]:
    return [name for name in names if _name(name) in wanted and not is_leftover(name)]


def _from_tar(tar: tarfile.TarFile, wanted: tuple[str, ...], who: str) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        if not member.isreg() or not _chosen([member.name], wanted):
            continue
        name = _name(member.name)
        if member.size > LIMIT:
            raise DataError(f"{who}: member {name} has {member.size} bytes, more than the {LIMIT} expected")
        file = tar.extractfile(member)
        data = b"" if file is None else file.read()
        if len(data) != member.size:
            raise DataError(f"{who}: truncated archive, in {name}; fetch it again")
        yield member.name, data
