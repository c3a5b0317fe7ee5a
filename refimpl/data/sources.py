"""Published addresses, checksums, sizes, licences and references of the data sets.

The publishers and the common loaders give MD5 sums. They protect against damaged and wrong files, not against
forged ones. Forged files are the task of the readers, which execute nothing and limit all sizes.
"""

from __future__ import annotations

from typing import NamedTuple

_MNIST = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_CIFAR = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_OMNIGLOT = ("https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",)


class About(NamedTuple):
    """A data set: samples of its two published parts, shape of an image, classes, licence, reference."""

    train: int
    test: int
    shape: tuple[int, int, int]
    classes: int
    licence: str
    citation: str


_NO_LICENCE = "none stated; the authors ask for the citation"
_KRIZHEVSKY = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"

# Omniglot's images are published at 105 x 105 and reduced to 28 x 28 when they are read.
ABOUT: dict[str, About] = {
    "digits": About(
        1797, 0, (1, 8, 8), 10, "CC BY 4.0", "E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998"
    ),
    "mnist": About(
        60000,
        10000,
        (1, 28, 28),
        10,
        "commonly given as CC BY-SA 3.0; none comes with it",
        "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Proceedings of the IEEE 86(11), 1998",
    ),
    "cifar10": About(50000, 10000, (3, 32, 32), 10, _NO_LICENCE, _KRIZHEVSKY),
    "cifar100": About(50000, 10000, (3, 32, 32), 100, _NO_LICENCE, _KRIZHEVSKY),
    "omniglot": About(
        19280,
        13180,
        (1, 28, 28),
        1623,
        "MIT",
        "B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, Science 350(6266), 2015",
    ),
}


class Download(NamedTuple):
    """One published file: where it goes (relative to the data folder), its MD5, its addresses in order."""

    target: str
    md5: str
    addresses: tuple[str, ...]


def _download(folder: str, name: str, md5: str, bases: tuple[str, ...]) -> Download:
    return Download(folder + name, md5, tuple(base + name for base in bases))


ARCHIVES: dict[str, str] = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
}


def _archive(name: str) -> Download:
    return _download("", name, ARCHIVES[name], _CIFAR)


DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "mnist": (
        _download("mnist/", "train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", _MNIST),
        _download("mnist/", "train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", _MNIST),
        _download("mnist/", "t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", _MNIST),
        _download("mnist/", "t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", _MNIST),
    ),
    "cifar10": (_archive("cifar-10-python.tar.gz"),),
    "cifar100": (_archive("cifar-100-python.tar.gz"),),
    "omniglot": (
        _download("omniglot/", "images_background.zip", "68d2efa1b9178cc56df9314c21c6e718", _OMNIGLOT),
        _download("omniglot/", "images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811", _OMNIGLOT),
    ),
}

# MD5 of what a file holds once unpacked, however it is packed. For Omniglot see `verify.picture_digest`;
# its two values were computed from the authors' PNG files. Those of CIFAR's binary files were checked by
# writing the images of the python version in their layout, except `train.bin`, whose sum others published.
CONTENTS: dict[str, dict[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "cifar10": {
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
    },
    "cifar100": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "train.bin": "6172c7755cfe09b2fe270c85cebc1b15",
        "test.bin": "4499cfba6c016c1be1438163640a0898",
    },
    "omniglot": {
        "images_background": "c6bfe6bc9f679b95551415e853ed9a92",
        "images_evaluation": "86a1a6769d029cbd4a2ab4ac544cd8fb",
    },
    "digits": {
        "images.idx.gz": "a5adabccf8d3e2540826a202a7bfb422",
        "labels.idx.gz": "497796a0698e25d3920a9422b635bf34",
    },
}
