"""Peak memory of the CIFAR round: one process for each candidate, so that none sees another's memory.

Every process first loads this package, whose cases and checks it needs; what that cost is taken off where
another framework does the work. Machine code comes from the disk cache (this package) or is compiled (JAX).
"""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from pathlib import Path

from refimpl.bench.process import emit, pin

# Name: module and the number of the maker among its PROGRAMS.
CANDIDATES = {
    "refimpl": ("refimpl.bench.endtoend", 0),
    "torch autograd": ("bench.peers.torch_plain", 0),
    "torch tuned, NCHW": ("bench.peers.torch_tuned", 0),
    "torch tuned, channels-last": ("bench.peers.torch_tuned", 1),
    "jax jit, unrolled": ("bench.peers.jax_programs", 0),
}
NEEDS = {"torch": "torch", "jax": "jax"}  # first word of the name: framework


def offered(peers: list[str]) -> list[str]:
    """The candidates whose framework is among the peers."""
    return [name for name in CANDIDATES if name == "refimpl" or name.split()[0] in peers]


def status(field: str) -> int:
    """A line of the system's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise LookupError(field)


def measure(name: str, smallest: bool) -> dict[str, object]:
    """Run the round twice; peak of the process, and how far it rose above what was loaded before."""
    import numpy as np  # the floor: any of the candidates needs it

    np.zeros(1)
    bare = status("VmRSS")
    from refimpl.bench.endtoend import INSTALLED
    from refimpl.bench.programs import cnn3_round
    from refimpl.bench.session import smallest_programs

    harness = status("VmRSS")
    module, number = CANDIDATES[name]
    makers = INSTALLED if name == "refimpl" else import_module(module).PROGRAMS
    program = smallest_programs()[0] if smallest else cnn3_round(5, 0.5)
    loaded = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    candidate = makers[number](program, 1)
    for _ in range(2):
        candidate.run()
    peak = status("VmHWM")
    not_its_own = 0 if name == "refimpl" else harness - bare
    return {
        "candidate": name,
        "program": program.label,
        "process_bytes": peak - not_its_own,
        "round_bytes": peak - loaded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--candidate", choices=CANDIDATES, required=True)
    parser.add_argument("--smallest", action="store_true")
    options = parser.parse_args()
    pin(options.threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    emit([("memory", measure(options.candidate, options.smallest))])


if __name__ == "__main__":
    main()
