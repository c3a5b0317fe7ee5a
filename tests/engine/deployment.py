"""A federation on loopback whose commands are those of the README in its app folder."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

SECONDS = 500  # after which every process ends by itself
PATIENT = 240.0  # seconds in which something is waited for


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free now."""
    for first in range(20000 + os.getpid() % 20000, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise OSError("no free ports")


class Deployment:
    """The processes of a federation, each in a group of its own that ends with the block."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes, self.port = folder, nodes, free_ports(nodes + 1)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def blocks(self, node: int = 0) -> list[str]:
        """The blocks of commands of the README, for that node and with ports that are free."""
        text = (self.folder / "README.md").read_text()
        found = re.findall(r"```console\n(.*?)```", text, flags=re.S)
        shell = ["\n".join(line.removeprefix("$ ") for line in block.splitlines()) for block in found]
        own = [block.replace("NODE=0", f"NODE={node}").replace("9094", str(self.port + 1)) for block in shell]
        return own[:1] + [f"{own[0]}\n{block}" for block in own[1:]]

    def run(self, script: str, **kind: object) -> subprocess.CompletedProcess[str]:
        """Run a block to its end; it must succeed."""
        return subprocess.run(
            ["bash", "-ec", script],
            cwd=self.folder,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    @property
    def environment(self) -> dict[str, str]:
        """What the commands need: this Python's programs, and this package."""
        own = Path(sys.executable).parent
        return {**os.environ, "PATH": f"{own}:{os.environ['PATH']}", "NUMBA_NUM_THREADS": "1"}

    def start(self, name: str, script: str) -> None:
        """Start a block that goes on until it is ended."""
        with open(self.folder / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                ["timeout", "-k", "5", str(SECONDS), "bash", "-ec", script],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        """What a started block has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def end(self, name: str, how: int = signal.SIGKILL) -> None:
        """End a started block and all that it started."""
        process = self.running.pop(name)
        for pid in [process.pid, *_descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        process.wait(20)

    def server(self) -> None:
        """Start the SuperLink and wait until it answers."""
        self.start("server", self.blocks()[2])
        self.until(lambda: _listens(self.port), "the SuperLink")

    def join(self, node: int, data: str = "") -> None:
        """Start a node; data: the value of the variable DATA of the README."""
        script = self.blocks(node)[5]
        self.start(f"node-{node}", re.sub("DATA=[^\n]*", f"DATA={data}", script) if data else script)

    def until(self, true: object, what: str, seconds: float = PATIENT) -> None:
        """Wait until `true()`."""
        end = time.monotonic() + seconds
        while not true():  # type: ignore[operator]
            assert time.monotonic() < end, f"{what} did not come in {seconds:g} s"
            time.sleep(0.2)

    def __enter__(self) -> Deployment:
        """Make certificates and keys, start the server and register the nodes."""
        try:
            self.run(self.blocks()[1])
            for node in range(self.nodes):
                self.run(self.blocks(node)[3])
            self.server()
            for node in range(self.nodes):
                self.run(self.blocks(node)[4])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.running):
            self.end(name)

    def train(self, settings: str = "") -> str:
        """Run the README's `flwr run` to the end of the run, and return what it printed."""
        script = self.blocks()[6] + (f' --run-config "{settings}"' if settings else "")
        return self.run(script).stdout


def _descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        own, parent = map(int, line.split())
        children.setdefault(parent, []).append(own)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
