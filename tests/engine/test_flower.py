"""Messages, the way to the nodes and the simulation over Flower itself (extra `flower`)."""

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import uuid
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest

from refimpl.engine.job import published
from refimpl.engine.messages import Question
from refimpl.engine.node import Worker
from refimpl.engine.rounds import Patience
from refimpl.errors import InputError, RunError
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import prepare, train
from refimpl.experiments.record import RunFolder

flwr = pytest.importorskip("flwr")
pytestmark = [pytest.mark.flower, pytest.mark.filterwarnings("ignore")]

from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from refimpl.engine import flower, installed  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIG = resolve(dataset="digits", model="mlp", method="fedavg", nodes=3, targets=0, rounds=2, weighted=True)
JOB = published(CONFIG)
POINT = np.zeros(JOB.network().layout.size, np.float32)


@pytest.fixture(autouse=True)
def _identity():
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


class Grid:
    """Flower's grid as the link uses it, with clients that run as soon as they are asked.

    `clients` has a ClientApp and a partition id by Flower's number; `online` who is connected.
    """

    def __init__(self, count=3):
        self.clients = {100 + node: (flower.make_client(JOB, threads=1), node) for node in range(count)}
        self.online, self.replies, self.kinds = set(self.clients), {}, []

    def get_node_ids(self):
        return list(self.online)

    def push_messages(self, messages):
        for message in messages:
            message.metadata.__dict__["_message_id"] = name = uuid.uuid4().hex
            number = message.metadata.dst_node_id
            client, node = self.clients[number]
            self.kinds.append((number, message.metadata.message_type))
            context = Context(1, number, {"partition-id": node}, RecordDict(), {})
            self.reply(message, client, context)
            yield name

    def reply(self, message, client, context):
        try:
            self.replies[message.metadata.message_id] = [client(message, context)]
        except InputError as error:
            self.replies[message.metadata.message_id] = [Message(Error(2, str(error)), reply_to=message)]

    def pull_messages(self, names):
        return [reply for name in names for reply in self.replies.pop(name, ())]


def federated(grid):
    return JOB.server(flower.FlowerLink(grid, JOB), Patience())


def questions(*nodes):
    return [Question(1, node, POINT) for node in nodes]


@pytest.fixture
def link(monkeypatch):
    monkeypatch.setattr(flower, "POLL", 0.001)
    return lambda grid: flower.FlowerLink(grid, JOB)


def test_the_extra_names_a_range_of_flower_that_this_is_tested_with():
    from packaging.requirements import Requirement

    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    (line,) = filter(None, parser["options.extras_require"]["flower"].split("\n"))
    wanted = Requirement(line)
    assert wanted.name == "flwr"
    assert wanted.extras == {"simulation"}
    assert wanted.specifier.contains(flwr.__version__)
    assert {"<", ">="} == {one.operator for one in wanted.specifier}
    assert all(hasattr(installed.runtime, name) for name in installed.REPLACED)


def test_messages_carry_the_bytes_of_one_process():
    grid = Grid()
    found = train(federated(grid))
    assert found.w.tobytes() == train(prepare(CONFIG)).w.tobytes()
    assert sum(kind == flower.HELLO for _, kind in grid.kinds) == 3  # asked once, not in every round


HANGING = """
import time
import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from refimpl.engine import flower
from refimpl.engine.job import published
from refimpl.engine.messages import sealed
from refimpl.engine.node import Worker
from refimpl.experiments.config import resolve

Worker.answer = lambda self, message: time.sleep(600)
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
job = published(resolve(dataset="digits", model="mlp", method="fedavg", nodes=3, targets=0))
content = flower._packed(sealed(np.zeros(3), round=1, node=0))
message = Message(content, 1, flower.SOLVE, ttl=1.0)
flower.make_client(job, threads=1, alone=True)(message, Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
"""


