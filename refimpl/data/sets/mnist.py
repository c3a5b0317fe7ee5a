"""MNIST: handwritten digits of 28x28 pixels in four IDX files."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from refimpl.data.dataset import DataSet
from refimpl.data.idx import parse_idx
from refimpl.data.places import Found
from refimpl.data.source import About, DataSource, Form, files_at
from refimpl.errors import DataError
from refimpl.registry import DATASETS

_ADDRESSES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


@DATASETS.register("mnist")
class Mnist(DataSource):
    """60000 training and 10000 test images, normalised as the usual reference training scripts do it."""

    about = About(
        60000,
        10000,
        (1, 28, 28),
        10,
        "commonly given as CC BY-SA 3.0; none comes with it",
        "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Proceedings of the IEEE 86(11), 1998",
    )
    forms = (
        Form(
            ("mnist", "MNIST/raw"),
            ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
            others=("mnist", "mnist-dataset"),
        ),
    )
    downloads = files_at(
        "mnist/",
        _ADDRESSES,
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    )
    contents: ClassVar = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    sizes = (1165, 3834)  # of the papers

    def read(self, found: Found) -> DataSet:
        """The training part, then the test part."""
        read = {content[0]: content for content in found.contents()}
        parts = [_part(*(read[file] for file in part)) for part in (found.form.train, found.form.test)]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return DataSet(
            self.name,
            images[:, None],
            labels.astype(np.int64),
            tuple(map(str, range(10))),
            mean=(0.1307,),
            std=(0.3081,),
            n_train=len(parts[0][1]),
        )


def _part(
    images: tuple[str, str, bytes], labels: tuple[str, str, bytes]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (n, 28, 28) and labels (n,) from two files, each as its name, its place and its content."""
    (_, images_place, images_data), (labels_file, labels_place, labels_data) = images, labels
    pictures, digits = parse_idx(images_data, images_place, 3), parse_idx(labels_data, labels_place, 1)
    if len(pictures) != len(digits):
        raise DataError(f"{images_place}: {len(pictures)} images, but {labels_file}: {len(digits)} labels")
    if pictures.shape[1:] != (28, 28):
        raise DataError(f"{images_place}: expected images of 28x28 pixels, got {pictures.shape[1:]}")
    if len(digits) and digits.max() > 9:
        raise DataError(f"{labels_place}: label {digits.max()} at position {digits.argmax()} is outside 0..9")
    return pictures, digits
