"""Read files of a zip archive, each up to a limit of bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from refimpl.errors import DataError
from refimpl.files.npz import COMPRESSIONS, ZIP_DAMAGE
from refimpl.files.sniff import is_leftover

COUNT_LIMIT = 200_000  # files in one archive; Omniglot's larger one has 20 251


def read_zip(
    file: Path | BinaryIO, who: str, limit: int, choose: Callable[[list[str]], Iterable[str]]
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files of a zip archive that `choose` picks from their names, in its order.

    The names have `/` between folders, also if Windows wrote backslashes. Extra files that macOS adds are
    left out. Raises `DataError` starting with `who` for a damaged archive and a file above `limit` bytes.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > COUNT_LIMIT:
                raise DataError(f"{who}: more than {COUNT_LIMIT} files in it")
            named = {entry.filename.replace("\\", "/"): entry for entry in entries}
            files = [name for name in named if not name.endswith("/") and not is_leftover(name)]
            for name in choose(files):
                yield name, _content(archive, named[name], f"{who}: {name!a}", limit)
    except DataError:
        raise
    except (*ZIP_DAMAGE, OSError) as error:
        raise DataError(
            f"{who}: not a readable zip archive ({type(error).__name__}); fetch it again"
        ) from error


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, who: str, limit: int) -> bytes:
    if entry.compress_type not in COMPRESSIONS:
        raise NotImplementedError(entry.compress_type)
    if entry.file_size > limit:
        raise DataError(f"{who} has more than the {limit} bytes expected at most")
    with archive.open(entry) as file:
        return file.read(limit)
