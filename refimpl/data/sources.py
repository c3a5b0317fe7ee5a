"""Published addresses and checksums of the data sets.

MD5 is what the publishers and the common loaders give. It guards against damaged and mistaken files, not
against forged ones; that is the readers' job, which execute nothing and bound everything.
"""

from __future__ import annotations

from typing import NamedTuple

_MNIST = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_CIFAR = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_OMNIGLOT = ("https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",)


class Download(NamedTuple):
    """One published file: where it goes (relative to the data folder), its MD5, its addresses in order."""

    target: str
    md5: str
    addresses: tuple[str, ...]


def _download(folder: str, name: str, md5: str, bases: tuple[str, ...]) -> Download:
    return Download(folder + name, md5, tuple(base + name for base in bases))


DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "mnist": (
        _download("mnist/", "train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", _MNIST),
        _download("mnist/", "train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", _MNIST),
        _download("mnist/", "t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", _MNIST),
        _download("mnist/", "t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", _MNIST),
    ),
    "cifar10": (_download("", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", _CIFAR),),
    "cifar100": (_download("", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", _CIFAR),),
    "omniglot": (
        _download("omniglot/", "images_background.zip", "68d2efa1b9178cc56df9314c21c6e718", _OMNIGLOT),
        _download("omniglot/", "images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811", _OMNIGLOT),
    ),
}

# MD5 of what a file holds once unpacked, however it is packed. For Omniglot see `verify.picture_digest`;
# its two values were computed from the authors' PNG files.
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
    },
    "cifar100": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
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
