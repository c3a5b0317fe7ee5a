"""Read the "python version" of CIFAR-10 and CIFAR-100: batches of 32x32 colour images in pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refimpl.data.archives import LIMIT
from refimpl.data.pickled import read_pickle
from refimpl.data.unpack import read_unpacked
from refimpl.errors import DataError

_PIXELS = 3 * 32 * 32


class Batch(NamedTuple):
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of one batch file."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_batch(path: str | Path, classes: int) -> Batch:
    """One batch file, plain or packed (by content).

    `classes` is 10 (key `labels`) or 100 (key `fine_labels`). Raises `DataError` naming the file unless
    it holds exactly an array of n x 3072 bytes and n labels from 0 to classes - 1.

    Source: the format description published with CIFAR (Krizhevsky 2009); verified on its files.
    """
    path = Path(path)
    return parse_batch(read_unpacked(path, LIMIT), str(path), classes)


def parse_batch(data: bytes, who: str, classes: int) -> Batch:
    """The batch in the pickle bytes `data`; see `read_batch`."""
    content = _dictionary(data, who)
    key = "labels" if classes == 10 else "fine_labels"
    for name in ("data", key):
        if name not in content:
            raise DataError(
                f"{who}: no entry {name!r}; is this a CIFAR-{classes} batch of the python version?"
            )
    images = content["data"]
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != _PIXELS:
        found = f"shape {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{who}: expected 'data' as an array of shape (n, {_PIXELS}), got {found}")
    labels = _labels(content[key], who, key, classes)
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(f"{who}: {len(images)} images but {len(labels)} labels")
    return Batch(images.reshape(-1, 3, 32, 32), labels)


def read_names(path: str | Path, classes: int) -> tuple[str, ...]:
    """Class names from a `batches.meta` (10 classes) or `meta` (100) file."""
    path = Path(path)
    return parse_names(read_unpacked(path, LIMIT), str(path), classes)


def parse_names(data: bytes, who: str, classes: int) -> tuple[str, ...]:
    """Class names in the pickle bytes `data`; see `read_names`."""
    names = _dictionary(data, who).get("label_names" if classes == 10 else "fine_label_names")
    if not isinstance(names, list) or len(names) != classes:
        raise DataError(f"{who}: expected a list of {classes} class names")
    return tuple(_text(name, who) for name in names)


def _dictionary(data: bytes, who: str) -> dict[str, Any]:
    content = read_pickle(data, who)
    if not isinstance(content, dict):
        raise DataError(f"{who}: expected a pickled dictionary, got {type(content).__name__}")
    return content


def _labels(value: object, who: str, key: str, classes: int) -> NDArray[np.int64]:
    if not isinstance(value, list) or not all(type(label) is int for label in value):
        raise DataError(f"{who}: expected {key!r} as a list of whole numbers")
    for position, label in enumerate(value):
        if not 0 <= label < classes:
            raise DataError(
                f"{who}: label {_short(label)} at position {position} is outside 0..{classes - 1}"
            )
    return np.array(value, dtype=np.int64)


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**12 else "of more than 12 digits"


def _text(name: object, who: str) -> str:
    if isinstance(name, bytes):
        return name.decode("latin-1")
    if not isinstance(name, str):
        raise DataError(f"{who}: expected class names as text, got {type(name).__name__}")
    return name
