"""Rounds with nodes elsewhere: the bytes of a run in one process, and every fault, without Flower."""

import itertools

import numpy as np
import pytest

from refimpl.engine.job import Job, published
from refimpl.engine.messages import Question, Sealed, sealed
from refimpl.engine.node import Worker
from refimpl.engine.rounds import Gathering, Patience, gather
from refimpl.errors import ConfigError, InputError, RunError
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import prepare, train
from refimpl.registry import METHODS

SMALL = {"dataset": "digits", "model": "mlp", "nodes": 4, "targets": 0, "rounds": 2, "batch_size": 5}
POINT = np.array([1.0, 2.0], dtype=np.float32)


class Here:
    """A link to workers in this process; `fault` may say what comes from a node instead of its answer."""

    def __init__(self, job: Job, fault=lambda round_, node, attempt: None):
        self.workers = [Worker(job, node) for node in range(job.config.nodes)]
        self.sizes = {worker.number: worker.hello().samples for worker in self.workers}
        self.fault, self.asked = fault, []

    def meet(self, count, seconds, fewest):
        assert fewest <= count

    def ask(self, questions, seconds, patient):
        for question in reversed(questions):  # answers come in any order
            self.asked.append((question.round, question.node))
            attempt = self.asked.count(self.asked[-1])
            if reply := self.fault(question.round, question.node, attempt):
                yield question.node, reply
                continue
            message = sealed(question.point, round=question.round, node=question.node)
            yield question.node, self.workers[question.node].answer(message)


def federated(job: Job, patience: Patience, fault=lambda round_, node, attempt: None):
    return job.server(Here(job, fault), patience)


@pytest.mark.parametrize("per_round", [0, 2])
@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_has_the_bytes_of_one_process(method, per_round):
    config = resolve(**SMALL, method=method, per_round=per_round, weighted=per_round > 0)
    records = []
    found = train(federated(published(config), Patience()), on_round=records.append)
    assert found.w.tobytes() == train(prepare(config)).w.tobytes()
    assert [len(record.nodes) for record in records] == [per_round or 4] * 2
    assert not any(record.faults for record in records)


def test_annealed_gates_have_the_bytes_of_one_process():
    config = resolve(**SMALL, method="metagater", tau=2.0, tau_end=0.5)
    found = train(federated(published(config), Patience()))
    assert found.w.tobytes() == train(prepare(config)).w.tobytes()


def test_records_are_those_of_one_process_but_for_the_seconds():
    config, ours, theirs = resolve(**SMALL, method="metagater"), [], []
    train(federated(published(config), Patience()), on_round=ours.append)
    train(prepare(config), on_round=theirs.append)
    for one, other in zip(ours, theirs, strict=True):
        assert one[:10] == other[:10]


def damaged(message: Sealed, **numbers) -> Sealed:
    return message._replace(numbers={**message.numbers, **numbers})


def good(question: Question, loss: float = 0.5) -> Sealed:
    numbers = {"loss": loss, "residual": 0.1, "flops": 3.0, "closed_share": 0.0, "gradients": 1}
    return sealed(question.point + 1, round=question.round, node=question.node, **numbers)


FIRST = Question(3, 1, POINT)
WRONG = {
    "a node that failed": ("failed: out of memory", "out of memory"),
    "NaN": (good(FIRST)._replace(data=np.array([np.nan, 0], "<f4").tobytes()), "NaN or infinity"),
    "infinite loss": (damaged(good(FIRST), loss=np.inf), "expected loss"),
    "a loss that is no number": (damaged(good(FIRST), loss="1"), "expected loss"),
    "too few numbers": (good(FIRST)._replace(data=b"1234"), "expected 2 numbers"),
    "too many numbers": (good(FIRST)._replace(data=bytes(2**16)), "expected 2 numbers"),
    "another dtype": (good(FIRST)._replace(dtype="object"), "expected 2 numbers"),
    "a dtype that is none": (good(FIRST)._replace(dtype="x" * 10000), "expected 2 numbers"),
    "an earlier round": (damaged(good(FIRST), round=2), "expected an answer to round 3"),
    "another node": (damaged(good(FIRST), node=0), "expected an answer to round 3"),
    "a negative count": (damaged(good(FIRST), gradients=-1), "expected gradients"),
    "no numbers": (good(FIRST)._replace(numbers={}), "expected round"),
}


