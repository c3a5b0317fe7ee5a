"""Read the "binary version" of CIFAR-10 and CIFAR-100: records of label bytes and 3072 pixel bytes."""

from __future__ import annotations

import numpy as np

from refimpl.data.cifar import Batch
from refimpl.errors import DataError
from refimpl.files.sniff import decoded, looks_like

_PIXELS = 3 * 32 * 32
_COARSE = 20


def parse_records(data: bytes, who: str, classes: int) -> Batch:
    """The batch in the bytes of a `.bin` file.

    With `classes` 10 a record is a label and pixels; with 100 it is a coarse label, a fine label and pixels,
    and the fine label is used. Raises `DataError` starting with `who` unless the bytes are whole records, at
    least one, with labels in range.

    Source: the format description published with CIFAR (Krizhevsky 2009); the six files this layout gives for
    the images of the python version have the checksums of the published ones.
    """
    width = (1 if classes == 10 else 2) + _PIXELS
    if len(data) == 0 or len(data) % width:
        raise DataError(
            f"{who}: {len(data)} bytes are not a whole number of records of {width} bytes; "
            f"is this a whole CIFAR-{classes} file of the binary version?{looks_like(data)}"
        )
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    if classes == 100:
        _check_labels(records[:, 0], who, "coarse label", _COARSE)
    labels = records[:, width - _PIXELS - 1]
    _check_labels(labels, who, "label", classes)
    pixels = np.ascontiguousarray(records[:, width - _PIXELS :])
    return Batch(pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64))


def parse_lines(data: bytes, who: str, classes: int) -> tuple[str, ...]:
    """Class names of a `batches.meta.txt` or `fine_label_names.txt` file: its lines that are not empty."""
    try:
        text = decoded(data, "latin-1")
    except UnicodeDecodeError as error:
        raise DataError(f"{who}: not text with class names: {error.reason}") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != classes:
        raise DataError(f"{who}: expected {classes} lines with class names, got {len(names)}")
    return names


def _check_labels(labels: np.ndarray, who: str, what: str, classes: int) -> None:
    if labels.max() >= classes:
        position = int(np.argmax(labels >= classes))
        raise DataError(
            f"{who}: {what} {labels[position]} of record {position} is outside 0..{classes - 1}; "
            f"is this a CIFAR-{classes} file of the binary version?"
        )
