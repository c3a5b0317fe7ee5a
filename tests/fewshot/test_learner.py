"""Meta-gradients of the few-shot methods: against PyTorch, and against differences of the meta-objective."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.data import DataSet, Episodes
from refimpl.experiments.experiment import train
from refimpl.federated.local import Tally
from refimpl.federated.methods.meta import look_ahead
from refimpl.fewshot.config import resolve
from refimpl.fewshot.experiment import build_learner, prepare
from refimpl.fewshot.learner import KINDS
from refimpl.fewshot.outer import SGD, Adam
from refimpl.fewshot.tasks import EpisodeTask
from refimpl.nn.zoo import network
from refimpl.rng import SeedTree

NET = network("conv4", (), (1, 16, 16), 2, widths=[3, 2, 3, 2])
RNG = np.random.default_rng(0)
W = NET.layout.initialise(SeedTree(1), "float64") + 0.1 * RNG.standard_normal(NET.layout.size)
MASK = RNG.random(W.size) < 0.7
STEPS, ALPHA = 2, 0.3


def task():
    """Two classes, two support and two query samples of each."""
    y = np.repeat(np.arange(3), 4)
    images = np.random.default_rng(2).standard_normal((12, 1, 16, 16))
    episodes = Episodes(DataSet("noise", images, y, ("a", "b", "c"), scale=1.0), 2, 2, 2)
    return EpisodeTask(NET, episodes, SeedTree(3), "episode", 1, 0, "float64")


def learner(method, mask=None, **settings):
    config = resolve(None, None, method=method, inner_steps=STEPS, alpha=ALPHA, outer="sgd", **settings)
    return build_learner(config, NET, mask)


def answer(method, w=W, mask=None, **settings):
    return learner(method, mask, **settings).local(task(), w, np.random.default_rng(0))


@pytest.mark.torch
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("method", [*KINDS, "anil-first-order"])
def test_meta_gradients_through_batch_statistics_are_pytorchs(method, mask):
    torch = pytest.importorskip("torch")
    from refimpl.crosscheck.bridges.torch.network import build
    from refimpl.crosscheck.bridges.torch.weights import views
    from refimpl.nn.context import Gating

    method, _, first_order = method.partition("-")
    exact = method in ("maml", "anil", "boil") and not first_order
    module, node = build(NET, W, Gating(), ("theta",)), task().node

    def loss(w, part):
        logits = torch.func.functional_call(module, views(module.shapes, w), (torch.tensor(part.x),))
        return torch.nn.functional.cross_entropy(logits, torch.tensor(part.y))

    start = torch.tensor(W if mask is None else mask * W, requires_grad=True)
    head = torch.zeros(W.size, dtype=torch.float64)
    for slot in NET.layout.slots:
        head[slot.start : slot.stop] = slot.name.startswith("fc.")
    moves = {"anil": head, "boil": 1 - head}.get(method, torch.ones_like(head))
    kept = torch.ones_like(head) if mask is None else torch.tensor(mask.astype(float))
    w = start
    for _ in range(STEPS):
        part = node.train if method == "reptile" else node.support
        (g,) = torch.autograd.grad(loss(w, part), w, create_graph=exact)
        w = w - ALPHA * moves * kept * g
    if method == "reptile":
        expected = start - w
    else:
        expected = torch.autograd.grad(loss(w, node.query), start if exact else w)[0] * kept
    found = answer(method, start.detach().numpy(), mask, exact=not first_order).w
    expected = expected.detach().numpy()
    assert np.linalg.norm(found - expected) <= 1e-10 * np.linalg.norm(expected)


@pytest.mark.parametrize("method", ["maml", "anil", "boil"])
def test_exact_meta_gradients_are_derivatives_of_the_loss_after_the_inner_steps(method):
    moves = learner(method).moves

    def after(w):
        *inners, outer = task().draw(np.random.default_rng(0), STEPS + 1)
        return outer(look_ahead(w, inners, ALPHA, Tally(), moves)[-1], np.empty_like(w))

    found = answer(method)
    assert found.loss == pytest.approx(after(W), rel=1e-14)
    for seed in range(3):
        u = np.random.default_rng(seed).standard_normal(W.size)
        near, far = (after(W + h * u) - after(W - h * u) for h in (1e-5, 2e-5))
        assert found.w @ u == pytest.approx((8 * near - far) / 12e-5, rel=1e-6)
    first_order = answer("fomaml").w if method == "maml" else answer(method, exact=False).w
    assert np.linalg.norm(first_order - found.w) > 0.01 * np.linalg.norm(found.w)


def test_the_head_is_the_last_layer_and_the_body_is_the_rest():
    head, body = learner("anil").moves, learner("boil").moves
    assert NET.layout.views(head.astype(float))["fc.weight"].all()
    assert head.sum() == sum(s.stop - s.start for s in NET.layout.slots if s.name.startswith("fc."))
    assert (head ^ body).all()
    assert (learner("boil", MASK).moves == (body & MASK)).all()


def test_a_mask_keeps_the_pruned_weights_at_zero():
    for method in KINDS:
        pruned = learner(method, MASK)
        state = pruned.start(W)
        for round_ in (1, 2):
            point = pruned.broadcast(state, round_)
            mean = pruned.local(task(), point, np.random.default_rng(0)).w
            state, _ = pruned.server(state, round_, point, mean)
        moved = pruned.model(state)
        assert not moved[~MASK].any()
        assert (moved[MASK] != W[MASK]).any()


def test_reptile_draws_batches_from_support_and_query_samples_together():
    task_ = task()
    batches = task_.mixed(np.random.default_rng(0), 3, 5)
    assert [len(batch.chosen[0]) for batch in batches] == [5, 5, 5]
    assert batches[0].task.size == 8


def test_adam_is_kingma_and_bas():
    """Worked by hand for one number: gradients 1 then -3, both corrected for their start at zero."""
    adam, w = Adam(0.1), np.array([2.0])
    state = {"w": w, **adam.start(w)}
    state = adam.step(state, 1, state["w"], np.array([1.0]))
    assert state["w"][0] == pytest.approx(2 - 0.1 / (1 + 1e-8), rel=1e-14)
    state = adam.step(state, 2, state["w"], np.array([-3.0]))
    m, v = (0.9 * 0.1 - 0.1 * 3) / (1 - 0.81), (0.999 * 0.001 + 0.001 * 9) / (1 - 0.999**2)
    assert state["w"][0] == pytest.approx(1.9 + 1e-9 - 0.1 * m / (v**0.5 + 1e-8), rel=1e-13)


def test_sgd_steps_along_the_gradient():
    w, g = np.array([2.0, 1.0], np.float32), np.array([1.0, -1.0], np.float32)
    assert SGD(0.5).step({"w": w}, 1, w, g)["w"].tolist() == [1.5, 1.5]


def digits(**options):
    usual = {"rounds": 4, "tasks": 3, "validate_every": 2, "validation_episodes": 2}
    return prepare(resolve(None, "digits-2way-1shot", **{**usual, **options}))


@pytest.mark.parametrize("method", ["fomaml", "reptile"])
def test_threads_and_interruptions_change_no_bit(method, tmp_path):
    from refimpl.experiments.record import RunFolder

    run = digits(method=method, outer="adam", checkpoint_every=1, batch_size=3)
    whole = train(run, threads=1)
    assert train(run, threads=3).w.tobytes() == whole.w.tobytes()
    with RunFolder.create(tmp_path / "run", run.config.table()) as folder:
        asked = iter([False, True])
        assert train(run, folder, threads=2, stop=lambda: next(asked)).rounds == 2
    with RunFolder.open(tmp_path / "run") as folder:
        again = train(run, folder, resume=True, threads=1)
        assert [entry["validation"] is None for entry in folder.metrics()] == [True, False, True, False]
        assert {name: again.state[name].tobytes() for name in again.state} == {
            name: whole.state[name].tobytes() for name in whole.state
        }
        assert set(again.state) == {"w", "m", "v"}


def test_every_task_of_every_iteration_is_an_episode_of_its_own():
    run = digits()
    first, second = run.tasks(1), run.tasks(2)
    samples = {task.node.x.tobytes() for task in (*first, *second)}
    assert len(samples) == 6
    assert [t.node.x.tobytes() for t in run.tasks(1)] == [t.node.x.tobytes() for t in first]


def test_training_validation_and_test_episodes_have_classes_of_their_own():
    run = digits()
    parts = [run.training, run.test("validation").tasks[0].episodes, run.test().tasks[0].episodes]
    classes = [{c for c, _ in episodes.kinds} for episodes in parts]
    assert [*classes] == [set(part) for part in run.split[:3]]
    assert sum(map(len, classes)) == len(set.union(*classes)) == 10


def test_test_episodes_are_the_same_for_every_training_seed():
    first, second = digits(seed=0).test(), digits(seed=1, method="reptile").test()
    for a, b in zip(first.tasks[:5], second.tasks[:5], strict=True):
        assert a.node.x.tobytes() == b.node.x.tobytes()
    assert digits(seed=0).tasks(1)[0].node.x.tobytes() != digits(seed=1).tasks(1)[0].node.x.tobytes()
