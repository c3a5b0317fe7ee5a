"""Paths as users write them, with `~` for their home folder, and which of them are files of arrays."""

import os
from pathlib import Path

from refimpl.errors import InputError

OWN_DATA = ".npz"  # a data set whose name ends so is the path of a user's own arrays


def is_own_data(name: str) -> bool:
    """Whether the name of a data set is the path of a user's own file."""
    return name.lower().endswith(OWN_DATA)


def expanded(path: str | Path) -> Path:
    """The path with a leading `~` or `~NAME` replaced by the home folder it stands for, as shells do it.

    Raises `InputError` if there is no such home folder.
    """
    found = os.path.expanduser(path)
    if str(found).startswith("~"):
        raise InputError(f"{path}: ~ stands for no home folder here; write the folder out, or ./~ for a name")
    return Path(found)
