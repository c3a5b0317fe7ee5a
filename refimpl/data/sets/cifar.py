"""CIFAR-10 and CIFAR-100: 32x32 colour images, in the python version (pickles) or the binary version.

Source: the format description published with CIFAR (Krizhevsky 2009); verified on its files.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refimpl.data.dataset import DataSet
from refimpl.data.pickled import read_pickle
from refimpl.data.places import Found
from refimpl.data.source import About, DataSource, Form, files_at
from refimpl.errors import DataError
from refimpl.files.sniff import decoded, looks_like
from refimpl.registry import DATASETS

_PIXELS = 3 * 32 * 32
_COARSE = 20
_ADDRESSES = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_LICENCE = "none stated; the authors ask for the citation"
_CITATION = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"


class Batch(NamedTuple):
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64 of one batch file."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


# --- the python version


def parse_batch(data: bytes, who: str, classes: int) -> Batch:
    """The batch in the pickle bytes `data`, whose labels are `labels` (10 classes) or `fine_labels` (100).

    Raises `DataError` starting with `who` unless it has exactly an array of n x 3072 bytes and n labels from
    0 to classes - 1.
    """
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


def parse_names(data: bytes, who: str, classes: int) -> tuple[str, ...]:
    """Class names in the pickle bytes of a `batches.meta` (10 classes) or `meta` (100) file."""
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
            short = label if abs(label) < 10**12 else "of more than 12 digits"
            raise DataError(f"{who}: label {short} at position {position} is outside 0..{classes - 1}")
    return np.array(value, dtype=np.int64)


def _text(name: object, who: str) -> str:
    if isinstance(name, bytes):
        return name.decode("latin-1")
    if not isinstance(name, str):
        raise DataError(f"{who}: expected class names as text, got {type(name).__name__}")
    return name


# --- the binary version


def parse_records(data: bytes, who: str, classes: int) -> Batch:
    """The batch in the bytes of a `.bin` file.

    With `classes` 10 a record is a label and pixels; with 100 it is a coarse label, a fine label and pixels,
    and the fine label is used. Raises `DataError` starting with `who` unless the bytes are whole records, at
    least one, with labels in range. The six files that this layout gives for the images of the python version
    have the checksums of the published ones.
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


# --- the two data sets


def _form(number: int, version: str, train: tuple[str, ...], test: str, names: str) -> Form:
    """One version of CIFAR-10 or CIFAR-100, in a folder or in its archive."""
    folder = f"cifar-{number}-{version}"
    archive = f"cifar-{number}-{'python' if version.endswith(('py', 'python')) else 'binary'}.tar.gz"
    others = (folder,) if number == 10 else ()
    return Form((f"cifar-{number}", folder), train, (test,), (names,), archive, (test,), others=others)


def _batches(ending: str) -> tuple[str, ...]:
    return tuple(f"data_batch_{number}{ending}" for number in range(1, 6))


class Cifar(DataSource):
    """What CIFAR-10 and CIFAR-100 have in common. The constants that normalise pixels are published ones."""

    class_names: ClassVar[tuple[str, ...]]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]

    def read(self, found: Found) -> DataSet:
        """The images of all files that are there; `note` says if that is the test part alone."""
        form, names = found.form, self.class_names
        binary = form.test[0].endswith(".bin")
        parse: Callable[[bytes, str, int], Batch] = parse_records if binary else parse_batch
        batches = {}
        for file, where, data in found.contents():
            if file in form.extra:
                names = self._names(where, file, data)
            else:
                batches[file] = parse(data, where, len(names))
        present = tuple(file for file in form.files if file in batches)
        partial = f"only the published test part of {self.name} was found and used"
        return DataSet(
            self.name,
            np.concatenate([batches[file].images for file in present]),
            np.concatenate([batches[file].labels for file in present]),
            names,
            mean=self.mean,
            std=self.std,
            n_train=sum(len(batches[file].labels) for file in present if file in form.train),
            note=partial if present != form.files else "",
        )

    def describe(self, where: str, file: str, data: bytes) -> str:
        """Only files with the names of classes have no known checksum."""
        return f"names of {len(self._names(where, file, data))} classes; no checksum known"

    def _names(self, where: str, file: str, data: bytes) -> tuple[str, ...]:
        parse = parse_lines if file.endswith(".txt") else parse_names
        return parse(data, where, len(self.class_names))


# The checksums of the binary files were verified by writing the images of the python version in their layout,
# except that of CIFAR-100's `train.bin`, which others published.


@DATASETS.register("cifar10")
class Cifar10(Cifar):
    """50000 training and 10000 test images of ten classes."""

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    about = About(50000, 10000, (3, 32, 32), 10, _LICENCE, _CITATION)
    forms = (
        _form(10, "batches-py", _batches(""), "test_batch", "batches.meta"),
        _form(10, "batches-bin", _batches(".bin"), "test_batch.bin", "batches.meta.txt"),
    )
    contents: ClassVar = {
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    }
    downloads = files_at("", _ADDRESSES, contents, "cifar-10-python.tar.gz")
    sizes = (221, 2792)  # of the papers


@DATASETS.register("cifar100")
class Cifar100(Cifar):
    """50000 training and 10000 test images of a hundred classes (the fine labels)."""

    class_names = tuple(f"class {number}" for number in range(100))
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    about = About(50000, 10000, (3, 32, 32), 100, _LICENCE, _CITATION)
    forms = (
        _form(100, "python", ("train",), "test", "meta"),
        _form(100, "binary", ("train.bin",), "test.bin", "fine_label_names.txt"),
    )
    contents: ClassVar = {
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
        "test.bin": "4499cfba6c016c1be1438163640a0898",
    }
    downloads = files_at("", _ADDRESSES, contents, "cifar-100-python.tar.gz")
    sizes = (150, 300)  # ours; small enough for the test part alone
    class_parts = (
        "TTETVETVETTTTTVVTTTVTETTTTVVTTTTVTETTTTTVTETTTEVVTTTTTTVTTETETETTTTTTEEVTVTTTETTTTTEETEVTVTTTTEETTEE",
        "CIFAR-FS (Bertinetto et al. 2019)",
    )
