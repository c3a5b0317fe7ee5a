"""Omniglot: handwritten characters of many alphabets, in zip files or unpacked folders."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refimpl.data.dataset import DataSet
from refimpl.data.places import Found
from refimpl.data.png import decode_png
from refimpl.data.source import About, DataSource, Form, files_at
from refimpl.data.unpack import plain_name, read_file, read_zip
from refimpl.errors import DataError
from refimpl.files.sniff import is_leftover
from refimpl.registry import DATASETS

SIDE, SMALL = 105, 28
FULL_INK = 225  # value of a 28x28 pixel that is all ink; see `shrink`
_FILE_LIMIT = 64 * 2**10  # bytes of one PNG; Omniglot's have about 200
_DEPTH = 8  # levels of nested folders that are searched


@DATASETS.register("omniglot")
class Omniglot(DataSource):
    """19280 drawings of 964 characters, and 13180 of 659 others, reduced from 105x105 to 28x28 pixels."""

    about = About(
        19280,
        13180,
        (1, SMALL, SMALL),
        1623,
        "MIT",
        "B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, Science 350(6266), 2015",
    )
    forms = (
        Form(
            ("omniglot",),
            ("images_background",),
            ("images_evaluation",),
            alone=("images_background", "images_evaluation"),
            unpacked=True,
            others=("omniglot-py", "omniglot-master"),
        ),
    )
    downloads = files_at(
        "omniglot/",
        ("https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",),
        {
            "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
            "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
        },
    )
    contents: ClassVar = {  # computed from the authors' PNG files
        "images_background": "c6bfe6bc9f679b95551415e853ed9a92",
        "images_evaluation": "86a1a6769d029cbd4a2ab4ac544cd8fb",
    }
    # The validation classes are the alphabets Armenian, Bengali, Early Aramaic, Hebrew and Mkhedruli. The
    # test classes begin with character 42 of Gurmukhi.
    class_parts = (
        "".join(
            letter * count
            for letter, count in zip(
                "TVTVTVTVTVTE", (75, 41, 64, 46, 107, 22, 141, 22, 221, 41, 420, 423), strict=True
            )
        ),
        "of Vinyals et al. 2016",
    )

    def read(self, found: Found) -> DataSet:
        """All characters of the two sets, or of the one that is there; their labels go on counting."""
        parts = [read_omniglot(found.files[file]) for file in found.present]
        offsets = np.cumsum([0, *(len(part.names) for part in parts)])
        return DataSet(
            self.name,
            np.concatenate([part.images for part in parts])[:, None],
            np.concatenate([part.labels + offset for part, offset in zip(parts, offsets, strict=False)]),
            tuple(name for part in parts for name in part.names),
            scale=FULL_INK,
            n_train=sum(
                len(part.labels)
                for part, file in zip(parts, found.present, strict=True)
                if file in found.form.train
            ),
            note=f"only {found.files[found.present[0]].name} was found and used" if found.missing else "",
        )

    def digest(self, path: Path) -> str:
        """MD5 over path and MD5 of every PNG of a zip or folder, in path order.

        The published zip files have MD5s of their own, but an unpacked or re-packed copy holds the same
        pictures. Paths count from the set, `images_background` or `images_evaluation`, wherever that lies.
        """
        total, pictures = hashlib.md5(usedforsecurity=False), plain_name(path.name)
        for name, data in read_drawings(path):
            inside = "/".join((pictures, *PurePosixPath(name).parts[-3:]))
            total.update(inside.encode() + b"\0" + hashlib.md5(data, usedforsecurity=False).digest())
        return total.hexdigest()


class Characters(NamedTuple):
    """Images (n, 28, 28) uint8 from 0 (paper) to 225 (ink), labels (n,) int64 and the names of the labels."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]


def read_omniglot(path: str | Path) -> Characters:
    """All characters of one zip file or folder (`images_background`, `images_evaluation`).

    Files are `<set>/<alphabet>/<character>/<drawing>.png`, 105x105 grey. Labels count the characters in
    the order of their paths; images come in the order of theirs. Raises `DataError` naming the file.

    Source: Lake, Salakhutdinov & Tenenbaum 2015; verified on its files.
    """
    path = Path(path)
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    names: list[str] = []
    seen: set[str] = set()
    for name, data in read_drawings(path):
        character = "/".join(PurePosixPath(name).parts[-3:-1])
        if not names or names[-1] != character:
            if character in seen:
                raise DataError(f"{path}: {name!a}: another folder has this character too; keep one of them")
            seen.add(character)
            names.append(character)
        ink = decode_png(data, f"{path}: {name!a}", (SIDE, SIDE)) < 128
        images.append(shrink(ink))
        labels.append(len(names) - 1)
    if not images:
        raise DataError(f"{path}: no files <set>/<alphabet>/<character>/<drawing>.png in it")
    return Characters(np.stack(images), np.array(labels, dtype=np.int64), tuple(names))


def read_drawings(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (path inside, content) of every PNG file of a zip file or folder, in the order of the paths."""
    if path.is_dir():
        files = {file.relative_to(path.parent).as_posix(): file for file in _files(path)}
        for name in _drawings(files):
            yield name, read_file(files[name], _FILE_LIMIT)
    elif path.is_file():
        yield from read_zip(path, str(path), _FILE_LIMIT, _drawings)
    else:
        raise DataError(f"{path}: no such file or folder")


def shrink(ink: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Area average of a 105x105 picture on 28x28 pixels: (28, 28) uint8, ink in units of 1/225.

    A small pixel covers 3.75 x 3.75 large ones, so its ink is a whole number of 225ths: 15 x 15 quarter
    pixels. All sums are of small whole numbers, hence exact in float32 in whatever order they are added.

    Source: derived.
    """
    return (_COVER @ ink.astype(np.float32) @ _COVER.T).astype(np.uint8)


def _cover() -> NDArray[np.float32]:
    """How many quarters of large pixel j lie in small pixel i, along one axis: (28, 105)."""
    starts = np.arange(SMALL)[:, None] * 15
    quarters = np.arange(SIDE)[None, :] * 4
    overlap = np.minimum(starts + 15, quarters + 4) - np.maximum(starts, quarters)
    return np.clip(overlap, 0, 4).astype(np.float32)


_COVER = _cover()


def _files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files under a folder, through links too; a link back to a folder in `above` is skipped."""
    real = os.path.realpath(folder)
    if real in above or len(above) == _DEPTH:
        return
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir():
            yield from _files(entry, (*above, real))
        else:
            yield entry


def _drawings(names: Iterable[str]) -> list[str]:
    """The PNG files among `names` in order, without the extra files that macOS adds."""
    return sorted(n for n in names if n.lower().endswith(".png") and not is_leftover(n))
