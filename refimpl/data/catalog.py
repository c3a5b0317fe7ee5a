"""Data sets by name, or by the path of a user's own .npz file; `sets` has the data sets with names."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from refimpl.data import places
from refimpl.data.arrays import read_arrays
from refimpl.data.dataset import DataSet
from refimpl.data.source import DataSource
from refimpl.errors import InputError, nearest
from refimpl.files.paths import OWN_DATA, expanded, is_own_data
from refimpl.registry import DATASETS


def load(name: str, data_dir: str | Path | None = None) -> DataSet:
    """The data set `name`, read from under `data_dir` (default: the folder in REFIMPL_DATA), or a FILE.npz.

    Raises `InputError` for an unknown name and `DataError`, in one line, for files that are missing (saying
    where they were looked for) or not what they should be (naming the file).
    """
    if is_own_data(name):
        return read_arrays(expanded(name))
    source = source_of("load", name)
    dataset = source.read(places.required(source, data_dir))
    if not source.forms or source.home:
        return replace(dataset, node_sizes=source.sizes)
    folder = places.given_root(source, data_dir).absolute()
    return replace(dataset, node_sizes=source.sizes, folder=str(folder))


def source_of(who: str, name: str) -> DataSource:
    """What is declared about the data set `name`; `InputError`, beginning with `who`, for an unknown name."""
    if name not in DATASETS:
        choices = f"{nearest(name, DATASETS)}choose one of {', '.join(DATASETS)}, or a FILE{OWN_DATA}"
        raise InputError(f"{who}: unknown data set {name!r}; {choices}")
    return cast(DataSource, DATASETS.classes()[name](name))
