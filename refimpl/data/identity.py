"""Identify the data of a run, so that it is never continued, adapted or reported on with other data.

Source: mathematics.md §11 (nodes); the digests are ours.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refimpl.data import places
from refimpl.data.dataset import DataSet
from refimpl.data.partition import Share
from refimpl.errors import DataError, RunError
from refimpl.files.paths import expanded, is_own_data

Place = tuple[str, str | Path | None]  # name and folder of a data set


@dataclass(frozen=True)
class Identity:
    """What is needed to recognise a data set, and to say how another one differs.

    dataset: its name; folder: the absolute folder it was read from, or None for data in the package; samples,
    classes and shape: its size; digest: SHA-256 of its samples and labels; dealt: SHA-256 of the order in
    which the nodes have the samples, or empty if they have not been dealt to nodes. Digests depend neither on
    the machine nor on the floating-point type of the training.
    """

    dataset: str
    folder: str | None
    samples: int
    classes: int
    shape: list[int]
    digest: str
    dealt: str = ""

    def table(self) -> dict[str, Any]:
        """The identity as a table for JSON."""
        return asdict(self)


def identify(dataset: DataSet, shares: Sequence[Share] = ()) -> Identity:
    """The identity of a data set that is dealt to nodes according to `shares`."""
    found = hashlib.sha256()
    for share in shares:
        found.update(f"{share.name} {share.n_support} {share.n_query} {len(share.samples)}\n".encode())
        found.update(share.samples.astype("<i8").tobytes())
    size = len(dataset), dataset.classes, list(dataset.shape)
    dealt = found.hexdigest() if shares else ""
    return Identity(dataset.name, dataset.folder, *size, dataset.digest, dealt)


def identity_from(source: str, table: object) -> Identity:
    """The identity written by `Identity.table`; raises `DataError` naming `source` for anything else."""
    try:
        found = Identity(**table)  # type: ignore[arg-type]  # anything may be in the file
    except TypeError:
        raise _damage(source) from None
    words, numbers = (found.dataset, found.digest, found.dealt), (found.samples, found.classes)
    if (
        not all(isinstance(word, str) for word in words)
        or not all(type(number) is int for number in numbers)
        or not isinstance(found.folder, str | None)
        or not isinstance(found.shape, list)
    ):
        raise _damage(source)
    return found


def identities_from(source: str, table: object) -> dict[str, Identity]:
    """Several identities by name, each as `identity_from` reads it."""
    if not isinstance(table, Mapping):
        raise _damage(source)
    return {str(name): identity_from(source, entry) for name, entry in table.items()}


def _damage(source: str) -> DataError:
    return DataError(f"{source}: expected size and digests of a data set, found something else")


@dataclass(frozen=True)
class Recorded:
    """The data that a run, or one of a comparison or search, was begun with; `who` names it in messages."""

    who: str
    data: Identity

    def places(self, dataset: str, data_dir: str | Path | None) -> list[Place]:
        """Where to look for the data now: names and folders as `load` takes them, in this order.

        A user's own file may have moved to the data folder; other data sets are looked for where they were
        unless a data folder is set. Raises `DataError` if a user's own file is in neither place.
        """
        folder = data_dir or os.environ.get(places.ENVIRONMENT)
        if not is_own_data(dataset):
            return [(dataset, folder or self.data.folder)]
        path = Path(dataset)
        paths = [expanded(folder) / path.name, path] if folder else [path]
        there: list[Place] = [(str(path), None) for path in paths if path.exists()]
        if not there:
            raise DataError(
                f"{self.who}: its data {path} are not there; name the folder they are in now with --data-dir"
            )
        return there

    def check(self, now: Identity) -> None:
        """Raise `RunError` unless `now` are the same data, dealt in the same way if they are dealt."""
        then = self.data
        if now.digest != then.digest:
            place = f"{now.dataset} in {now.folder}" if now.folder else now.dataset
            moved = f" (it was in {then.folder})" if then.folder and then.folder != now.folder else ""
            raise RunError(
                f"{self.who}: was begun with other data: {place} has {_difference(now, then)}{moved}; "
                "put the right data back, or name their folder with --data-dir"
            )
        if now.dealt and now.dealt != then.dealt:
            raise RunError(
                f"{self.who}: was begun with other nodes: the samples of {now.dataset} are the same, but "
                "dealt to the nodes differently; undo what was changed in its configuration, or use the "
                "version that began it"
            )


def _difference(now: Identity, then: Identity) -> str:
    """How the data differ; what was found now comes first."""
    if now.samples != then.samples:
        return f"{now.samples} samples, expected {then.samples}"
    if now.shape != then.shape:
        return f"samples of shape {tuple(now.shape)}, expected {tuple(then.shape)}"
    if now.classes != then.classes:
        return f"{now.classes} classes, expected {then.classes}"
    return f"other samples or labels, though as many ({now.samples})"