def test_a_client_that_hangs_ends_when_nobody_waits_for_it_any_longer():
    found = subprocess.run(
        [sys.executable, "-P", "-c", HANGING], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 1
    assert "Timeout (0:00:01)!" in found.stderr


def test_partition_ids_and_not_flowers_numbers_say_who_a_node_is():
    grid = Grid()
    grid.clients = {900 - number: client for number, client in grid.clients.items()}
    grid.online = set(grid.clients)
    assert train(federated(grid)).w.tobytes() == train(prepare(CONFIG)).w.tobytes()


def test_a_node_that_comes_back_under_another_number_goes_on(link):
    grid = Grid()
    way = link(grid)
    way.meet(3, 5.0, 3)
    grid.online.remove(101)
    grid.clients[555] = grid.clients[101]
    grid.online.add(555)
    assert {node for node, reply in way.ask(questions(0, 1, 2), 5.0, True)} == {0, 1, 2}
    assert grid.kinds[-1][0] == 555 or (555, flower.SOLVE) in grid.kinds


def test_a_second_claim_to_a_number_waits_until_the_first_is_gone(link):
    grid = Grid()
    way = link(grid)
    way.meet(3, 5.0, 3)
    grid.clients[555] = grid.clients[101]
    grid.online.add(555)
    list(way.ask(questions(1), 5.0, True))
    assert (555, flower.HELLO) in grid.kinds
    assert (555, flower.SOLVE) not in grid.kinds


def test_nodes_that_do_not_come_are_named(link):
    with pytest.raises(RunError, match=r"2 did not come \(1, 2\)"):
        link(Grid(1)).meet(3, 0.05, 3)
    link(Grid(1)).meet(3, 0.05, 1)


def test_a_node_of_another_job_is_refused_and_said(link):
    grid = Grid()
    other = published(resolve(**{**CONFIG.table(), "seed": 5}))
    grid.clients[101] = (flower.make_client(other), 1)
    with pytest.raises(RunError, match=r"1 did not come \(1\): node 1: expected a node of this job"):
        link(grid).meet(3, 0.05, 3)


def test_a_node_that_could_not_say_who_it_is_is_asked_again(link, monkeypatch):
    class Late(Grid):
        def reply(self, message, client, context):
            if len(self.kinds) <= 3:
                self.replies[message.metadata.message_id] = [Message(Error(3, "expired"), reply_to=message)]
            else:
                super().reply(message, client, context)

    monkeypatch.setattr(flower, "AGAIN", 0.01)
    link(Late()).meet(3, 20.0, 3)


def test_a_node_without_a_partition_id_says_so(link):
    grid = Grid()
    grid.clients[100] = (grid.clients[100][0], "zero")
    with pytest.raises(RunError, match="give partition-id=0"):
        link(grid).meet(3, 0.05, 3)


def test_the_deadline_ends_the_wait_for_a_silent_node(link):
    class Silent(Grid):
        def reply(self, message, client, context):
            if message.metadata.message_type == flower.HELLO or context.node_config["partition-id"] != 1:
                super().reply(message, client, context)

    way = link(Silent())
    way.meet(3, 5.0, 3)
    replies = dict(way.ask(questions(0, 1, 2), 0.3, True))
    assert replies[1] == "no answer within 0.3 s"
    assert not isinstance(replies[0], str)


@pytest.mark.parametrize("patient", [True, False])
def test_a_node_that_is_not_connected_is_waited_for_only_if_asked_to(link, patient):
    grid = Grid()
    way = link(grid)
    way.meet(3, 5.0, 3)
    grid.online.remove(102)
    assert dict(way.ask(questions(2), 0.1 if patient else 60.0, patient)) == {2: "not connected"}


def test_duplicates_and_answers_to_other_messages_are_left_out(link):
    class Twice(Grid):
        def reply(self, message, client, context):
            super().reply(message, client, context)
            (one,) = self.replies[message.metadata.message_id]
            stray = Message(one.content, reply_to=message)
            stray.metadata.__dict__["_reply_to_message_id"] = "unknown"
            self.replies[message.metadata.message_id] = [stray, one, one]

    grid = Twice()
    way = link(grid)
    way.meet(3, 5.0, 3)
    assert [node for node, _ in way.ask(questions(0, 1), 5.0, True)] == [0, 1]


def packed(**change):
    given = {"dtype": "float32", "shape": (4,), "stype": flower.RAW, "data": b"1234", **change}
    return RecordDict({"w": ArrayRecord({"w": Array(**given)}), "numbers": MetricRecord({"round": 1})})


def test_nothing_but_raw_bytes_and_numbers_is_unpacked():
    assert flower._unpacked(packed()).data == b"1234"
    pickled = Array(np.zeros(3))
    for wrong in (
        RecordDict(),
        packed(stype="numpy.ndarray"),
        RecordDict({"w": ArrayRecord({"w": pickled}), "numbers": MetricRecord({})}),
        RecordDict({"w": MetricRecord({}), "numbers": MetricRecord({})}),
        RecordDict({"w": ArrayRecord({}), "numbers": MetricRecord({})}),
    ):
        with pytest.raises(InputError, match="message: expected"):
            flower._unpacked(wrong)


def test_the_size_is_taken_from_the_network_and_never_from_the_message():
    message = flower._unpacked(packed(shape=(10**15,)))
    with pytest.raises(InputError, match="got 4 bytes"):
        Worker(JOB, 0).answer(message._replace(numbers={"round": 1, "node": 0}))


class Listener(http.server.BaseHTTPRequestHandler):
    """A proxy that refuses, and remembers what it was asked for."""

    asked: list[str] = []  # noqa: RUF012  # of this process

    def do_GET(self):
        self.asked.append(self.path)
        self.send_error(403)

    do_POST = do_CONNECT = do_GET


@pytest.fixture
def proxy():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def processes(mark: str) -> list[str]:
    """The command lines of processes that have `mark` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_the_simulation_has_the_bytes_of_one_process_and_leaves_nothing_running(tmp_path, proxy):
    mark = f"REFIMPL_TEST_MARK={uuid.uuid4().hex}"
    proxies = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy}
    environment = {
        **os.environ,
        **proxies,
        **{name.lower(): proxy for name in proxies},
        "HOME": str(tmp_path),
    }
    environment |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    environment |= dict([mark.split("=")])
    options = ["--dataset", "digits", "--nodes", "4", "--targets", "0", "--rounds", "2", "--per-round", "2"]
    command = [
        sys.executable,
        "-m",
        "refimpl",
        "engine",
        "simulate",
        *options,
        "--out",
        "run",
        "--threads",
        "2",
    ]
    done = subprocess.run(
        ["timeout", "300", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    config = resolve(dataset="digits", nodes=4, targets=0, rounds=2, per_round=2)
    with RunFolder.create(tmp_path / "here", config.table()) as folder:
        train(prepare(config), folder)
    digests = [
        hashlib.sha256((tmp_path / name / "meta_model.npz").read_bytes()).hexdigest()
        for name in ("run", "here")
    ]
    assert digests[0] == digests[1]
    assert not processes(mark)
    assert not Listener.asked
    assert not re.search(r"SuperLink", done.stdout)
