"""The cases of every level, built from a seed; each module says what its inputs and outputs mean."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from refimpl.crosscheck.golden.case import LEVELS, Case
from refimpl.crosscheck.golden.models import DEEP, NAMES
from refimpl.crosscheck.golden.subject import Subject
from refimpl.errors import one_of

# A level has `cases`, `own_cases`, and `KINDS`: the functions that compute its kinds of cases.
MODULES: Mapping[str, Any] = {name: import_module(f"{__name__}.{name}") for name in LEVELS}


def build_cases(
    level: str,
    seed: int = 0,
    dtype: str = "float64",
    models: Sequence[str] = (),
    full: bool = False,
    own: Subject | None = None,
) -> Iterator[Case]:
    """The cases of a level, or of all levels for `all`, of the package's networks or of a user's `own`.

    `models` (none: all of the package's) and `full` are for the level networks.
    """
    chosen = models or (*NAMES, *(DEEP if dtype == "float64" else ()))
    one_of("golden", "level", level, (*LEVELS, "all"))
    for name in LEVELS if level == "all" else (level,):
        if own is not None:
            yield from MODULES[name].own_cases(own, seed, dtype)
        elif name == "networks":
            yield from MODULES[name].cases(seed, dtype, chosen, full)
        else:
            yield from MODULES[name].cases(seed, dtype)
