"""The measuring process: pins itself, then imports the peers and prints events as JSON lines."""

from __future__ import annotations

import argparse
import os

from refimpl.bench.process import emit, pin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.worker")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--section", choices=("kernels", "end-to-end"), required=True)
    parser.add_argument("--peers", default="", help="names with commas between them")
    parser.add_argument("--size", choices=("smallest", "usual", "all"), default="all")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    pin(options.threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from bench.plans import plan
    from refimpl.bench.session import play

    peers = [name for name in options.peers.split(",") if name]
    emit(play(plan(options.section, options.threads, peers, options.size, options.clock)))


if __name__ == "__main__":
    main()
