"""A small MNIST in the published format, made here, for tests of what is done with data files."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
from idx_files import format_idx

PARTS = {"train": 60, "t10k": 20}


def mnist_files() -> dict[str, bytes]:
    """The four IDX files, not packed."""
    rng, files = np.random.default_rng(2), {}
    for part, count in PARTS.items():
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files[f"{part}-images-idx3-ubyte"] = format_idx(images)
        files[f"{part}-labels-idx1-ubyte"] = format_idx(labels)
    return files


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def write_mnist(root: Path) -> Path:
    """The files in the data folder `root`, with other gzip headers than those of `PUBLISHED`."""
    (root / "mnist").mkdir(parents=True)
    for name, data in FILES.items():
        (root / "mnist" / (name + ".gz")).write_bytes(gzip.compress(data, 1, mtime=1))
    return root


FILES = mnist_files()
PUBLISHED = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in FILES.items()}
