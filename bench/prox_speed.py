"""The prox of the group lasso against a plain copy: `python -m bench.prox_speed`.

10^6 parameters in 10^4 groups, of equal, of unequal size, and scattered like a gate's (two stretches each).
The result is first checked against NumPy, then timed, taking turns, on one core. The prox reads the vector
twice (is it finite; norms and scaling, group by group) and writes it once, a copy does each once: at memory
speed the ratio is about 1.5.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from refimpl.bench.process import pin

SIZE, GROUPS, RHO, STEP = 10**6, 10**4, 0.1, 0.5
HEADER = ("dtype", "groups", "prox us", "copy us", "prox / copy", "NumPy / copy", "prox GB/s")


def layouts() -> Iterator[tuple[str, object]]:
    """Names and `Groups`: equal, unequal (1 to 199 entries), each group in two stretches."""
    import numpy as np

    from refimpl.optim.prox import Groups

    each, rng = SIZE // GROUPS, np.random.default_rng(0)
    yield "equal", Groups.from_sizes(np.full(GROUPS, each))
    half = rng.integers(1, 2 * each, GROUPS // 2)
    yield "unequal", Groups.from_sizes(np.column_stack([half, 2 * each - half]).ravel())
    rows = np.arange(SIZE).reshape(2, GROUPS, each // 2)
    yield "scattered", Groups(np.arange(0, SIZE + 1, each), rows.transpose(1, 0, 2).ravel(), SIZE)


def by_numpy(v, groups, step):
    """The same prox in the obvious NumPy."""
    import numpy as np

    norms = np.sqrt(np.bincount(groups.owner, weights=np.square(v, dtype=np.float64), minlength=len(groups)))
    factor = np.maximum(1.0 - step * RHO * np.sqrt(groups.sizes) / norms, 0.0)
    return (factor[groups.owner] * v).astype(v.dtype)


def measure(dtype: str, name: str, groups, effort) -> dict[str, object]:
    """One line of the table; raises `AssertionError` if the prox is wrong."""
    import numpy as np

    from refimpl.bench.timing import interleave
    from refimpl.optim.prox import GroupLasso

    rng = np.random.default_rng(1)
    # norms from 0 to 1 around a threshold of 0.5: some groups vanish
    v = (groups.spread(rng.random(GROUPS)) * rng.standard_normal(SIZE) / 10).astype(dtype)
    out, penalty = np.empty_like(v), GroupLasso(groups, RHO)
    penalty.prox(v, STEP, out)
    np.testing.assert_allclose(out, by_numpy(v, groups, STEP), rtol=1e-6, atol=1e-7)
    assert 0.05 < np.mean(out == 0) < 0.95
    runs = {
        "prox": lambda: penalty.prox(v, STEP, out),
        "copy": lambda: np.copyto(out, v),
        "numpy": lambda: by_numpy(v, groups, STEP),
    }
    times = {key: timing.seconds for key, timing in interleave(runs, effort).items()}
    return {"dtype": dtype, "groups": name, "bytes": v.nbytes, **times}


def line(found: dict[str, object]) -> tuple[str, ...]:
    prox, copy, other, size = (float(found[key]) for key in ("prox", "copy", "numpy", "bytes"))
    times = f"{1e6 * prox:.0f}", f"{1e6 * copy:.0f}", f"{prox / copy:.2f}", f"{other / copy:.1f}"
    return str(found["dtype"]), str(found["groups"]), *times, f"{2e-9 * size / prox:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.prox_speed", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--smoke", action="store_true", help="two samples only, to see that it works")
    options = parser.parse_args()
    pin(1)
    from refimpl.bench.timing import SMOKE, Effort
    from refimpl.files.tables import table

    effort = SMOKE if options.smoke else Effort(rounds=15, seconds=2.0, sample=3e-3)
    found = [measure(dtype, *case, effort) for dtype in ("float32", "float64") for case in layouts()]
    print(json.dumps(found) if options.json else table(HEADER, [line(one) for one in found]))


if __name__ == "__main__":
    main()
