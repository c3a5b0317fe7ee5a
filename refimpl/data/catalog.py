"""Data sets by name: where their files may lie, how they are read, and the constants they are normalised by.

`digits` is part of the package. The others are looked for under one folder, given by `--data-dir` or the
environment variable `REFIMPL_DATA`, which holds a folder per data set:

    mnist/       train-images-idx3-ubyte and the three others, plain or .gz
    cifar-10/    data_batch_1..5, test_batch (and batches.meta), plain, .gz or .xz;
                 or cifar-10-batches-py/, or the archive cifar-10-python.tar.gz
    cifar-100/   train, test (and meta), likewise; or cifar-100-python/, or cifar-100-python.tar.gz
    omniglot/    images_background and images_evaluation, as .zip or as folders
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from refimpl.data import cifar, places
from refimpl.data.dataset import DataSet
from refimpl.data.digits import read_digits
from refimpl.data.idx import read_idx
from refimpl.data.omniglot import FULL_INK, read_omniglot
from refimpl.data.unpack import read_unpacked
from refimpl.errors import DataError, one_of

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGIT_NAMES = tuple(str(digit) for digit in range(10))

# Mean and standard deviation per channel of pixels divided by 255, over the training part, as published
# with the usual reference training scripts; 28x28 MNIST, CIFAR-10, CIFAR-100.
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
# Digits: no constants are published. These round numbers are fixed here and were fitted to nothing.
DIGITS_MEAN, DIGITS_STD = (0.3,), (0.4,)


def load(name: str, data_dir: str | Path | None = None) -> DataSet:
    """The data set `name`, read from under `data_dir` (default: the folder in REFIMPL_DATA).

    Raises `InputError` for an unknown name and `DataError`, in one line, for files that are missing (saying
    where they were looked for) or not what they should be (naming the file).
    """
    one_of("data set", "name", name, NAMES)
    return (
        _LOADERS[name](Path()) if name == "digits" else _LOADERS[name](places.existing_root(name, data_dir))
    )


def _digits(_: Path) -> DataSet:
    images, labels = read_digits()
    return DataSet(
        "digits",
        images[:, None],
        labels.astype(np.int64),
        DIGIT_NAMES,
        scale=16.0,
        mean=DIGITS_MEAN,
        std=DIGITS_STD,
        n_train=len(labels),
        note="8x8 digits of the UCI repository (its test part of 1797 images), embedded in the package",
    )


def _mnist(root: Path) -> DataSet:
    folder = places.folder("mnist", root)
    images, labels = [], []
    for part in ("train", "t10k"):
        pictures_file = places.required(
            "mnist", folder, f"{part}-images-idx3-ubyte", f"{part}-images.idx3-ubyte"
        )
        labels_file = places.required(
            "mnist", folder, f"{part}-labels-idx1-ubyte", f"{part}-labels.idx1-ubyte"
        )
        pictures, digits = read_idx(pictures_file, 3), read_idx(labels_file, 1)
        if len(pictures) != len(digits):
            raise DataError(
                f"{pictures_file}: {len(pictures)} images, but {labels_file.name}: {len(digits)} labels"
            )
        if pictures.shape[1:] != (28, 28):
            raise DataError(f"{pictures_file}: expected images of 28x28 pixels, got {pictures.shape[1:]}")
        if len(digits) and digits.max() > 9:
            raise DataError(
                f"{labels_file}: label {digits.max()} at position {digits.argmax()} is outside 0..9"
            )
        images.append(pictures)
        labels.append(digits)
    return DataSet(
        "mnist",
        np.concatenate(images)[:, None],
        np.concatenate(labels).astype(np.int64),
        DIGIT_NAMES,
        mean=MNIST_MEAN,
        std=MNIST_STD,
        n_train=len(labels[0]),
    )


def _cifar10(root: Path) -> DataSet:
    train = tuple(f"data_batch_{number}" for number in range(1, 6))
    return _cifar("cifar10", root, train, "batches.meta", CIFAR10_NAMES, CIFAR10_MEAN, CIFAR10_STD)


def _cifar100(root: Path) -> DataSet:
    names = tuple(f"class {number}" for number in range(100))
    return _cifar("cifar100", root, ("train",), "meta", names, CIFAR100_MEAN, CIFAR100_STD)


def _cifar(
    name: str,
    root: Path,
    train: tuple[str, ...],
    meta: str,
    class_names: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> DataSet:
    test = "test_batch" if name == "cifar10" else "test"
    place, files = _cifar_files(name, root, (*train, test, meta))
    batches = {}
    for file, data in files:
        if file == meta:
            class_names = cifar.parse_names(data, f"{place}: {file}", len(class_names))
        else:
            batches[file] = cifar.parse_batch(data, f"{place}: {file}", len(class_names))
    found = [file for file in (*train, test) if file in batches]
    missing = [file for file in (*train, test) if file not in batches]
    if missing and found != [test]:
        raise DataError(f"{name}: {place} lacks {', '.join(missing)}; see 'refimpl data fetch {name}'")
    return DataSet(
        name,
        np.concatenate([batches[file].images for file in found]),
        np.concatenate([batches[file].labels for file in found]),
        class_names,
        mean=mean,
        std=std,
        n_train=sum(len(batches[file].labels) for file in found if file != test),
        note=f"only the published test part of {name} was found and used" if missing else "",
    )


def _cifar_files(name: str, root: Path, wanted: tuple[str, ...]) -> tuple[Path, Iterator[tuple[str, bytes]]]:
    """Where the files of a CIFAR data set are, and (name, content) of those of `wanted` that are there."""
    for folder in places.folders(name, root):
        files = {file: path for file in wanted if (path := places.find(folder, file)) is not None}
        if files:
            return folder, _unpacked(files)
    archive = places.archive(name, root)
    if archive is None:
        raise places.nothing_found(name, root)
    return archive, cifar.read_members(archive, wanted)


def _unpacked(files: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    """(name, content) in order, two files at a time: xz takes seconds and lets other threads run."""
    with ThreadPoolExecutor(2) as pool:
        yield from zip(
            files, pool.map(lambda path: read_unpacked(path, cifar.LIMIT), files.values()), strict=True
        )


def _omniglot(root: Path) -> DataSet:
    folder = places.folder("omniglot", root)
    parts = [places.find(folder, part, ("", ".zip")) for part in ("images_background", "images_evaluation")]
    found = [read_omniglot(part) for part in parts if part is not None]
    if not found:
        raise places.nothing_found("omniglot", root)
    offsets = np.cumsum([0, *(len(part.names) for part in found)])
    return DataSet(
        "omniglot",
        np.concatenate([part.images for part in found])[:, None],
        np.concatenate([part.labels + offset for part, offset in zip(found, offsets, strict=False)]),
        tuple(name for part in found for name in part.names),
        scale=FULL_INK,
        n_train=0 if parts[0] is None else len(found[0].labels),
        note=""
        if len(found) == 2
        else f"only {next(p for p in parts if p is not None).name} was found and used",
    )


_LOADERS: dict[str, Callable[[Path], DataSet]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "omniglot": _omniglot,
}
NAMES = tuple(_LOADERS)
