"""What tickets have in common, and how masks change while a dense network is trained.

Source: mathematics.md §14.3; Gao et al. 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import InputError
from refimpl.fewshot.tickets.masks import Mask, hamming, load_mask, overlap
from refimpl.fewshot.tickets.ticket import MASK, TRACE, facts_of


def of_tickets(paths: Sequence[Path]) -> dict[str, Any]:
    """By layer: the share that each ticket prunes, O_g of the first g = 1, 2, ... of them, and distances."""
    for path in paths:
        facts_of(path)  # says so if there is no ticket
    masks = _alike(paths, [load_mask(path / MASK) for path in paths])
    return {
        "tickets": [str(path) for path in paths],
        "pruned": {name: [float(1 - mask.layers[name].mean()) for mask in masks] for name in masks[0].layers},
        "overlap": _by_layer([overlap(masks[: g + 1]) for g in range(len(masks))]),
        "hamming": distances(masks),
    }


def of_training(ticket: Path) -> dict[str, Any]:
    """By layer: which share of the last mask's weights the mask of each iteration keeps, and distances."""
    files = sorted((ticket / TRACE).glob("*.npz"))
    masks = [load_mask(file) for file in files]
    last = masks[-1:]
    kept = [
        {name: (mask.layers[name] & end).sum() / max(1, end.sum()) for name, end in last[0].layers.items()}
        for mask in masks
    ]
    return {
        "ticket": str(ticket),
        "iterations": [int(file.stem) for file in files],
        "occurrence": _by_layer(kept),
        "hamming": distances(masks),
    }


def has_trace(ticket: Path) -> bool:
    """Whether the ticket's dense training has left masks."""
    return any((ticket / TRACE).glob("*.npz"))


def distances(masks: Sequence[Mask]) -> dict[str, np.ndarray]:
    """By layer: the Hamming distances of all pairs of n masks (n, n)."""
    found = {name: np.zeros((len(masks), len(masks))) for name in masks[0].layers} if masks else {}
    for i, first in enumerate(masks):
        for j in range(i):
            for name, distance in hamming(first, masks[j]).items():
                found[name][i, j] = found[name][j, i] = distance
    return found


def _by_layer(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def _alike(paths: Sequence[Path], masks: Sequence[Mask]) -> Sequence[Mask]:
    """The masks; `InputError` unless they are of one network."""
    shapes = [{name: kept.shape for name, kept in mask.layers.items()} for mask in masks]
    for path, one in zip(paths, shapes, strict=True):
        if one != shapes[0]:
            raise InputError(f"patterns: {path} is of another network than {paths[0]}; compare them apart")
    return masks