@pytest.mark.parametrize(("reply", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_left_out_and_noted_in_one_line(reply, said):
    found = Gathering([FIRST])
    found.take(1, reply)
    assert not found.answers
    assert [q.node for q in found.missing] == [1]
    (fault,) = found.faults[1]
    assert said in fault
    assert len(fault) <= 200
    assert fault.isprintable()


def test_the_first_good_answer_of_a_node_counts():
    found = Gathering([FIRST])
    found.take(1, good(FIRST))
    found.take(1, good(FIRST, loss=9.0))
    found.take(7, good(FIRST))
    assert found.answers[1].loss == 0.5
    assert found.faults == {1: ["answered twice"], 7: ["was not asked"]}


class Script:
    """A link that gives each node's replies in turn, one an attempt."""

    def __init__(self, **replies):
        self.replies = {int(name[1:]): iter(list_) for name, list_ in replies.items()}
        self.asked, self.patient = [], set()

    def ask(self, questions, seconds, patient):
        self.patient.add(patient)
        self.asked.append([question.node for question in questions])
        for question in questions:
            reply = next(self.replies[question.node])
            yield question.node, good(question) if reply is None else reply


QUESTIONS = [Question(1, node, POINT) for node in range(2)]


def test_wait_asks_the_missing_nodes_again_with_growing_pauses():
    pauses, link = [], Script(n0=[None], n1=["failed", "failed", None])
    found = gather(link, QUESTIONS, Patience("wait", 60.0), pauses.append)
    assert sorted(found.answers) == [0, 1]
    assert found.faults == {1: ["failed", "failed"]}
    assert link.asked == [[0, 1], [1], [1]]
    assert pauses == [1.0, 2.0]
    assert link.patient == {True}


def test_wait_ends_when_its_attempts_are_over():
    link = Script(n0=[None], n1=itertools.repeat("vanished"))
    with pytest.raises(RunError, match=r"round 1: expected answers of 2 nodes, got 1 \(node 1: vanished\)"):
        gather(link, QUESTIONS, Patience("wait", attempts=3), lambda seconds: None)
    assert len(link.asked) == 3


def test_skip_goes_on_with_who_answered():
    link = Script(n0=[None], n1=["vanished"])
    assert list(gather(link, QUESTIONS, Patience("skip"), pytest.fail).answers) == [0]
    assert link.patient == {False}


def test_skip_asks_again_when_fewer_than_needed_have_answered():
    link = Script(n0=[None], n1=["vanished", None])
    found = gather(link, QUESTIONS, Patience("skip", fewest=2), lambda seconds: None)
    assert sorted(found.answers) == [0, 1]


def test_fail_ends_at_the_first_missing_node():
    link = Script(n0=[None], n1=["vanished"])
    with pytest.raises(RunError, match="resume the run"):
        gather(link, QUESTIONS, Patience("fail"), pytest.fail)


def test_an_empty_answer_list_means_nobody_answered():
    class Silent(Script):
        def ask(self, questions, seconds, patient):
            return iter(())

    with pytest.raises(RunError, match="node 0: no answer; node 1: no answer"):
        gather(Silent(), QUESTIONS, Patience("skip", attempts=2), lambda seconds: None)


@pytest.mark.parametrize("wrong", [{"deadline": 0.0}, {"attempts": 0}, {"policy": "pray"}, {"fewest": 0}])
def test_patience_refuses_what_makes_no_sense(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Patience(**wrong)


def test_skipped_rounds_are_those_of_the_nodes_that_answered():
    """The mean of those who answered, from fedavg's definition and the nodes' own answers."""
    job = published(resolve(**{**SMALL, "rounds": 1}, method="fedavg"))
    experiment = federated(
        job, Patience("skip"), lambda round_, node, attempt: "vanished" if node == 2 else None
    )
    (state, record), *_ = experiment.rounds(experiment.start(), range(1, 2))
    point = experiment.method.broadcast(experiment.start(), 1)
    answers = [Worker(job, node).answer(sealed(point, round=1, node=node)).data for node in (0, 1, 3)]
    mean = np.mean([np.frombuffer(data, np.float32).astype(float) for data in answers], axis=0)
    np.testing.assert_allclose(experiment.method.model(state), mean, rtol=1e-5, atol=1e-6)
    assert record.nodes == (0, 1, 3)
    assert record.faults == {"2": ["vanished"]}


def test_faults_that_pass_change_no_byte_and_are_recorded(tmp_path):
    job = published(resolve(**SMALL, method="pfedme"))
    late = federated(
        job, Patience(deadline=0.01), lambda r, node, attempt: "late" if attempt == 1 == node else None
    )
    with job.folder(tmp_path / "run") as folder:
        found = train(late, folder)
        assert [entry["faults"] for entry in folder.metrics()] == [{"1": ["late"]}] * 2
    assert found.w.tobytes() == train(prepare(job.config)).w.tobytes()


def test_a_run_that_ended_goes_on_from_its_last_round(tmp_path):
    job = published(resolve(**SMALL, method="metagater"))

    def gone(round_, node, attempt):
        return "vanished" if round_ == 2 and node == 3 else None

    with job.folder(tmp_path / "run") as folder, pytest.raises(RunError, match="node 3: vanished"):
        train(federated(job, Patience("fail"), gone), folder, resume=True)
    with job.folder(tmp_path / "run") as folder:
        found = train(federated(job, Patience("fail")), folder, resume=True)
        assert folder.load_checkpoint().round == 2
    assert found.w.tobytes() == train(prepare(job.config)).w.tobytes()


def test_a_folder_of_another_job_is_refused(tmp_path):
    with published(resolve(**SMALL, method="fedavg")).folder(tmp_path / "run"):
        pass
    with pytest.raises(RunError, match="other settings"):
        published(resolve(**SMALL, method="maml")).folder(tmp_path / "run")


def test_a_node_refuses_questions_that_are_not_for_it():
    job = published(resolve(**SMALL, method="fedavg"))
    worker, point = Worker(job, 1), np.zeros(job.network().layout.size, np.float32)
    for wrong in (
        sealed(point, round=1, node=2),
        sealed(point, round=3, node=1),
        sealed(point, round=0, node=1),
        sealed(point[1:], round=1, node=1),
        sealed(point.astype(float), round=1, node=1),
        sealed(point * np.nan, round=1, node=1),
        sealed(point, node=1),
    ):
        with pytest.raises(InputError, match="node 1"):
            worker.answer(wrong)


def test_only_the_vector_and_seven_numbers_leave_a_node():
    job = published(resolve(**SMALL, method="metagater"))
    point = np.zeros(job.network().layout.size, np.float32)
    reply = Worker(job, 0).answer(sealed(point, round=1, node=0))
    assert len(reply.data) == point.nbytes
    expected = {"round", "node", "gradients", "loss", "residual", "flops", "closed_share"}
    assert set(reply.numbers) == expected
    assert all(type(number) in (int, float) for number in reply.numbers.values())


def test_a_start_that_needs_samples_is_refused():
    with pytest.raises(ConfigError, match="calibrated"):
        published(resolve(**SMALL, method="metagater", gate_start="calibrated"))
