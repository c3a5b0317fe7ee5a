"""A SuperNode's client process that runs the installed refimpl instead of the code that was sent.

Flower's SuperNode starts `flwr-clientapp` for a message, and that unpacks and imports the app bundle which
the server distributes. This program takes its place: all is as before, but the client is the one made here
from the node's own job file, and the bundle is not unpacked.
"""

import sys
from pathlib import Path

import flwr.supernode.runtime.run_clientapp as runtime
from flwr.supernode.cli import flwr_clientapp

from refimpl.engine.flower import make_client
from refimpl.engine.job import read_job

REPLACED = ("install_from_fab", "get_load_client_app_fn")


def main(job_file: Path) -> None:
    """Serve one message; ends the process at once where Flower has no longer what must be replaced."""
    lacking = [name for name in REPLACED if not hasattr(runtime, name)]
    if lacking:
        sys.exit(f"refimpl: this flwr has no {', '.join(lacking)}; install refimpl[flower] again")
    client = make_client(read_job(job_file), alone=True)
    runtime.install_from_fab = lambda *_, **__: None
    runtime.get_load_client_app_fn = lambda *_, **__: lambda *_: client
    flwr_clientapp()
