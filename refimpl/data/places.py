"""Find the files of a data set under the data folder."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from refimpl.data.source import DataSource, Form
from refimpl.data.unpack import LIMIT, plain_name, read_members, read_unpacked
from refimpl.errors import DataError
from refimpl.files.paths import expanded
from refimpl.files.sniff import is_leftover

ENVIRONMENT = "REFIMPL_DATA"
_ANY = ("raw", "archive", "python")  # what folders and archives in a data set's own folder may be called
_DEPTH = 3  # levels of nested folders that are searched


class Found(NamedTuple):
    """A data set on this disk: its form, and the folder or the archive that contains its files."""

    name: str
    form: Form
    place: Path
    files: dict[str, Path]
    archived: bool = False

    @property
    def present(self) -> tuple[str, ...]:
        """The needed files that exist; an archive is assumed to be complete."""
        return tuple(file for file in self.form.files if self.archived or file in self.files)

    @property
    def missing(self) -> tuple[str, ...]:
        """The needed files that are missing."""
        return tuple(file for file in self.form.files if file not in self.present)

    @property
    def serves(self) -> bool:
        """Whether the files that exist make a data set, even if only a part of the published one."""
        return self.form.serves(self.present)

    def contents(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield (file, place, content) of the files, in order or in that of their archive.

        Loose files are read two at a time: xz takes seconds and lets other threads run. Raises `DataError`
        if an archive lacks files without which the others cannot be used.
        """
        if not self.archived:
            with ThreadPoolExecutor(2) as pool:
                contents = pool.map(lambda path: read_unpacked(path, LIMIT), self.files.values())
                for (file, path), data in zip(self.files.items(), contents, strict=True):
                    yield file, str(path), data
            return
        seen = set[str]()
        for file, data in read_members(self.place, (*self.form.files, *self.form.extra)):
            seen.add(file)
            yield file, f"{self.place}: {file}", data
        if not self.form.serves(tuple(file for file in self.form.files if file in seen)):
            raise lacking(self.name, self.place, tuple(f for f in self.form.files if f not in seen))


def given_root(source: DataSource, data_dir: str | Path | None) -> Path:
    """The folder for the files of `source`: their home, or the data folder, which need not exist.

    The data folder is the one given, or that in REFIMPL_DATA; `DataError` if neither is set.
    """
    given = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT)
    if source.home is not None or not source.forms:
        return source.home or Path()
    if not given:
        raise DataError(
            f"{source.name}: no data folder set; give --data-dir FOLDER or set {ENVIRONMENT}, with the files "
            f"in FOLDER/{source.forms[0].folders[0]} (the data set 'digits' needs none)"
        )
    return expanded(given)


def locate(source: DataSource, root: Path) -> Found | None:
    """Find the files of `source` under `root`: the first complete form, else a usable one, else any files.

    Unpacked files are preferred to archives. No file is read.
    """
    if not source.forms:
        return Found(source.name, Form((), ()), root, {})
    try:
        found = [*_loose(source, root), *_archived(source, root)]
    except OSError as error:
        raise DataError(f"{source.name}: {error.filename}: cannot be read: {error.strerror}") from error
    return max(found, key=lambda one: (not one.missing, one.serves), default=None)


def required(source: DataSource, data_dir: str | Path | None) -> Found:
    """The files of `source` in a usable form; otherwise a `DataError` says what was looked for, and where."""
    name, root = source.name, given_root(source, data_dir)
    if not root.is_dir():
        raise DataError(f"{name}: data folder {root} does not exist; give --data-dir or set {ENVIRONMENT}")
    found = locate(source, root)
    if found is None:
        raise DataError(
            f"{name}: found nothing in {root}; looked for {' or '.join(looked_for(source))}; "
            f"give --data-dir or set {ENVIRONMENT}, or see 'refimpl data fetch {name}'"
        )
    if not found.serves:
        raise lacking(name, found.place, found.missing)
    return found


def looked_for(source: DataSource) -> tuple[str, ...]:
    """The folders and archives, relative to the data folder, that may have the files of `source`."""
    folders = [f"{folder}/" for form in source.forms for folder in form.folders]
    archives = [form.archive for form in source.forms if form.archive is not None]
    return () if source.home else tuple(dict.fromkeys(folders + archives))


def lacking(name: str, place: Path, missing: tuple[str, ...]) -> DataError:
    """The error that names the missing files."""
    return DataError(f"{name}: {place} lacks {', '.join(missing)}; see 'refimpl data fetch {name}'")


def _loose(source: DataSource, root: Path) -> Iterator[Found]:
    for form in source.forms:
        for place in _places(form, root):
            files = _files(form, place)
            if any(file in files for file in form.files):
                yield Found(source.name, form, place, files)


def _archived(source: DataSource, root: Path) -> Iterator[Found]:
    for form in source.forms:
        for place in (root, *_places(form, root)) if form.archives else ():
            names = form.archives if place == root else form.archives + _ANY
            paths = [path for path in _entries(place) if plain_name(path.name) in names and path.is_file()]
            for path in sorted(paths, key=lambda path: path.name != form.archive):
                yield Found(source.name, form, path, {}, archived=True)


def _places(form: Form, root: Path) -> Iterator[Path]:
    """The folders in which the files may be, the nearest first.

    Unpackers put a folder into another of the same name, and sites give the folder other names. The data
    folder itself is one of them if it has the name of the data set.
    """
    names, places = form.names, [root]
    if plain_name(os.path.basename(os.path.realpath(root))) in names:
        names += _ANY
        yield root
    for _ in range(_DEPTH):
        places = [sub for place in places for sub in _subfolders(place, names)]
        yield from places
        names = form.names + _ANY


def _subfolders(place: Path, names: tuple[str, ...]) -> list[Path]:
    paths = [path for path in _entries(place) if plain_name(path.name) in names and path.is_dir()]
    return sorted(paths, key=lambda path: names.index(plain_name(path.name)))


def _files(form: Form, place: Path) -> dict[str, Path]:
    """The files of the form in the folder `place`, under any of their names and packed in any way."""
    entries = _entries(place)
    found = {file: _best(form, file, entries) for file in (*form.files, *form.extra)}
    return {file: path for file, path in found.items() if path is not None}


def _best(form: Form, file: str, entries: list[Path], nested: bool = False) -> Path | None:
    """The entry that is `file`, or an entry in a folder of that name, as unpackers make them.

    A folder of pictures is preferred to its archive; otherwise files are preferred to folders, and unpacked
    files to packed ones.
    """
    named = [path for path in entries if plain_name(path.name) == file]
    folders = [path for path in named if path.is_dir() and not nested]
    deeper = [path for f in folders if (path := _best(form, file, _entries(f), nested=True)) is not None]
    usable = [path for path in named if form.unpacked or not path.is_dir()]
    usable.sort(key=lambda path: (path.is_dir() != form.unpacked, len(path.name)))
    return next(iter(deeper + usable if form.unpacked else usable + deeper), None)


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder in the order of their names, without the extra files that macOS adds."""
    return sorted(p for p in folder.iterdir() if not is_leftover(p.name)) if folder.is_dir() else []
