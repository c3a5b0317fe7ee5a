"""Where the files of a data set lie under the data folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from refimpl.data.forms import FORMS, Form
from refimpl.errors import DataError
from refimpl.files.paths import expanded

ENVIRONMENT = "REFIMPL_DATA"


class Found(NamedTuple):
    """A data set on this disk: its form, and the folder with its loose files or the archive they are in."""

    form: Form
    place: Path
    files: dict[str, Path]
    archived: bool = False

    @property
    def present(self) -> tuple[str, ...]:
        """The needed files that are there; an archive is taken to be complete."""
        return tuple(file for file in self.form.files if self.archived or file in self.files)

    @property
    def missing(self) -> tuple[str, ...]:
        """The needed files that are not there."""
        return tuple(file for file in self.form.files if file not in self.present)

    @property
    def serves(self) -> bool:
        """Whether what is there makes a data set, if only a part of the published one."""
        return self.form.serves(self.present)


def given_root(name: str, data_dir: str | Path | None) -> Path:
    """The data folder as given, or from REFIMPL_DATA; it need not exist. `DataError` if neither is set."""
    given = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT)
    if not given:
        raise DataError(
            f"{name}: no data folder set; give --data-dir FOLDER or set {ENVIRONMENT}, with the files in "
            f"FOLDER/{FORMS[name][0].folders[0]} (the data set 'digits' needs none)"
        )
    return expanded(given)


def existing_root(name: str, data_dir: str | Path | None) -> Path:
    """The data folder, which must exist."""
    root = given_root(name, data_dir)
    if not root.is_dir():
        raise DataError(f"{name}: data folder {root} does not exist; give --data-dir or set {ENVIRONMENT}")
    return root


def locate(name: str, root: Path) -> Found | None:
    """Data set `name` under `root`: the first complete form, else the first that serves, else any trace.

    Loose files go before archives. Nothing is read.
    """
    found = [*_loose(name, root), *_archived(name, root)]
    return max(found, key=lambda one: (not one.missing, one.serves), default=None)


def required(name: str, root: Path) -> Found:
    """Data set `name` under `root`, in a form that serves; otherwise `DataError` says what was looked for."""
    found = locate(name, root)
    if found is None:
        raise nothing_found(name, root)
    if not found.serves:
        raise lacking(name, found.place, found.missing)
    return found


def find(where: Path, name: str, endings: tuple[str, ...]) -> Path | None:
    """The file `name` in the folder `where`, with the first of `endings` that exists.

    MNIST's files also go by names with a dot, `train-images.idx3-ubyte`.
    """
    spellings = dict.fromkeys((name, name.replace("-idx", ".idx")))
    paths = (where / (spelling + end) for spelling in spellings for end in endings)
    return next((path for path in paths if path.exists()), None)


def looked_for(name: str) -> tuple[str, ...]:
    """The folders and archives, relative to the data folder, in which data set `name` is looked for."""
    folders = [f"{folder}/" for form in FORMS[name] for folder in form.folders]
    archives = [form.archive for form in FORMS[name] if form.archive is not None]
    return tuple(dict.fromkeys(folders + archives))


def nothing_found(name: str, root: Path) -> DataError:
    """The error that says what was looked for and what to do."""
    return DataError(
        f"{name}: found nothing in {root}; looked for {' or '.join(looked_for(name))}; "
        f"give --data-dir or set {ENVIRONMENT}, or see 'refimpl data fetch {name}'"
    )


def lacking(name: str, place: Path, missing: tuple[str, ...]) -> DataError:
    """The error that names the missing files."""
    return DataError(f"{name}: {place} lacks {', '.join(missing)}; see 'refimpl data fetch {name}'")


def _loose(name: str, root: Path) -> Iterator[Found]:
    for form in FORMS[name]:
        for folder in (root / folder for folder in form.folders):
            paths = {file: find(folder, file, form.endings) for file in (*form.files, *form.extra)}
            files = {file: path for file, path in paths.items() if path is not None}
            if any(file in files for file in form.files):
                yield Found(form, folder, files)


def _archived(name: str, root: Path) -> Iterator[Found]:
    for form in FORMS[name]:
        if form.archive is not None:
            for place in (root, *(root / folder for folder in form.folders)):
                if (place / form.archive).is_file():
                    yield Found(form, place / form.archive, {}, archived=True)
