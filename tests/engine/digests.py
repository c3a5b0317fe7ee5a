"""The digest of the meta-model in one process, simulated, and deployed over loopback with TLS and node keys.

`python tests/engine/digests.py` trains every method of `METHODS` for five rounds on four nodes of the digits,
all of them and two in a round, and prints a row for each. It needs the extra `flower`, and takes too long
for a test. `python tests/engine/digests.py deployed maml-2` makes one column and one row alone.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deployment import Deployment

from refimpl.engine.flower import simulate
from refimpl.engine.folder import Address, write_app
from refimpl.engine.job import Job, published
from refimpl.engine.rounds import Patience
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import prepare, train
from refimpl.experiments.record import MODEL, RunFolder

METHODS = ("metagater", "fedavg", "perfedavg", "pfedme", "maml")
NODES, SECONDS = 4, 7200


def jobs() -> Iterator[tuple[str, Job]]:
    """The name and the job of each row: the method, and the nodes in a round."""
    for method in METHODS:
        for per_round in (0, NODES // 2):
            config = resolve(
                dataset="digits", method=method, nodes=NODES, targets=0, rounds=5, per_round=per_round
            )
            yield f"{method}-{per_round or NODES}", published(config)


def digest(folder: Path) -> str:
    """Of the meta-model in a run folder."""
    return hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()[:16]


def here(deployment: Deployment, name: str, job: Job) -> None:
    with RunFolder.create(deployment.folder / name, job.config.table()) as folder:
        train(prepare(job.config), folder)


def simulated(deployment: Deployment, name: str, job: Job) -> None:
    with job.folder(deployment.folder / name) as folder:
        simulate(job, folder, Patience())


def deployed(deployment: Deployment, name: str, job: Job) -> None:
    """With the SuperLink and SuperNodes that are there: only the job of their folder is another."""
    (deployment.folder / "job.toml").write_text(job.text())
    deployment.run(f"{deployment.blocks()[6]} --run-config \"out='{name}'\"")


WAYS = {"here": here, "simulated": simulated, "deployed": deployed}


def main(chosen: list[str]) -> int:
    """Print the rows; 1 if a digest differs from that of one process."""
    rows = {name: job for name, job in jobs() if name in chosen} or dict(jobs())
    ways = ["here", *[way for way in WAYS if way in chosen]] if set(WAYS) & set(chosen) else list(WAYS)
    with tempfile.TemporaryDirectory(prefix="digests-") as place:
        deployment, wrong = Deployment(Path(place) / "app", NODES, SECONDS), 0
        address = Address("localhost", deployment.port)
        write_app(deployment.folder, next(iter(rows.values())), Patience(), address)
        with deployment:
            for node in range(NODES):
                deployment.join(node)
            print(f"{'':16}{''.join(f'{way:18}' for way in ways)}", flush=True)
            for name, job in rows.items():
                found = []
                for way in ways:
                    WAYS[way](deployment, f"{way}-{name}", job)
                    found.append(digest(deployment.folder / f"{way}-{name}"))
                wrong += len(set(found)) > 1
                print(f"{name:16}{''.join(f'{one:18}' for one in found)}", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
