"""A labelled set of small images, stored as the bytes that were read and normalised only when used."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from refimpl.errors import DataError, InputError


def check_finite(who: str, what: str, samples: NDArray[Any]) -> None:
    """Raise `DataError` naming `who` and the first position where `samples` are NaN or infinite."""
    finite = np.isfinite(samples)
    if finite.all():
        return
    position = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), samples.shape))
    raise DataError(
        f"{who}: {finite.size - int(finite.sum())} of {finite.size} {what} are NaN or infinite, "
        f"the first at position {position}; remove or repair these samples"
    )


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images with their labels.

    `name` is what messages call it. `images` (n, C, H, W) are uint8; a user's own data may also be float32 or
    float64. Labels `y` (n,) int64 go from 0 to len(class_names) - 1. A pixel v of channel c stands for the
    number (v / scale - mean[c]) / std[c]. The published training part comes first: samples 0 to n_train - 1.
    `note` says in words what a result should mention. float32 copies of bytes would take four times the
    memory (CIFAR-10: 737 MB), so only nodes have such copies, made by `x`. `folder` is where the files were
    looked for, None for data in the package. `node_sizes` are the training samples that the smallest and the
    largest of 20 nodes usually have. Raises `DataError` for arrays that do not belong together and for NaN or
    infinite pixels.

    Source: mathematics.md §11.
    """

    name: str
    images: NDArray[Any]
    y: NDArray[np.int64]
    class_names: tuple[str, ...]
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    n_train: int = 0
    note: str = ""
    folder: str | None = None
    node_sizes: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        who = f"data set {self.name!r}"
        if self.images.dtype not in (np.uint8, np.float32, np.float64) or self.images.ndim != 4:
            raise DataError(
                f"{who}: expected images (n, C, H, W) as uint8, float32 or float64, "
                f"got {self.images.dtype} {self.images.shape}"
            )
        if self.y.dtype != np.int64 or self.y.shape != self.images.shape[:1] or len(self.y) == 0:
            raise DataError(
                f"{who}: {len(self.images)} images need as many int64 labels (at least one), "
                f"got {self.y.dtype} {self.y.shape}"
            )
        if self.y.min() < 0 or self.y.max() >= self.classes:
            raise DataError(
                f"{who}: labels from {self.y.min()} to {self.y.max()}, expected 0..{self.classes - 1}"
            )
        if len(self.mean) != self.images.shape[1] or len(self.std) != self.images.shape[1]:
            raise DataError(
                f"{who}: mean and std need one number for each of {self.images.shape[1]} channels"
            )
        if self.images.dtype != np.uint8:
            check_finite(who, "pixels", self.images)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image: (C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"DataSet({self.name!r}, {len(self)} images {self.shape}, {self.classes} classes)"

    def x(self, index: ArrayLike | slice = slice(None), dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Normalised images (m, C, H, W), C-contiguous, of the samples `index`, as float32 or float64.

        Every value is computed in float64 and rounded once (for bytes, once for each of the 256 values).
        """
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise InputError(f"DataSet.x: expected float32 or float64, got {np.dtype(dtype)}")
        chosen = self.images[index]  # type: ignore[index]  # NumPy checks what may index
        out = np.empty(chosen.shape, dtype)
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            pixels = chosen[:, channel]
            values = np.arange(256) if pixels.dtype == np.uint8 else pixels.astype(np.float64)
            normal = ((values / self.scale - mean) / std).astype(dtype)
            out[:, channel] = normal[pixels] if pixels.dtype == np.uint8 else normal
        return out

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all samples, of their normalisation and of their labels; the same on every machine."""
        scales = [float(number) for number in (self.scale, *self.mean, *self.std)]
        kind = (self.images.dtype.name, self.shape, self.classes, scales)
        found = hashlib.sha256(repr(kind).encode())
        for array in (self.images, self.y):
            little_endian = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            found.update(little_endian.data)
        return found.hexdigest()

    def counts(self) -> NDArray[np.int64]:
        """Number of samples of each class, (classes,)."""
        return np.bincount(self.y, minlength=self.classes)
