"""Are the files on this disk the published ones? By what they hold, however they are packed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from refimpl.data import places
from refimpl.data.cifar import LIMIT
from refimpl.data.omniglot import read_drawings
from refimpl.data.sources import CONTENTS, DOWNLOADS
from refimpl.data.unpack import decompress, read_unpacked
from refimpl.errors import DataError, one_of


class Check(NamedTuple):
    """One file: `state` is `ok`, `missing` or `wrong`, `detail` says why in words."""

    file: str
    state: str
    detail: str


def verify(name: str, data_dir: str | Path | None = None) -> list[Check]:
    """Compares every file of data set `name` with its published checksum; nothing is changed.

    Raises `InputError` for an unknown name and `DataError` if no data folder is set.
    """
    one_of("verify", "data set", name, tuple(CONTENTS))
    if name == "digits":
        return list(_embedded())
    root = places.given_root(name, data_dir)
    folders = places.folders(name, root)
    archive = places.archive(name, root)
    loose = any(places.find(folder, file) for folder in folders for file in CONTENTS[name])
    if archive is not None and not loose:
        return [_compare(str(archive), file_md5(archive), DOWNLOADS[name][0].md5)]
    folder = folders[0] if folders else root / places.FOLDERS[name][0]
    return [_check_file(name, folder, file, md5) for file, md5 in CONTENTS[name].items()]


def file_md5(path: Path) -> str:
    """MD5 of a file's bytes as they are, read in pieces. `DataError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, _md5).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def picture_digest(path: Path) -> str:
    """MD5 over path and MD5 of every PNG of an Omniglot zip or folder, in path order.

    The published zip files have MD5s of their own, but an unpacked or re-packed copy holds the same pictures.
    """
    total = _md5()
    for name, data in read_drawings(path):
        total.update(name.encode() + b"\0" + hashlib.md5(data, usedforsecurity=False).digest())
    return total.hexdigest()


def _check_file(name: str, folder: Path, file: str, md5: str) -> Check:
    pictures = name == "omniglot"
    path = places.find(folder, file, ("", ".zip") if pictures else places.PACKED)
    if path is None:
        return Check(str(folder / file), "missing", f"not there; see 'refimpl data fetch {name}'")
    try:
        found = picture_digest(path) if pictures else _hash(read_unpacked(path, LIMIT))
    except DataError as error:
        return Check(str(path), "wrong", str(error))
    return _compare(str(path), found, md5)


def _embedded() -> Iterator[Check]:
    for file, md5 in CONTENTS["digits"].items():
        raw = (files("refimpl.data.digits") / file).read_bytes()
        try:
            yield _compare(file, _hash(decompress(raw, file, LIMIT)), md5)
        except DataError as error:
            yield Check(file, "wrong", str(error))


def _compare(file: str, found: str, published: str) -> Check:
    if found == published:
        return Check(file, "ok", f"md5 {published}")
    return Check(file, "wrong", f"expected md5 {published}, got {found}; delete it and fetch it again")


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def _hash(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
