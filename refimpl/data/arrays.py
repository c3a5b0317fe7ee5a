"""A user's own labelled arrays, read from an .npz file."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refimpl.data.dataset import DataSet
from refimpl.errors import DataError
from refimpl.files.npz import member_names, read_members
from refimpl.files.paths import OWN_DATA
from refimpl.files.storage import NPZ_LIMIT, readable

_WHOLE, _PARTS = ("x", "y"), ("x_train", "y_train", "x_test", "y_test")


def read_arrays(path: str | Path, classes: int | None = None) -> DataSet:
    """The data set in an .npz file with arrays x and y, or x_train, y_train, x_test and y_test.

    x (n, features), (n, H, W) or (n, C, H, W): bytes (uint8) are pixels and divided by 255; other numbers are
    taken as they are, whole numbers as float32. y (n,): whole numbers from 0, every class at least once, or
    below `classes` where that is given: some of them may be missing then.
    Nothing is normalised: the user must decide from which samples the statistics would be taken.
    Raises `DataError`, in one line naming the file, for anything else; nothing in the file is executed.
    """
    path = Path(path)
    arrays = _read(path)
    names = tuple(arrays)
    parts = [_part(path, arrays, x, y) for x, y in zip(names[::2], names[1::2], strict=True)]
    if len({(*images.shape[1:], images.dtype) for images, _ in parts}) > 1:
        raise DataError(f"{path}: {names[0]} and {names[2]} differ in shape or type; make them alike")
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    classes = _classes(path, labels) if classes is None else classes
    pixels = images.dtype == np.uint8
    return DataSet(
        path.name,
        images,
        labels,
        tuple(f"class {number}" for number in range(classes)),
        scale=255.0 if pixels else 1.0,
        mean=(0.0,) * images.shape[1],
        std=(1.0,) * images.shape[1],
        n_train=len(parts[0][1]),
        note=f"{path.name}: {'bytes divided by 255' if pixels else 'values as they are'}, not normalised",
        folder=str(path.absolute().parent),
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays with known names; their sizes are checked before any of them is unpacked."""
    with readable(path):
        if not path.exists():
            raise DataError(f"{path}: no such file; give the path of an {OWN_DATA} file with arrays x and y")
        names = _names(path, member_names(path))
        found = dict(read_members(path, NPZ_LIMIT, names))
    return {name: found[name] for name in names}


def _names(path: Path, found: list[str]) -> tuple[str, ...]:
    """The names of the arrays to read: x and y, or those of a training and a test part."""
    for names in (_WHOLE, _PARTS):
        if set(names) <= set(found):
            return names
    listed = ", ".join(sorted(found)[:8]) or "none"
    raise DataError(f"{path}: expected arrays x and y (or {', '.join(_PARTS)}), found {listed}")


def _part(
    path: Path, arrays: dict[str, NDArray[Any]], x: str, y: str
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Images (n, C, H, W) and labels (n,) of the arrays called `x` and `y`."""
    images, labels = _images(path, x, arrays[x]), _labels(path, y, arrays[y])
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} samples in {x}, but {len(labels)} labels in {y}")
    return images, labels


def _images(path: Path, name: str, x: NDArray[Any]) -> NDArray[Any]:
    if x.ndim not in (2, 3, 4) or x.size == 0 or x.dtype.kind not in "biuf":
        raise DataError(
            f"{path}: expected {name} as numbers of shape (n, features), (n, H, W) or (n, C, H, W), "
            f"not empty; got {x.dtype} of shape {x.shape}"
        )
    if x.ndim == 4 and _channels_last(x.shape[1:]):
        raise DataError(
            f"{path}: {name} of shape {x.shape} looks like channels last; store {name}.transpose(0, 3, 1, 2)"
            f" or numpy.moveaxis({name}, -1, 1)"
        )
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        raise DataError(f"{path}: expected {name} as at most float64, got {x.dtype}; convert it first")
    native = x.astype(x.dtype.newbyteorder("="), copy=False)
    if native.dtype not in (np.uint8, np.float32, np.float64):
        native = native.astype(np.float32)
    middle = {2: (1, 1), 3: (1,), 4: ()}[x.ndim]
    return np.ascontiguousarray(native.reshape(len(x), *middle, *x.shape[1:]))


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether images of this shape are (H, W, C): grey, colour or colour with transparency come last."""
    first, middle, last = shape
    return last in (1, 3, 4) and first not in (1, 3) and min(first, middle) > last


def _labels(path: Path, name: str, y: NDArray[Any]) -> NDArray[np.int64]:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(
            f"{path}: expected {name} as whole numbers of shape (n,), got {y.dtype} of shape {y.shape}"
        )
    return y.astype(np.int64)


def _classes(path: Path, labels: NDArray[np.int64]) -> int:
    """Number of classes; every number from 0 up to the largest must occur."""
    present = np.unique(labels)
    if not np.array_equal(present, np.arange(len(present))):
        first = next(i for i, label in enumerate(present) if label != i)
        raise DataError(
            f"{path}: expected labels 0, 1, 2, ... without a gap, found {present[first]} where {first} "
            "was expected; store numpy.unique(y, return_inverse=True)[1]"
        )
    return len(present)
