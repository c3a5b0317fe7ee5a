"""Run a recorded run again: training is deterministic, so what was not stored is found by repeating it.

The loss and the gap of every repeated round must equal those that the run recorded.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from refimpl.contracts import State
from refimpl.errors import RunError
from refimpl.experiments.experiment import Experiment
from refimpl.experiments.record import RunFolder
from refimpl.federated.rounds import RoundRecord
from refimpl.files.storage import plain


class Replayed(NamedTuple):
    """A round with the method's states before and after it."""

    record: RoundRecord
    before: State
    after: State


def over_the_run(folder: RunFolder, points: int = 4) -> list[int]:
    """A few rounds from the first to the last recorded, evenly spread on a logarithmic axis."""
    written = folder.metrics()
    if not written:
        raise RunError(f"{folder.path}: has no rounds yet; go on with refimpl train --resume")
    return spaced_rounds(int(written[-1]["round"]), points)


def spaced_rounds(last: int, points: int) -> list[int]:
    """At most `points` rounds from 1 to the last, evenly spread on a logarithmic axis."""
    return sorted({round(last ** (i / (points - 1))) for i in range(points)})


def replay(
    experiment: Experiment, folder: RunFolder, last: int, threads: int | None = None
) -> Iterator[Replayed]:
    """Repeat the rounds 1..last of the run; raises `RunError` if one does not give the recorded numbers."""
    written = {entry["round"]: entry for entry in folder.metrics()}
    state = experiment.start()
    for following, record in experiment.rounds(state, range(1, last + 1), threads):
        _check_repeats(folder, record, written[record.round])
        yield Replayed(record, state, following)
        state = following


def _check_repeats(folder: RunFolder, record: RoundRecord, written: dict[str, Any]) -> None:
    """Raise `RunError` unless the repeated round has the recorded loss and gap."""
    for name in ("loss", "gap"):
        again, then = plain(getattr(record, name)), written.get(name)
        if again != then:
            raise RunError(
                f"{folder.path}: round {record.round} does not repeat: {name} is {again!r} now, was {then!r} "
                "(another version, other data?); theory gap --rounds checkpoint, report --quick repeat none"
            )
