"""A federation on loopback whose commands are those of the README in its app folder."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARK = "REFIMPL_TEST_MARK"  # the variable of the environment that tells the processes of a test


def marked(mark: str) -> dict[int, str]:
    """The command lines, by process id, of processes whose mark begins with `mark`."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (path / "environ").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_text()
    return found


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free now."""
    for first in range(20000 + os.getpid() % 20000, 60000, count):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    raise OSError("no free ports")


class Deployment:
    """The processes of a federation, which end with the block, and by themselves after `seconds`."""

    def __init__(self, folder: Path, nodes: int, seconds: int) -> None:
        self.folder, self.nodes, self.port = folder, nodes, free_ports(nodes + 1)
        self.mark, self.limit = uuid.uuid4().hex, time.monotonic() + seconds
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def left(self) -> float:
        """The seconds that are left for everything."""
        return max(1.0, self.limit - time.monotonic())

    def blocks(self, node: int = 0) -> list[str]:
        """The blocks of commands of the README, for that node and with ports that are free."""
        text = (self.folder / "README.md").read_text()
        found = re.findall(r"```console\n(.*?)```", text, flags=re.S)
        shell = ["\n".join(line.removeprefix("$ ") for line in block.splitlines()) for block in found]
        own = [block.replace("NODE=0", f"NODE={node}").replace("9094", str(self.port + 1)) for block in shell]
        return own[:1] + [f"{own[0]}\n{block}" for block in own[1:]]

    def environment(self, name: str) -> dict[str, str]:
        """What the commands need: this Python's programs, and a mark."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "NUMBA_NUM_THREADS": "1", MARK: f"{self.mark}-{name}"}

    def run(self, script: str) -> str:
        """Run a block, which must succeed, to its end; what it printed."""
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=self.folder,
            env=self.environment("run"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.left,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, name: str, script: str) -> None:
        """Start a block that goes on until it is ended."""
        with open(self.folder / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                ["timeout", "-k", "5", str(int(self.left)), "bash", "-ec", script],
                cwd=self.folder,
                env=self.environment(name),
                stdout=log,
                stderr=log,
            )

    def log(self, name: str) -> str:
        """What a started block has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str, command: str = "") -> None:
        """Kill the processes of a block whose command line has `command` in it, all of them by default."""
        while found := [pid for pid, line in marked(f"{self.mark}-{name}").items() if command in line]:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        if not command:
            self.running.pop(name).wait()

    def join(self, node: int) -> None:
        """Start a node."""
        self.start(f"node-{node}", self.blocks(node)[5])

    def until(self, true: Callable[[], object], what: str) -> None:
        """Wait until `true()`; the logs are shown where that takes too long."""
        while not true():
            if time.monotonic() > self.limit:
                logs = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log")]
                raise AssertionError("\n".join([f"{what} did not come in time", *logs]))
            time.sleep(0.5)

    def __enter__(self) -> Deployment:
        """Make certificates and keys, start the server and register the nodes."""
        try:
            self.run(self.blocks()[1])
            for node in range(self.nodes):
                self.run(self.blocks(node)[3])
            self.start("server", self.blocks()[2])
            self.until(lambda: _listens(self.port), "the SuperLink")
            for node in range(self.nodes):
                self.run(self.blocks(node)[4])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.running):
            self.kill(name)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
