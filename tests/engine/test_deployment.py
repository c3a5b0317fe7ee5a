"""A deployment over loopback with TLS and node keys, by the commands of its README, and with every fault."""

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from deployment import Deployment

from refimpl.engine.folder import Address, write_app
from refimpl.engine.job import published
from refimpl.engine.rounds import Patience
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import meta_model, prepare, train
from refimpl.experiments.record import RunFolder

pytest.importorskip("flwr")
pytestmark = [pytest.mark.flower, pytest.mark.slow]

CONFIG = resolve(dataset="digits", model="mlp", method="metagater", nodes=3, targets=0, rounds=5)
FAULTS = """\
1 0 raises
1 1 nan
2 2 shape
2 0 stale
3 1 killed
4 2 vanishes
"""
SAID = {
    "raises": "on fire",
    "nan": "NaN",
    "shape": "expected",
    "stale": "answer to round 2",
    "killed": "",
    "vanishes": "",
}


def process_named(deployment: Deployment, name: str) -> int | None:
    """The process of that name that works in the folder of the deployment."""
    listed = subprocess.run(["pgrep", "-f", name], capture_output=True, text=True, check=False).stdout
    for pid in map(int, listed.split()):
        with suppress(OSError):
            if Path(os.readlink(f"/proc/{pid}/cwd")) == deployment.folder:
                return pid
    return None


def saved(folder: Path) -> int:
    path = folder / "run" / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_every_fault_over_loopback_loses_no_round_and_changes_no_byte(tmp_path):
    folder = tmp_path / "app"
    with suppress(StopIteration):
        folder.mkdir()
    deployment = Deployment(folder, nodes=3)
    write_app(
        folder, published(CONFIG), Patience("wait", deadline=45.0), Address("localhost", deployment.port)
    )
    (folder / "bin" / "flwr-clientapp").write_text(
        Path(__file__).with_name("faulty-clientapp.txt").read_text()
    )
    (folder / "faults.txt").write_text(FAULTS)
    with deployment:
        for node in range(3):
            deployment.join(node)
        deployment.start("train", deployment.blocks()[6])
        deployment.until(lambda: saved(folder) >= 2, "two rounds")
        deployment.end("node-1")  # a node is killed, and comes back under the same partition id
        os.kill(process_named(deployment, "flwr-serverapp"), signal.SIGKILL)  # and so is the server
        done = saved(folder)
        deployment.end("train")
        deployment.join(1)
        deployment.train()
        with RunFolder.open(folder / "run") as run:
            records, found = run.metrics(), meta_model(prepare(CONFIG), run)
    assert [record["round"] for record in records] == [1, 2, 3, 4, 5]
    assert all(record["nodes"] == [0, 1, 2] for record in records)
    assert found.tobytes() == train(prepare(CONFIG)).w.tobytes()
    assert 2 <= done < 5
    for line in FAULTS.splitlines():
        round_, node, fault = line.split()
        (why, *_) = records[int(round_) - 1]["faults"][node]
        assert SAID[fault] in why, json.dumps(records)
