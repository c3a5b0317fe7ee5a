"""The rounds of `rounds.py` over Flower: a ServerApp, a ClientApp and Flower's simulation.

Only this module imports `flwr`. Parameters travel as one array of raw bytes, numbers as a record of numbers;
Flower's own conversion of arrays, which trusts the sizes in a message, is not used.
"""

from __future__ import annotations

import faulthandler
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from refimpl.engine.job import Job
from refimpl.engine.messages import Hello, Question, Sealed, brief, sealed, whole
from refimpl.engine.node import Worker
from refimpl.engine.rounds import FederatedRecord, Patience, Reply
from refimpl.errors import InputError, RunError
from refimpl.experiments.experiment import Trained, train
from refimpl.experiments.record import RunFolder
from refimpl.files.environment import cores

HELLO, SOLVE = "query.hello", "train.solve"
RAW = "refimpl.little-endian"  # how the bytes of an array are to be read
VECTOR, NUMBERS = "w", "numbers"
LOCAL = {  # of the simulation's Ray: it listens on this machine only, and is silent
    "_node_ip_address": "127.0.0.1",
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": "ERROR",
}
SECLUDED = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}
AGAIN = 30.0  # seconds after which a node that could not say who it is is asked again
POLL = 0.1  # seconds between two looks for answers


# --- messages


def _packed(message: Sealed) -> RecordDict:
    array = Array(message.dtype, (len(message.data),), RAW, message.data)
    return RecordDict({VECTOR: ArrayRecord({VECTOR: array}), NUMBERS: MetricRecord(dict(message.numbers))})


def _unpacked(content: RecordDict) -> Sealed:
    """What a message holds; `InputError` where it does not hold one raw vector and numbers."""
    arrays, numbers = content.get(VECTOR), content.get(NUMBERS)
    if not isinstance(arrays, ArrayRecord) or not isinstance(numbers, MetricRecord) or len(arrays) != 1:
        raise InputError("message: expected one vector and numbers, got something else")
    (array,) = arrays.values()
    if array.stype != RAW:
        raise InputError(f"message: expected a vector as {RAW}, got {brief(array.stype)}")
    return Sealed(array.data, array.dtype, dict(numbers))


# --- nodes


MOST = 256  # nodes whose samples a process keeps at a time
_WORKERS: dict[tuple[str, int, str | None, int], Worker] = {}  # of this process, which may work for many


def make_client(
    job: Job, data: str | None = None, threads: int | None = None, alone: bool = False
) -> ClientApp:
    """The ClientApp of a job. A node's configuration has `partition-id` and, where needed, `data`.

    alone: whether the process is there for one message only. It then ends when nobody waits for its answer
    any longer; a SuperNode whose client hangs would get no other message done.
    """
    app = ClientApp()

    def worker(context: Context) -> Worker:
        number, own = context.node_config.get("partition-id"), context.node_config.get("data", data)
        if type(number) is not int:
            raise InputError("node: expected its number; give partition-id=0 (or 1, ...) in --node-config")
        name = job.digest(), number, None if own is None else str(own), threads or cores()
        if name not in _WORKERS:
            if len(_WORKERS) >= MOST:
                _WORKERS.clear()
            _WORKERS[name] = Worker(job, *name[1:])
        return _WORKERS[name]

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        told = {**worker(context).hello()._asdict(), "job": job.digest()}
        record = ConfigRecord(told)
        return Message(RecordDict({NUMBERS: record}), reply_to=message)

    @app.train("solve")
    def solve(message: Message, context: Context) -> Message:
        if alone:
            faulthandler.dump_traceback_later(message.metadata.ttl, exit=True)
        return Message(_packed(worker(context).answer(_unpacked(message.content))), reply_to=message)

    return app


# --- server


def _hello(reply: Message, job: Job) -> Hello:
    """A node's introduction; `InputError` where it is none, or one to another job."""
    if reply.has_error():
        raise InputError(f"a node failed: {brief(reply.error.reason)}")
    record = reply.content.get(NUMBERS)
    numbers: Mapping[str, object] = record if isinstance(record, ConfigRecord) else {}
    node, samples = (whole("a node", numbers, name) for name in ("node", "samples"))
    if node >= job.config.nodes or numbers.get("job") != job.digest():
        raise InputError(f"node {node}: expected a node of this job; give all nodes the server's app folder")
    return Hello(node, samples)


