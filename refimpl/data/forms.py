"""The forms in which data sets are published: which files they consist of, and where these may be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

_PACKINGS = (".gz", ".xz", ".bz2", ".zip", ".tar", ".tgz", ".txz", ".tbz", ".tbz2")


def plain_name(name: str) -> str:
    """A file's name without the endings of packers, in lower case, with `-idx` for MNIST's `.idx`.

    Sites, browsers and unpackers change these parts of a name and leave the rest.
    """
    plain = name.lower()
    while plain.endswith(_PACKINGS):
        plain = plain[: plain.rindex(".")]
    return plain.replace(".idx", "-idx")


@dataclass(frozen=True)
class Form:
    """One published form of a data set.

    folders, archive: where its files may be under the data folder, in order of preference.
    train, test: files of the two parts. extra: files that help but are not needed (names of classes).
    alone: files each of which can be used without all others.
    unpacked: whether a folder may stand for a published file of the same name.
    others: plain names that other sites and unpackers give a folder or an archive of the files.
    """

    folders: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    extra: tuple[str, ...] = ()
    archive: str | None = None
    alone: tuple[str, ...] = ()
    unpacked: bool = False
    others: tuple[str, ...] = ()

    @property
    def archives(self) -> tuple[str, ...]:
        """The plain names that an archive with all files may have; none if each file is an archive itself."""
        published = () if self.archive is None else (plain_name(self.archive),)
        return () if self.unpacked else (*published, *self.others)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The plain names of folders that contain the files, or contain such a folder."""
        own = (PurePosixPath(folder.lower()).parts[0] for folder in self.folders)
        return (*own, *self.archives, *self.others)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are needed for the whole data set."""
        return self.train + self.test

    def serves(self, files: tuple[str, ...]) -> bool:
        """Whether `files`, in order, make a data set: all needed files, or one that can be used alone."""
        return files == self.files or (len(files) == 1 and files[0] in self.alone)


def _mnist(part: str) -> tuple[str, str]:
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _batches(ending: str) -> tuple[str, ...]:
    return tuple(f"data_batch_{number}{ending}" for number in range(1, 6))


FORMS: dict[str, tuple[Form, ...]] = {
    "mnist": (
        Form(("mnist", "MNIST/raw"), _mnist("train"), _mnist("t10k"), others=("mnist", "mnist-dataset")),
    ),
    "cifar10": (
        Form(
            ("cifar-10", "cifar-10-batches-py"),
            _batches(""),
            ("test_batch",),
            ("batches.meta",),
            archive="cifar-10-python.tar.gz",
            others=("cifar-10-batches-py",),
            alone=("test_batch",),
        ),
        Form(
            ("cifar-10", "cifar-10-batches-bin"),
            _batches(".bin"),
            ("test_batch.bin",),
            ("batches.meta.txt",),
            archive="cifar-10-binary.tar.gz",
            others=("cifar-10-batches-bin",),
            alone=("test_batch.bin",),
        ),
    ),
    "cifar100": (
        Form(
            ("cifar-100", "cifar-100-python"),
            ("train",),
            ("test",),
            ("meta",),
            archive="cifar-100-python.tar.gz",
            alone=("test",),
        ),
        Form(
            ("cifar-100", "cifar-100-binary"),
            ("train.bin",),
            ("test.bin",),
            ("fine_label_names.txt",),
            archive="cifar-100-binary.tar.gz",
            alone=("test.bin",),
        ),
    ),
    "omniglot": (
        Form(
            ("omniglot",),
            ("images_background",),
            ("images_evaluation",),
            alone=("images_background", "images_evaluation"),
            unpacked=True,
            others=("omniglot-py", "omniglot-master"),
        ),
    ),
}
