"""A deployment over loopback with TLS and node keys, by the commands of its README, and with every fault."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployment import Deployment, marked

from refimpl.engine.folder import Address, write_app
from refimpl.engine.job import published
from refimpl.engine.rounds import Patience
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import meta_model, prepare
from refimpl.experiments.record import RunFolder
from refimpl.federated.rounds import Participation, run_rounds

pytest.importorskip("flwr")
pytestmark = [pytest.mark.flower, pytest.mark.slow]

SECONDS = 700  # for everything; three minutes where nothing else runs
CONFIG = resolve(dataset="digits", model="mlp", method="metagater", nodes=3, targets=0, rounds=3)
FAULTS = {
    "fail": ("1 0 raises",),
    "skip": ("1 0 nan", "1 1 shape", "2 0 holds", "2 1 holds", "2 2 holds"),
    "wait": ("2 0 killed", "2 1 vanishes", "2 2 vanishes", "3 0 stale", "3 1 duplicate"),
}
SILENT = ("no answer within 30 s", "not connected", "failed: Error: ")  # what Flower or the deadline says
LOST = 60.0  # seconds without a server after which a run is started again
ANSWERED = [(2,), (0, 1, 2), (0, 1, 2)]  # by round


class Answered(Participation):
    """Participation of the nodes that answered."""

    def sample(self, count, round_, seeds):
        return list(ANSWERED[round_ - 1])


def in_one_process() -> np.ndarray:
    """The meta-model of rounds in which those nodes take part that answered."""
    one, who = prepare(CONFIG), Answered(0, CONFIG.weighted)
    *_, (state, _) = run_rounds(one.method, one.tasks(), one.start(), range(1, 4), who, one.seeds)
    return one.method.model(state)


class Faulty(Deployment):
    """A deployment in whose folder a file says which faults the nodes' clients have."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, CONFIG.nodes, SECONDS)
        write_app(folder, published(CONFIG), Patience(), Address("localhost", self.port))
        client = Path(__file__).with_name("faulty-clientapp.txt").read_text()
        (folder / "bin" / "flwr-clientapp").write_text(client)

    def train(self, policy: str, deadline: float) -> None:
        """Start a run with that policy and its faults."""
        (self.folder / "faults.txt").write_text("\n".join(FAULTS[policy]))
        self.command = (
            f"{self.blocks()[6]} --run-config \"policy='{policy}' deadline={deadline} attempts=50\""
        )
        self.start("train", self.command)
        self.seen = time.monotonic()

    def reach(self, true: Callable[[], object], what: str) -> None:
        """Wait until `true()`; a run that Flower gave up, as on a very busy machine, is started again."""

        def reached() -> bool:
            now = time.monotonic()
            if true():
                return True
            if any("flwr-serverapp" in line for line in marked(f"{self.mark}-server").values()):
                self.seen = now
            if now > self.seen + LOST:
                self.kill("train")
                self.start("train", self.command)
                self.seen = now
            return False

        self.until(reached, what)

    def happen(self, faults: Sequence[str]) -> None:
        """Wait until these faults have happened."""
        files = [self.folder / f"happened-{fault.replace(' ', '-')}" for fault in faults]
        self.reach(lambda: all(file.exists() for file in files), ", ".join(faults))

    def say(self, text: str) -> None:
        """Wait until the server has said it."""
        self.reach(lambda: text in self.log("train"), text)


def test_every_fault_over_loopback_loses_no_round_and_changes_no_byte(tmp_path):
    with Faulty(tmp_path / "app") as deployment:
        for node in range(CONFIG.nodes):
            deployment.join(node)
        deployment.train("fail", 300.0)
        deployment.say("round 1: expected answers of 3 nodes")
        assert "on fire" in deployment.log("train")
        assert not records(deployment)
        deployment.kill("train")

        deployment.train("skip", 300.0)
        deployment.happen(FAULTS["skip"])
        assert len(records(deployment)) == 1
        deployment.kill("server", "flwr-serverapp")  # in round 2
        deployment.kill("train")
        (deployment.folder / "released").touch()

        deployment.train("wait", 30.0)
        deployment.happen(FAULTS["wait"][:3])
        deployment.kill("node-2")
        deployment.join(2)
        deployment.say("3 rounds are done")
    assert not marked(deployment.mark)

    with RunFolder.open(deployment.folder / "run") as run:
        found = meta_model(prepare(CONFIG), run)
    assert found.tobytes() == in_one_process().tobytes()
    first, second, third = records(deployment)
    assert [tuple(record["nodes"]) for record in (first, second, third)] == ANSWERED
    assert "NaN" in first["faults"]["0"][0]
    assert "got 47796 bytes" in first["faults"]["1"][0]
    assert set(second["faults"]) == {"0", "1", "2"}
    assert all(why.startswith(SILENT) for whys in second["faults"].values() for why in whys)
    assert second["seconds"] >= 30
    assert "to round 2" in third["faults"]["0"][0]


def records(deployment: Deployment) -> list[dict[str, Any]]:
    """The rounds that the server has saved."""
    text = (deployment.folder / "run" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
