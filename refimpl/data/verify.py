"""Check whether the files on this disk have the published content, however they are packed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from refimpl.data import cifar_binary, places
from refimpl.data.archives import LIMIT, read_members
from refimpl.data.arrays import is_file_name, read_arrays
from refimpl.data.forms import plain_name
from refimpl.data.omniglot import read_drawings
from refimpl.data.sources import ARCHIVES, CONTENTS
from refimpl.data.unpack import decompress, read_unpacked
from refimpl.errors import DataError, InputError, nearest
from refimpl.files.paths import expanded


class Check(NamedTuple):
    """One file: `detail` says why in words.

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
    data folder is set. `on_check` is called for each file outside the package, with the largest possible
    number of files.
    """
    if is_file_name(name):
        return [_own(expanded(name))]
    if name not in CONTENTS:
        choices = f"{nearest(name, CONTENTS)}choose one of {', '.join(CONTENTS)}, or a FILE.npz"
        raise InputError(f"verify: unknown data set {name!r}; {choices}")
    if name == "digits":
        return list(_embedded())
    root = places.given_root(name, data_dir)
    found = places.locate(name, root)
    if found is None:
        here = root / places.looked_for(name)[0]
        return [Check(str(here), "missing", f"nothing there; see 'refimpl data fetch {name}'")]
    checks = []
    for check in _archived(name, found) if found.archived else _loose(name, found):
        checks.append(check)
        on_check(check, len(found.form.files) + len(found.form.extra))
    return checks


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
    Paths count from the set, `images_background` or `images_evaluation`, wherever that lies.
    """
    total, pictures = _md5(), plain_name(path.name)
    for name, data in read_drawings(path):
        inside = "/".join((pictures, *PurePosixPath(name).parts[-3:]))
        total.update(inside.encode() + b"\0" + hashlib.md5(data, usedforsecurity=False).digest())
    return total.hexdigest()


def is_published(name: str, path: Path) -> bool:
    """Whether a packed file of data set `name` has the content of the published one."""
    md5 = CONTENTS.get(name, {}).get(plain_name(path.name))
    try:
        return md5 == (picture_digest(path) if name == "omniglot" else _hash(read_unpacked(path, LIMIT)))
    except DataError:
        return False


def _loose(name: str, found: places.Found) -> Iterator[Check]:
    for file in (*found.form.files, *found.form.extra):
        path = found.files.get(file)
        if path is None:
            yield _not_there(name, found, file)
            continue
        try:
            if name == "omniglot":
                yield _compare(str(path), picture_digest(path), CONTENTS[name][file])
            else:
                yield _content(name, str(path), file, read_unpacked(path, LIMIT))
        except DataError as error:
            yield Check(str(path), "wrong", str(error))


def _archived(name: str, found: places.Found) -> Iterator[Check]:
    """One check if the archive is the published one, else a check for each of its files."""
    form, archive = found.form, found.place
    published = ARCHIVES.get(form.archive or "")
    if file_md5(archive) == published:
        yield Check(str(archive), "ok", f"md5 {published}")
        return
    seen = []
    try:
        for file, data in read_members(archive, (*form.files, *form.extra)):
            seen.append(file)
            yield _content(name, f"{archive}: {file}", file, data)
    except DataError as error:
        yield Check(str(archive), "wrong", str(error))
        return
    state = "absent" if form.serves(tuple(file for file in form.files if file in seen)) else "missing"
    for file in form.files:
        if file not in seen:
            yield Check(f"{archive}: {file}", state, f"not in the archive; see 'refimpl data fetch {name}'")


def _not_there(name: str, found: places.Found, file: str) -> Check:
    where, advice = str(found.place / file), f"see 'refimpl data fetch {name}'"
    if file in found.form.extra:
        return Check(where, "absent", "not needed: names of the classes")
    if found.serves:
        return Check(where, "absent", f"{found.present[0]} serves without it, as a part of {name}; {advice}")
    return Check(where, "missing", f"not there; {advice}")


def _content(name: str, where: str, file: str, data: bytes) -> Check:
    if file in CONTENTS[name]:
        return _compare(where, _hash(data), CONTENTS[name][file])
    names = cifar_binary.parse_lines(data, where, 10 if name == "cifar10" else 100)
    return Check(where, "ok", f"names of {len(names)} classes; no checksum known")


def _own(path: Path) -> Check:
    try:
        data = read_arrays(path)
    except DataError as error:
        return Check(str(path), "wrong", str(error))
    return Check(str(path), "ok", f"{len(data)} samples of shape {data.shape}, {data.classes} classes")


def _embedded() -> Iterator[Check]:
    for file, md5 in CONTENTS["digits"].items():
        raw = (files("refimpl.data.digits") / file).read_bytes()
        try:
            yield _compare(f"digits/{file}", _hash(decompress(raw, file, LIMIT)), md5)
        except DataError as error:
            yield Check(f"digits/{file}", "wrong", str(error))


def _compare(file: str, found: str, published: str) -> Check:
    if found == published:
        return Check(file, "ok", f"md5 {published}")
    return Check(file, "wrong", f"expected md5 {published}, got {found}; delete it and fetch it again")


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def _hash(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
