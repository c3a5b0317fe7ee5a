"""What a data set declares about itself: where its files come from, where they may lie, and its particulars.

Every data set is one file in `refimpl/data/sets/`: a subclass of `DataSource` under
`@DATASETS.register("name")`. A file of your own that `refimpl --use FILE.py` imports may register others.

The publishers and the common loaders give MD5 sums. They protect against damaged and wrong files, not against
forged ones. Forged files are the task of the readers, which execute nothing and limit all sizes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from refimpl.data.unpack import LIMIT, plain_name, read_unpacked

if TYPE_CHECKING:
    from refimpl.data.dataset import DataSet
    from refimpl.data.places import Found


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
    test: tuple[str, ...] = ()
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


class Download(NamedTuple):
    """One published file.

    target: where it goes, relative to the data folder; md5: its checksum; addresses: where it is, in the
    order in which they are tried.
    """

    target: str
    md5: str
    addresses: tuple[str, ...]


def files_at(
    folder: str, bases: tuple[str, ...], md5s: Mapping[str, str], *names: str
) -> tuple[Download, ...]:
    """The files `names`, or all in `md5s`, which go to `folder` and lie at each of the addresses `bases`."""
    return tuple(
        Download(folder + name, md5s[name], tuple(base + name for base in bases)) for name in names or md5s
    )


class About(NamedTuple):
    """What is known of a data set before it is read.

    train, test: samples of its two published parts; shape: of an image; classes: how many there are; licence:
    under which it is published; citation: its reference.
    """

    train: int = 0
    test: int = 0
    shape: tuple[int, ...] = ()
    classes: int = 0
    licence: str = ""
    citation: str = ""


@dataclass(frozen=True)
class DataSource:
    """A data set, known by the `name` under which it is registered. Only `read` must be given.

    forms: the forms in which its files are published, the preferred one first; without any, it has no files.
    home: the folder with its files if they come with the code; else they are in the data folder.
    downloads: what `refimpl data fetch` brings.
    contents: MD5 of what a file holds once it is unpacked, however it is packed; for an archive of all files,
    the MD5 of the published archive itself.
    sizes: training samples of the smallest and the largest of 20 nodes; by default computed from the data.
    usual: keys of a configuration that begin with other values than those of the preset `npz`, for a data set
    without a preset of its own.
    class_parts: the published split of its classes for few-shot learning, as a letter for each class (T for
    training, V for validation, E for the test), and where the split comes from.
    """

    name: str

    about: ClassVar[About] = About()
    forms: ClassVar[tuple[Form, ...]] = ()
    home: ClassVar[Path | None] = None
    downloads: ClassVar[tuple[Download, ...]] = ()
    contents: ClassVar[Mapping[str, str]] = {}
    sizes: ClassVar[tuple[int, int] | None] = None
    usual: ClassVar[Mapping[str, Any]] = {}
    class_parts: ClassVar[tuple[str, str]] = ("", "")

    def read(self, found: "Found") -> "DataSet":
        """The data in the files that were found; raises `DataError` for files that are not as expected."""
        raise NotImplementedError(f"{type(self).__name__} has no method read")

    def digest(self, path: Path) -> str:
        """The MD5 that `contents` has of the published file, for a file on this disk."""
        return md5(read_unpacked(path, LIMIT))

    def describe(self, where: str, file: str, data: bytes) -> str:
        """What is in a file whose checksum is not known; raises `DataError` for a file that is damaged."""
        return "no checksum known"


def md5(data: bytes) -> str:
    """MD5 of the bytes."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