class FlowerLink:
    """The way to the nodes over Flower's grid.

    A node is known by its partition id, which it is asked for once, and not by the number that Flower gives
    it when it connects. So a node that comes back under the same partition id goes on.
    """

    def __init__(self, grid: Grid, job: Job, say: Callable[[str], None] = lambda text: None) -> None:
        self._grid, self._job, self._say = grid, job, say
        self._asked: dict[str, int] = {}  # who has been asked who it is, by the id of the message
        self._due: dict[int, float] = {}  # from when on somebody is to be asked (again)
        self._claims: dict[int, list[int]] = {}  # who said to be a node, in the order of saying so
        self._sizes: dict[int, int] = {}
        self._online: set[int] = set()

    @property
    def sizes(self) -> Mapping[int, int]:
        """See `Link`."""
        return self._sizes

    def meet(self, count: int, seconds: float, fewest: int) -> None:
        """See `Link`."""
        end, why = time.monotonic() + seconds, ""
        while len(self._present()) < count:
            why = self._introduce() or why
            if time.monotonic() > end:
                break
            time.sleep(POLL)
        if len(self._present()) < fewest:
            absent = [node for node in range(count) if node not in self._present()]
            raise RunError(
                f"engine: expected {count} nodes within {seconds:g} s, {len(absent)} did not come "
                f"({', '.join(map(str, absent))[:60]}){why and ': '}{why}; start them and run it again"
            )

    def ask(
        self, questions: Sequence[Question], seconds: float, patient: bool
    ) -> Iterator[tuple[int, Reply]]:
        """See `Link`."""
        end = time.monotonic() + seconds
        waiting, sent = {question.node: question for question in questions}, dict[str, int]()
        self._introduce()
        while waiting and time.monotonic() < end:
            there = self._present()
            for node, question in waiting.items():
                if node in there and node not in sent.values():
                    content = _packed(sealed(question.point, round=question.round, node=node))
                    sent |= dict.fromkeys(self._push(there[node], SOLVE, content, seconds), node)
            if not patient:
                for node in [node for node in waiting if node not in sent.values()]:
                    del waiting[node]
                    yield node, "not connected"
            for reply in self._grid.pull_messages(list(sent)) if sent else ():
                answered = sent.pop(reply.metadata.reply_to_message_id, None)
                if answered is not None:
                    waiting.pop(answered, None)
                    yield answered, _reply(reply)
            time.sleep(POLL)
            self._introduce()
        for node in waiting:
            yield node, f"no answer within {seconds:g} s" if node in sent.values() else "not connected"

    def _present(self) -> dict[int, int]:
        """Flower's number of each node that is connected; the first one that claimed to be it counts."""
        found: dict[int, int] = {}
        for node, claims in self._claims.items():
            connected = [claim for claim in claims if claim in self._online]
            found |= {node: connected[0]} if connected else {}
        return found

    def _introduce(self) -> str:
        """Ask everybody new who it is, and hear who has said so; returns the last thing that failed."""
        self._online = set(self._grid.get_node_ids())
        for number in self._online:
            if time.monotonic() >= self._due.get(number, 0.0):
                self._due[number] = math.inf
                self._asked |= dict.fromkeys(self._push(number, HELLO, RecordDict(), 600.0), number)
        why = ""
        for reply in self._grid.pull_messages(list(self._asked)) if self._asked else ():
            number = self._asked.pop(reply.metadata.reply_to_message_id, -1)
            try:
                node, samples = _hello(reply, self._job)
            except InputError as error:
                why, self._due[number] = str(error), time.monotonic() + AGAIN
                self._say(f"engine: {why}")
                continue
            self._claims.setdefault(node, []).append(number)
            self._sizes[node] = samples
        return why

    def _push(self, number: int, kind: str, content: RecordDict, seconds: float) -> list[str]:
        """Send one message; its id, or nothing where it could not be sent."""
        message = Message(content, number, kind, ttl=seconds)
        return [name for name in self._grid.push_messages([message]) if name]


def _reply(message: Message) -> Reply:
    if message.has_error():
        return f"failed: {brief(message.error.reason)}"
    try:
        return _unpacked(message.content)
    except InputError as error:
        return str(error)


def serve(
    grid: Grid,
    job: Job,
    patience: Patience,
    folder: RunFolder,
    **how: Any,
) -> Trained:
    """Run the rounds that the folder does not have yet; `how`: the other arguments of `train`."""
    experiment = job.server(FlowerLink(grid, job, print), patience)
    return train(experiment, folder, **{**how, "resume": True})


def make_server(job: Job) -> ServerApp:
    """The ServerApp of a job; the run's configuration has `out` and the fields of `Patience`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = dict(context.run_config)
        out, patience = Path(str(given.pop("out"))), Patience(**given)
        with job.folder(out) as folder:
            found = serve(
                grid, job, patience, folder, on_round=lambda record: print(_said(record), flush=True)
            )
            print(f"engine: {found.rounds} rounds are done; the meta-model is in {folder.path.absolute()}")

    return app


def _said(record: FederatedRecord) -> str:
    faults = "".join(f"; node {node}: {why[-1]}" for node, why in record.faults.items())
    return (
        f"engine: round {record.round}, loss {record.loss:.4f}, {len(record.nodes)} nodes answered"
        f" in {record.seconds:.1f} s{faults}"
    )


def simulate(
    job: Job,
    folder: RunFolder,
    patience: Patience,
    data_dir: Path | None = None,
    threads: int | None = None,
    **how: Any,
) -> Trained:
    """Train with Flower's simulation on Ray, whose processes (one for each of `threads`) end with it.

    how: the other arguments of `train`.
    """
    from flwr.simulation import run_simulation  # nodes of a deployment do without it

    app, found = ServerApp(), list[Trained]()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        found.append(serve(grid, job, patience, folder, **how))

    with _secluded():
        run_simulation(
            app,
            make_client(job, None if data_dir is None else str(data_dir.absolute()), threads=1),
            num_supernodes=job.config.nodes,
            backend_config={
                "init_args": {"num_cpus": threads or cores(), **LOCAL},
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )
    return found[0]


@contextmanager
def _secluded() -> Iterator[None]:
    """Within the block, Ray asks no cloud provider whether this is its machine: nobody hears its requests.

    Ray's reports are off, but it collects what would be in them. So what it sends by HTTP to other machines
    goes to a port of this machine that nobody listens to.
    """
    before = {name: os.environ.get(name) for name in SECLUDED}
    os.environ.update(SECLUDED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
