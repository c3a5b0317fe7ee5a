"""Data folders written as text, for `fuzz_loaders`: names, folders and links as they may lie on a disk."""

from __future__ import annotations

import contextlib
import gzip
import os
import tempfile
from pathlib import Path

import numpy as np
from fuzz_images import BATCHES, DRAWING, RECORDS, batch, drawings, tar, zip_of
from idx_files import format_idx

from refimpl.data import load, places
from refimpl.data.catalog import source_of
from refimpl.errors import RefimplError
from refimpl.registry import DATASETS

IMAGES, LABELS = (
    format_idx(np.zeros((4, 28, 28), np.uint8)),
    format_idx(np.arange(4, dtype=np.uint8)),
)
SOURCES = {name: source_of("fuzz", name) for name in DATASETS}
SOURCES = {name: source for name, source in SOURCES.items() if source.forms and source.home is None}
CONTENTS = {
    "images": IMAGES,
    "images.gz": gzip.compress(IMAGES[:99]) + gzip.compress(IMAGES[99:]),
    "labels": LABELS,
    "labels.zip": zip_of(("labels", LABELS)),
    "batch": BATCHES[0],
    "records": RECORDS,
    "fine": batch(2, fine_labels=[30, 70]),
    "tar": tar(*((f"a/{name}", BATCHES[0]) for name in SOURCES["cifar10"].forms[0].files)),
    "drawing": DRAWING,
    "drawings.zip": drawings(DRAWING),
}
MNIST = [
    f"mnist/{part}-{kind}-idx{axes}-ubyte = {kind}"
    for part in ("train", "t10k")
    for kind, axes in (("images", 3), ("labels", 1))
]
LAYOUTS = tuple(
    "\n".join(lines).encode()
    for lines in (
        MNIST,
        [line.replace("-idx", ".idx") for line in MNIST] + ["mnist/train-images-idx3-ubyte/"],
        [line.replace("mnist/", "MNIST/raw/").replace(" =", ".gz =") for line in MNIST],
        [line.replace("mnist/", "store/") for line in MNIST] + ["mnist > store", "store/raw > ../mnist"],
        ["cifar-10-python.tar.gz = tar", "cifar-10 > cifar-10"],
        ["cifar-100/cifar-100-python/test = fine", "cifar-100/test/", "cifar-100/raw > .."],
        ["cifar-10/test_batch.bin = records", "cifar-10/cifar-10 > ../cifar-10"],
        ["omniglot/images_background/a/b/c.png = drawing", "omniglot/images_background/a/d > ../.."],
        ["omniglot/images_evaluation/images_evaluation.zip = drawings.zip", "omniglot/._x = labels"],
    )
)


def read_layout(path: Path) -> object:
    """Loads what is in the folder whose entries the lines of the file tell; an error if that is nothing."""
    with tempfile.TemporaryDirectory(dir=path.parent) as root:
        for line in path.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:40]:
            with contextlib.suppress(OSError, ValueError):  # a name that the system does not take
                _make(Path(root), line)
        found, error = [], RefimplError("nothing")
        for name, source in SOURCES.items():
            try:
                if places.locate(source, Path(root)) is not None:
                    found.append(len(load(name, root)))
            except RefimplError as refused:
                error = refused
        if not found:
            raise error
        return found


def _make(root: Path, line: str) -> None:
    """`name/` is a folder, `name > target` a link, `name = content` a file; nothing leads out of `root`."""
    name, _, target = line.partition(" > ")
    name, _, content = name.partition(" = ")
    entry = root / name
    if not _within(root, entry):
        return
    if name.endswith("/"):
        entry.mkdir(parents=True, exist_ok=True)
        return
    entry.parent.mkdir(parents=True, exist_ok=True)
    if not target:
        entry.write_bytes(CONTENTS.get(content, content.encode("utf-8", "surrogateescape")))
    elif _within(root, entry.parent / target):
        entry.symlink_to(target)


def _within(root: Path, path: Path) -> bool:
    inside = os.path.realpath(root)
    return os.path.commonpath([inside, os.path.realpath(path)]) == inside
