"""Where the files of a data set may lie under the data folder."""

from __future__ import annotations

import os
from pathlib import Path

from refimpl.errors import DataError

ENVIRONMENT = "REFIMPL_DATA"

FOLDERS = {
    "mnist": ("mnist", "MNIST/raw"),
    "cifar10": ("cifar-10", "cifar-10-batches-py"),
    "cifar100": ("cifar-100", "cifar-100-python"),
    "omniglot": ("omniglot",),
}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
PACKED = ("", ".gz", ".xz")


def given_root(name: str, data_dir: str | Path | None) -> Path:
    """The data folder as given, or from REFIMPL_DATA; it need not exist. `DataError` if neither is set."""
    given = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT)
    if not given:
        raise DataError(
            f"{name}: no data folder set; give --data-dir FOLDER or set {ENVIRONMENT}, with the files in "
            f"FOLDER/{FOLDERS[name][0]} (the data set 'digits' needs none)"
        )
    return Path(given).expanduser()


def existing_root(name: str, data_dir: str | Path | None) -> Path:
    """The data folder, which must exist."""
    root = given_root(name, data_dir)
    if not root.is_dir():
        raise DataError(f"{name}: data folder {root} does not exist; give --data-dir or set {ENVIRONMENT}")
    return root


def folders(name: str, root: Path) -> list[Path]:
    """The folders of data set `name` that exist under `root`."""
    return [root / folder for folder in FOLDERS[name] if (root / folder).is_dir()]


def folder(name: str, root: Path) -> Path:
    """The first of them; `DataError` if there is none."""
    found = folders(name, root)
    if not found:
        raise nothing_found(name, root)
    return found[0]


def archive(name: str, root: Path) -> Path | None:
    """The archive of data set `name`, in `root` or in one of its folders."""
    if name not in ARCHIVES:
        return None
    places = [root, *folders(name, root)]
    return next((p / ARCHIVES[name] for p in places if (p / ARCHIVES[name]).is_file()), None)


def find(where: Path, name: str, endings: tuple[str, ...] = PACKED) -> Path | None:
    """The file `name` in the folder `where`, with the first of `endings` that exists."""
    return next((where / (name + end) for end in endings if (where / (name + end)).exists()), None)


def required(name: str, where: Path, *choices: str) -> Path:
    """The first file of `choices` in the folder `where`; `DataError` if there is none."""
    for choice in choices:
        if (path := find(where, choice)) is not None:
            return path
    raise DataError(f"{name}: {where} lacks {choices[0]} (plain or .gz); see 'refimpl data fetch {name}'")


def nothing_found(name: str, root: Path) -> DataError:
    """The error that says what was looked for and what to do."""
    places = [f"{place}/" for place in FOLDERS[name]]
    if name in ARCHIVES:
        places.append(ARCHIVES[name])
    return DataError(
        f"{name}: found nothing in {root}; looked for {' or '.join(places)}; "
        f"give --data-dir or set {ENVIRONMENT}, or see 'refimpl data fetch {name}'"
    )
