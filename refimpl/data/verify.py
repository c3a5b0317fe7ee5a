"""Check whether the files on this disk have the published content, however they are packed."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from refimpl.data import places
from refimpl.data.arrays import read_arrays
from refimpl.data.catalog import source_of
from refimpl.data.source import DataSource, md5
from refimpl.data.unpack import LIMIT, plain_name, read_members, read_unpacked
from refimpl.errors import DataError
from refimpl.files.paths import expanded, is_own_data


class Check(NamedTuple):
    """The result for one file, and the reason for it in words (`detail`).

    state: `ok`, `wrong`, `missing` (the other files cannot be used without it) or `absent` (they can).
    """

    file: str
    state: str
    detail: str


def verify(
    name: str,
    data_dir: str | Path | None = None,
    on_check: Callable[[Check, int], None] = lambda check, files: None,
) -> list[Check]:
    """Compare every file of data set `name` with its published checksum; nothing is changed.

    A user's own FILE.npz is read. Raises `InputError` for an unknown name and `DataError` if no
    data folder is set. `on_check` is called for each file, with the largest possible number of files.
    """
    if is_own_data(name):
        return [_own(expanded(name))]
    source = source_of("verify", name)
    root = places.given_root(source, data_dir)
    found = places.locate(source, root)
    if found is None:
        here = root / places.looked_for(source)[0]
        return [Check(str(here), "missing", f"nothing there; see 'refimpl data fetch {name}'")]
    checks = []
    for check in _archived(source, found) if found.archived else _loose(source, found):
        checks.append(check)
        on_check(check, len(found.form.files) + len(found.form.extra))
    return checks


def file_md5(path: Path) -> str:
    """MD5 of a file's bytes as they are, read in pieces. `DataError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def is_published(source: DataSource, path: Path) -> bool:
    """Whether a packed file of a data set has the content of the published one."""
    try:
        return source.contents.get(plain_name(path.name)) == source.digest(path)
    except DataError:
        return False


def _loose(source: DataSource, found: places.Found) -> Iterator[Check]:
    for file in (*found.form.files, *found.form.extra):
        path = found.files.get(file)
        if path is None:
            yield _not_there(found, file)
            continue
        try:
            digest = source.digest(path) if file in source.contents else ""
            data = b"" if digest else read_unpacked(path, LIMIT)
            yield _content(source, str(path), file, digest, data)
        except DataError as error:
            yield Check(str(path), "wrong", str(error))


def _archived(source: DataSource, found: places.Found) -> Iterator[Check]:
    """One check if the archive is the published one, else a check for each of its files."""
    form, archive = found.form, found.place
    published = source.contents.get(form.archive or "")
    if file_md5(archive) == published:
        yield Check(str(archive), "ok", f"md5 {published}")
        return
    seen = []
    try:
        for file, data in read_members(archive, (*form.files, *form.extra)):
            seen.append(file)
            yield _content(source, f"{archive}: {file}", file, md5(data), data)
    except DataError as error:
        yield Check(str(archive), "wrong", str(error))
        return
    state = "absent" if form.serves(tuple(file for file in form.files if file in seen)) else "missing"
    for file in form.files:
        if file not in seen:
            detail = f"not in the archive; see 'refimpl data fetch {found.name}'"
            yield Check(f"{archive}: {file}", state, detail)


def _not_there(found: places.Found, file: str) -> Check:
    where, advice = str(found.place / file), f"see 'refimpl data fetch {found.name}'"
    if file in found.form.extra:
        return Check(where, "absent", "not needed: names of the classes")
    if found.serves:
        part = f"{found.present[0]} serves without it, as a part of {found.name}"
        return Check(where, "absent", f"{part}; {advice}")
    return Check(where, "missing", f"not there; {advice}")


def _own(path: Path) -> Check:
    try:
        data = read_arrays(path)
    except DataError as error:
        return Check(str(path), "wrong", str(error))
    return Check(str(path), "ok", f"{len(data)} samples of shape {data.shape}, {data.classes} classes")


def _content(source: DataSource, where: str, file: str, digest: str, data: bytes) -> Check:
    """Compare the digest of a file with the published one; a file without one is described by its data."""
    if file not in source.contents:
        return Check(where, "ok", source.describe(where, file, data))
    published = source.contents[file]
    if digest == published:
        return Check(where, "ok", f"md5 {published}")
    return Check(where, "wrong", f"expected md5 {published}, got {digest}; delete it and fetch it again")
