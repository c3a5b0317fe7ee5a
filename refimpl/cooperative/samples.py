"""Supervised data: training, validation and test samples, and the batches of an epoch, moved and mirrored.

Every random number depends on the seed, its purpose and the epoch alone, so all schemes see the same batches.

Source: mathematics.md §15.4; He et al. 2016, section 4.2 (crops and mirroring).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from refimpl.data.dataset import DataSet
from refimpl.errors import InputError
from refimpl.rng import SeedTree


class Split(NamedTuple):
    """Indices of samples in three disjoint parts.

    train: those that are trained on; validation: those on which a Teammate is chosen; test: those that are
    used for results alone.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(
    dataset: DataSet, seed: int, validation: float, test: float, train_samples: int = 0, test_samples: int = 0
) -> Split:
    """Divide the published training part; a share is for validation, and without a test part one for tests.

    train_samples, test_samples: at most so many (0: all). Raises `InputError` where a part has no sample.
    """
    order = SeedTree(seed).generator("split").permutation(len(dataset))
    published = 0 < dataset.n_train < len(dataset)
    if published:
        known, tested = order[order < dataset.n_train], order[order >= dataset.n_train]
    else:
        known, tested = np.split(order, [len(order) - round(test * len(order))])
    train, checked = np.split(known, [len(known) - round(validation * len(known))])
    found = Split(train[: train_samples or None], checked, tested[: test_samples or None])
    if min(map(len, found)) < 1:
        sizes = ", ".join(f"{len(part)} for {name}" for name, part in found._asdict().items())
        raise InputError(f"{dataset.name}: expected samples in every part, got {sizes}; change the shares")
    return found


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed.

    crop: so many black pixels are put around an image, and a random window of its old size is cut out; flip:
    half of the images are mirrored.
    """

    crop: int = 0
    flip: bool = False

    def __call__(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The images (n, C, H, W) moved and mirrored by their draws (n, 3): down, right, mirrored or not."""
        if not (self.crop or self.flip):
            return images
        count, channels, height, width = images.shape
        edges = ((0, 0), (0, 0), (self.crop, self.crop), (self.crop, self.crop))
        rows = draws[:, 0, None] + np.arange(height)
        columns = draws[:, 1, None] + np.arange(width)
        columns = np.where(draws[:, 2, None] > 0, columns[:, ::-1], columns)
        which, colours = np.arange(count)[:, None, None, None], np.arange(channels)[:, None, None]
        return np.pad(images, edges)[which, colours, rows[:, None, :, None], columns[:, None, None, :]]

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """What `__call__` needs for `count` images, int64 (count, 3)."""
        moves = rng.integers(0, 2 * self.crop + 1, (count, 2))
        mirrored = rng.integers(0, 2, (count, 1)) if self.flip else np.zeros((count, 1), np.int64)
        return np.concatenate([moves, mirrored], axis=1)


@dataclass(frozen=True)
class Batches:
    """The batches of each epoch.

    dataset: all samples; chosen: the indices of those to train on; size: samples of a batch; change: how
    images are moved and mirrored; dtype: their number type.
    """

    dataset: DataSet
    chosen: np.ndarray
    size: int
    change: Augmentation
    dtype: str = "float32"

    def __len__(self) -> int:
        return max(1, len(self.chosen) // self.size)

    def of(self, seeds: SeedTree, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch: x (size, C, H, W) and y (size,).

        A last batch that would be smaller is left out, unless it is the only one.
        """
        order = self.chosen[seeds.generator("batches", epoch).permutation(len(self.chosen))]
        draws = self.change.draw(seeds.generator("augment", epoch), len(order))
        for number in range(len(self)):
            own = slice(number * self.size, (number + 1) * self.size)
            y = self.dataset.y[order[own]]
            images = self.change(self.dataset.images[order[own]], draws[own])
            yield replace(self.dataset, images=images, y=y).x(dtype=self.dtype), y
