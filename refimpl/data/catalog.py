"""Data sets by name: where their files may be, how they are read, and the constants that normalise them.

`digits` is part of the package. The others are looked for under one folder, given by `--data-dir` or the
environment variable `REFIMPL_DATA`, which holds a folder per data set:

    mnist/       train-images-idx3-ubyte and the three others
    cifar-10/    data_batch_1..5, test_batch (and batches.meta);
                 or cifar-10-batches-py/, or the archive cifar-10-python.tar.gz;
                 or the binary version: the same with .bin, cifar-10-batches-bin/, cifar-10-binary.tar.gz
    cifar-100/   train, test (and meta), likewise; cifar-100-python or -binary as folder or .tar.gz
    omniglot/    images_background and images_evaluation, as .zip or as folders

Files may be packed with gzip, xz, bzip2 or zip, and archives may be tar or zip; their content decides which.
`places` says under which other names and in which nested folders they are found.

A name that ends in .npz is the path of a user's own arrays; see `arrays`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from refimpl.data import cifar, cifar_binary, places
from refimpl.data.archives import LIMIT, read_members
from refimpl.data.arrays import is_file_name, read_arrays
from refimpl.data.dataset import DataSet
from refimpl.data.digits import read_digits
from refimpl.data.idx import parse_idx
from refimpl.data.omniglot import FULL_INK, read_omniglot
from refimpl.data.unpack import read_unpacked
from refimpl.errors import DataError, InputError, nearest
from refimpl.files.paths import expanded

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGIT_NAMES = tuple(str(digit) for digit in range(10))

# Mean and standard deviation per channel of pixels divided by 255, over the training part, as published
# with the usual reference training scripts; 28x28 MNIST, CIFAR-10, CIFAR-100.
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
# Digits: no constants are published. These are round numbers that were not fitted to the data.
DIGITS_MEAN, DIGITS_STD = (0.3,), (0.4,)


def load(name: str, data_dir: str | Path | None = None) -> DataSet:
    """The data set `name`, read from under `data_dir` (default: the folder in REFIMPL_DATA), or a FILE.npz.

    Raises `InputError` for an unknown name and `DataError`, in one line, for files that are missing (saying
    where they were looked for) or not what they should be (naming the file).
    """
    if is_file_name(name):
        return read_arrays(expanded(name))
    if name not in _LOADERS:
        choices = f"{nearest(name, NAMES)}choose one of {', '.join(NAMES)}, or a FILE.npz"
        raise InputError(f"data set: unknown name {name!r}; {choices}")
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
    found = places.required("mnist", root)
    read = {file: (who, data) for file, who, data in _contents("mnist", found)}
    images, labels = [], []
    for part in (found.form.train, found.form.test):
        (pictures_file, pictures_data), (labels_file, labels_data) = (read[file] for file in part)
        pictures, digits = parse_idx(pictures_data, pictures_file, 3), parse_idx(labels_data, labels_file, 1)
        if len(pictures) != len(digits):
            raise DataError(f"{pictures_file}: {len(pictures)} images, but {part[1]}: {len(digits)} labels")
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
        folder=str(root.absolute()),
    )


def _cifar10(root: Path) -> DataSet:
    return _cifar("cifar10", root, CIFAR10_NAMES, CIFAR10_MEAN, CIFAR10_STD)


def _cifar100(root: Path) -> DataSet:
    names = tuple(f"class {number}" for number in range(100))
    return _cifar("cifar100", root, names, CIFAR100_MEAN, CIFAR100_STD)


def _cifar(
    name: str, root: Path, class_names: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> DataSet:
    found = places.required(name, root)
    form, classes = found.form, len(class_names)
    binary = form.test[0].endswith(".bin")
    batch = cifar_binary.parse_records if binary else cifar.parse_batch
    names = cifar_binary.parse_lines if binary else cifar.parse_names
    batches = {}
    for file, who, data in _contents(name, found):
        if file in form.extra:
            class_names = names(data, who, classes)
        else:
            batches[file] = batch(data, who, classes)
    present = tuple(file for file in form.files if file in batches)
    return DataSet(
        name,
        np.concatenate([batches[file].images for file in present]),
        np.concatenate([batches[file].labels for file in present]),
        class_names,
        mean=mean,
        std=std,
        n_train=sum(len(batches[file].labels) for file in present if file in form.train),
        note=f"only the published test part of {name} was found and used" if present != form.files else "",
        folder=str(root.absolute()),
    )


def _contents(name: str, found: places.Found) -> Iterator[tuple[str, str, bytes]]:
    """Yield (name, place, content) of the files of a data set, in order or in that of their archive.

    Loose files are read two at a time: xz takes seconds and lets other threads run. Raises `DataError`
    if an archive lacks files without which the others cannot be used.
    """
    form, seen = found.form, set[str]()
    if found.archived:
        for file, data in read_members(found.place, (*form.files, *form.extra)):
            seen.add(file)
            yield file, f"{found.place}: {file}", data
        if not form.serves(tuple(file for file in form.files if file in seen)):
            missing = tuple(file for file in form.files if file not in seen)
            raise places.lacking(name, found.place, missing)
        return
    with ThreadPoolExecutor(2) as pool:
        contents = pool.map(lambda path: read_unpacked(path, LIMIT), found.files.values())
        for (file, path), data in zip(found.files.items(), contents, strict=True):
            yield file, str(path), data


def _omniglot(root: Path) -> DataSet:
    found = places.required("omniglot", root)
    parts = {file: read_omniglot(found.files[file]) for file in found.present}
    offsets = np.cumsum([0, *(len(part.names) for part in parts.values())])
    pairs = zip(parts.values(), offsets, strict=False)
    return DataSet(
        "omniglot",
        np.concatenate([part.images for part in parts.values()])[:, None],
        np.concatenate([part.labels + offset for part, offset in pairs]),
        tuple(name for part in parts.values() for name in part.names),
        scale=FULL_INK,
        n_train=sum(len(parts[file].labels) for file in found.form.train if file in parts),
        note=f"only {found.files[found.present[0]].name} was found and used" if found.missing else "",
        folder=str(root.absolute()),
    )


_LOADERS: dict[str, Callable[[Path], DataSet]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "omniglot": _omniglot,
}
NAMES = tuple(_LOADERS)
