"""Masks: which convolution weights of a network are kept, and how a given number of them is chosen.

Every choice is the best of some scores (magnitudes, random numbers, sensitivities), over all layers together
or layer by layer, with exact counts.

Source: mathematics.md §14.1; Gao et al. 2022; Su et al. 2020 (smart ratios).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from refimpl.errors import DataError, InputError
from refimpl.federated.pruning.snip import best
from refimpl.files.storage import npz_bytes, read_npz, write_whole
from refimpl.nn.layout import Layout, Slot
from refimpl.rng import SeedTree
from refimpl.shares import nearest

ORDER = "__layers__"  # the entry of a file that names the layers in order


def prunable(layout: Layout) -> tuple[Slot, ...]:
    """The weights that masks speak of: those of convolutions with windows larger than 1x1, in order."""
    weights = [slot for slot in layout.slots if len(slot.shape) == 4 and slot.shape[2:] != (1, 1)]
    if not weights:
        raise InputError("tickets: the network has no convolution to prune; choose another --model")
    return tuple(weights)


@dataclass(frozen=True, eq=False)
class Mask:
    """Which weights are kept: booleans in the shape of each prunable weight, by its name, in order."""

    layers: Mapping[str, np.ndarray]

    @property
    def counts(self) -> list[int]:
        """The number of weights that each layer keeps."""
        return [int(kept.sum()) for kept in self.layers.values()]

    @property
    def pruned(self) -> float:
        """The share of prunable weights that are not kept."""
        return 1 - sum(self.counts) / sum(kept.size for kept in self.layers.values())

    def over(self, layout: Layout) -> np.ndarray:
        """Booleans (d,), true where w may be other than zero; `InputError` where the network does not fit."""
        wanted = {slot.name: slot.shape for slot in prunable(layout)}
        found = {name: kept.shape for name, kept in self.layers.items()}
        if wanted != found:
            name = next(name for name in wanted | found if wanted.get(name) != found.get(name))
            raise InputError(
                f"mask: {name} is {wanted.get(name, 'absent')} in the network, {found.get(name, 'absent')} "
                "in the mask; use the mask with the model and widths it was found for"
            )
        everywhere = np.ones(layout.size, dtype=bool)
        for slot in prunable(layout):
            everywhere[slot.start : slot.stop] = self.layers[slot.name].ravel()
        return everywhere

    def save(self, path: Path) -> None:
        """Write the mask; equal masks give equal bytes."""
        write_whole(path, npz_bytes({**self.layers, ORDER: np.array([*self.layers])}))


def load_mask(path: Path) -> Mask:
    """The mask that `save` wrote; `DataError` naming the file for anything else."""
    arrays = read_npz(path)
    names = arrays.pop(ORDER, np.array([])).ravel()
    order = names.tolist() if names.dtype.kind == "U" else []
    sound = all(kept.dtype == np.bool_ and kept.size for kept in arrays.values())
    if not (arrays and sound) or sorted(order) != sorted(arrays):
        raise DataError(f"{path}: expected a mask of booleans by layer, found {', '.join(arrays)[:200]}")
    return Mask({name: arrays[name] for name in order})


# --- how many


def kept_of(pruned: float, whole: int) -> int:
    """How many of `whole` weights stay: the pruned ones are rounded to the nearest number, halves to even."""
    return whole - nearest(pruned, whole)


def overall(sizes: Sequence[int], pruned: float) -> list[int]:
    """One number for all layers together."""
    return [kept_of(pruned, sum(sizes))]


def by_layer(sizes: Sequence[int], pruned: float) -> list[int]:
    """One number for each layer, so that every layer keeps the same share."""
    return [kept_of(pruned, size) for size in sizes]


def smart(sizes: Sequence[int], pruned: float) -> list[int]:
    """Smart ratios: layer l of L keeps a share proportional to (L-l+1)^2 + (L-l+1), but at most all.

    What a layer cannot take is passed on to the later ones in the same proportions. The counts add up to
    those of `overall`. Source: mathematics.md §14.1; Su et al. 2020.
    """
    left, counts = kept_of(pruned, sum(sizes)), []
    parts = [((rank := len(sizes) - at) ** 2 + rank) * size for at, size in enumerate(sizes)]
    for at, size in enumerate(sizes):
        count = min(size, nearest(Fraction(parts[at], sum(parts[at:])), left))
        counts.append(max(count, left - sum(sizes[at + 1 :])))  # no less than the later layers leave over
        left -= counts[-1]
    return counts


SCOPES: dict[str, Callable[[Sequence[int], float], list[int]]] = {
    "global": overall,
    "layers": by_layer,
    "smart": smart,
}


# --- which


def choose(layout: Layout, scores: np.ndarray, counts: Sequence[int]) -> Mask:
    """The mask that keeps the best scores (d,): one count for all layers together, or one for each."""
    return choose_of(prunable(layout), scores, counts)


def choose_of(slots: Sequence[Slot], scores: np.ndarray, counts: Sequence[int]) -> Mask:
    """The same of any weights, whose places are given."""
    rows = [scores[slot.start : slot.stop] for slot in slots]
    if len(counts) == 1:
        together = best(np.concatenate(rows), counts[0])
        kept = np.split(together, np.cumsum([len(row) for row in rows])[:-1])
    else:
        kept = [best(row, count) for row, count in zip(rows, counts, strict=True)]
    return Mask({slot.name: row.reshape(slot.shape) for slot, row in zip(slots, kept, strict=True)})


def counts_in(layout: Layout, scope: str, pruned: float) -> list[int]:
    """The counts for `choose` in one of the `SCOPES`."""
    return SCOPES[scope]([slot.stop - slot.start for slot in prunable(layout)], pruned)


def noise(layout: Layout, seeds: SeedTree) -> np.ndarray:
    """Random scores (d,), from a stream of its own for each layer."""
    scores = np.zeros(layout.size)
    for at, slot in enumerate(prunable(layout)):
        scores[slot.start : slot.stop] = seeds.generator("mask", node=at).random(slot.stop - slot.start)
    return scores


# --- comparisons


def overlap(masks: Sequence[Mask]) -> dict[str, float]:
    """By layer: the weights that all masks keep, as a share of what one keeps (the mean over the masks)."""
    shares = {}
    for name in masks[0].layers:
        kept = [mask.layers[name] for mask in masks]
        shares[name] = float(np.logical_and.reduce(kept).sum() / max(1.0, np.mean([k.sum() for k in kept])))
    return shares


def hamming(first: Mask, second: Mask) -> dict[str, float]:
    """By layer: the share of weights that one mask keeps and the other does not."""
    return {name: float((kept != second.layers[name]).mean()) for name, kept in first.layers.items()}
