"""Supervised training of a team: descent, batches, parts of the data, resuming, what is used in the end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from checks import assert_same_bits
from commands import files

from refimpl.cooperative import experiment
from refimpl.cooperative.config import PRESETS, resolve
from refimpl.cooperative.descent import Momentum
from refimpl.cooperative.experiment import prepare
from refimpl.cooperative.samples import Augmentation, Batches, split
from refimpl.cooperative.team import Part
from refimpl.data import DataSet, load
from refimpl.errors import ConfigError, DivergenceError, InputError
from refimpl.experiments.experiment import train
from refimpl.experiments.record import RunFolder
from refimpl.nn.predict import predict
from refimpl.nn.work import dense_work
from refimpl.rng import SeedTree

TINY = {
    "widths": [2, 3, 4], "epochs": 3, "batch_size": 16, "train_samples": 40, "test_samples": 20,
    "calibration": 30, "crop": 1, "flip": True, "rate": 0.05, "validate_every": 2, "validation": 0.02,
}  # fmt: skip


def tiny(**given):
    return prepare(resolve(None, None, **{**TINY, **given}))


def numbers(count=30, classes=3, n_train=30):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 2, 5, 4)).astype(np.uint8)
    return DataSet("noise", images, rng.integers(0, classes, count), ("a", "b", "c"), n_train=n_train,
                   mean=(0.0, 0.0), std=(1.0, 1.0))  # fmt: skip


def test_descent_by_hand():
    """v1 = g1 + u w0, w1 = w0 - r v1, v2 = m v1 + g2 + u w1; the second entry is a statistic."""
    method = Momentum(0.5, 0.9, 0.2, "constant", 1)
    first = method.step(method.start(np.array([2.0, 7.0])), np.array([1.0, 0.0]), 0.0)
    second = method.step(first, np.array([-1.0, 0.0]), 0.5)
    assert first["w"].tolist() == [2.0 - 0.5 * 1.4, 7.0]
    assert second["w"] == pytest.approx([1.3 - 0.5 * (0.9 * 1.4 - 1.0 + 0.2 * 1.3), 7.0])


def test_how_rates_fall():
    def rates(schedule):
        return [Momentum(2.0, schedule=schedule).rate_at(done) for done in (0.0, 0.49, 0.5, 0.75, 1.0)]

    assert rates("constant") == [2.0] * 5
    assert rates("steps") == pytest.approx([2.0, 2.0, 0.2, 0.02, 0.02])
    assert rates("cosine") == pytest.approx([2.0, 1 + math.cos(0.49 * math.pi), 1.0, 1 - 0.5**0.5, 0.0])
    with pytest.raises(InputError, match="schedule"):
        Momentum(1.0, schedule="linear")


@pytest.mark.torch
def test_descent_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    rng, method = np.random.default_rng(0), Momentum(0.3, 0.9, 0.01)
    state = method.start(rng.standard_normal(5))
    theirs = torch.tensor(state["w"].copy(), requires_grad=True)
    descent = torch.optim.SGD([theirs], 0.3, momentum=0.9, weight_decay=0.01)
    for _ in range(4):
        g = rng.standard_normal(5)
        theirs.grad = torch.tensor(g.copy())
        descent.step()
        state = method.step(state, g, 0.0)
    np.testing.assert_allclose(state["w"], theirs.detach().numpy(), rtol=1e-12)


def test_images_are_moved_and_mirrored_as_pixel_by_pixel():
    change, images = Augmentation(2, True), numbers().images
    draws = change.draw(np.random.default_rng(1), len(images))
    found = change(images, draws)
    assert set(draws[:, 2]) == {0, 1}
    assert draws[:, :2].min() == 0
    assert draws[:, :2].max() == 4
    for n, (down, right, mirrored) in enumerate(draws):
        for row in range(5):
            for column in range(4):
                at = (down + row - 2, right + (3 - column if mirrored else column) - 2)
                inside = 0 <= at[0] < 5 and 0 <= at[1] < 4
                expected = images[n, :, at[0], at[1]] if inside else np.zeros(2)
                assert (found[n, :, row, column] == expected).all()
    assert Augmentation()(images, draws) is images


def test_batches_hold_every_sample_once_in_an_order_of_the_epoch():
    data, chosen = numbers(), np.arange(3, 27)
    found = [list(Batches(data, chosen, 8, Augmentation()).of(SeedTree(0), epoch)) for epoch in (1, 1, 2)]
    first, again, other = (np.concatenate([x for x, _ in batches]) for batches in found)
    assert_same_bits(again, first)
    assert not np.array_equal(other, first)
    wanted = data.x(chosen)
    for x in (first, other):
        assert sorted(map(bytes, x)) == sorted(map(bytes, wanted))
    by_pixels = {bytes(x): y for x, y in zip(wanted, data.y[chosen], strict=True)}
    assert all(by_pixels[bytes(one)] == label for x, y in found[2] for one, label in zip(x, y, strict=True))


def test_the_last_batch_is_left_out_unless_it_is_the_only_one():
    data = numbers()
    for size, lengths in ((8, [8, 8, 8]), (64, [30])):
        batches = Batches(data, np.arange(30), size, Augmentation())
        assert [len(y) for _, y in batches.of(SeedTree(0), 1)] == lengths
        assert len(batches) == len(lengths)


def test_parts_of_the_data_are_disjoint_and_the_published_test_part_stays():
    data = numbers(30, n_train=20)
    parts = split(data, 0, 0.25, 0.5)
    assert [len(part) for part in parts] == [15, 5, 10]
    assert sorted(np.concatenate(parts)) == list(range(30))
    assert parts.test.min() == 20
    fewer = split(data, 0, 0.25, 0.5, 4, 3)
    assert (len(fewer.train), len(fewer.test)) == (4, 3)
    assert_same_bits(fewer.validation, parts.validation)
    own = split(numbers(), 1, 0.5, 0.2)
    assert [len(part) for part in own] == [12, 12, 6]
    with pytest.raises(InputError, match="0 for validation"):
        split(data, 0, 0.01, 0.5)


@pytest.mark.parametrize("how", [{}, {"scheme": "sandwich"}, {"scheme": "mutual", "gated": True, "rho": 0.1}])
def test_a_stopped_run_ends_in_the_same_bytes(tmp_path, how):
    """On one thread without a stop, and on two with one after every epoch."""
    run = tiny(**how)
    with RunFolder.create(tmp_path / "whole", run.config.table()) as folder:
        train(run, folder, threads=1)
    with RunFolder.create(tmp_path / "parts", run.config.table()) as folder:
        for epoch in range(3):
            assert train(run, folder, resume=epoch > 0, threads=2, stop=lambda: True).rounds == epoch + 1
    whole, parts = files(tmp_path / "whole"), files(tmp_path / "parts")
    for name in ("checkpoint.npz", "meta_model.npz"):
        assert whole[name] == parts[name], name


def test_all_schemes_see_the_same_samples(monkeypatch):
    """And a training of labels alone is that of each network by itself."""
    seen = {}
    for scheme in ("cooperative", "alone"):
        seen[scheme] = []
        monkeypatch.setattr(
            experiment.TeamObjective,
            "__call__",
            lambda self, w, g, scheme=scheme: seen[scheme].append(self.x) or g.fill(0) or 0.0,
        )
        train(tiny(scheme=scheme, epochs=1, validate_every=0))
    assert len(seen["alone"]) == 2
    for ours, theirs in zip(seen["cooperative"], seen["alone"], strict=True):
        assert_same_bits(ours, theirs)


def test_training_lowers_the_loss_and_records_epochs():
    records = []
    run = tiny(epochs=4, rate=0.05, flip=False, train_samples=160)
    train(run, on_round=records.append)
    assert [one.round for one in records] == [1, 2, 3, 4]
    assert records[-1].loss < 0.9 * records[0].loss
    assert [len(one.validation) for one in records] == [0, 7, 0, 7]
    assert all(0 <= value <= 1 for value in records[-1].validation)
    assert records[0].rate == 0.05
    assert records[0].flops == records[1].flops > 0


def test_gates_are_on_the_teammates_alone_and_close_under_a_penalty():
    """A penalty that no gate outweighs sets every group to exact zeros, so d = 0 and all channels are off."""
    run = tiny(gated=True, rho=50.0, epochs=1)
    team, full = run.network, Part("a", 3)
    assert len(team.training(full).gates) == 9
    assert not team.training(Part("leader", 3)).gates
    w = train(run).w
    phi = team.layout.views(w)
    last = [name for name in phi if name.endswith(".gate.fc2.weight")]
    assert {name.split(".")[0] for name in last} == {"a", "b"}
    assert not any(phi[name].any() for name in last)
    x, _ = run.samples("test")
    for depth in (1, 3):
        part = Part("a", depth)
        network = team.at_rest(part)
        found = predict(network, w[team.entries(part, at_rest=True)], x)
        assert not found.opened.any()
        assert found.flops < 0.6 * dense_work(network, len(x)).total
        assert found.opened.shape == (20, 3 * depth)


def test_gates_learn_in_the_mode_that_was_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(
        experiment.TeamObjective, "__call__", lambda self, w, g: seen.append(self.gating) or g.fill(0) or 0.0
    )
    for mode in ("ste", "hard"):
        train(tiny(gated=True, gate_mode=mode, epochs=1, scheme="mutual"))
    assert [one.mode for one in seen] == ["ste", "ste", "hard", "hard"]


@pytest.mark.parametrize(("scheme", "members"), [("alone", 3), ("sandwich", 1), ("cooperative", 2)])
def test_the_gates_of_every_member_are_penalised_once(scheme, members):
    run = tiny(scheme=scheme, gated=True)
    phi, where = run.network.layout.phi, np.concatenate([own for own, _ in run._gates])
    assert len(run._gates) == members
    assert sorted(where) == list(range(phi.start, phi.stop))


def test_statistics_under_gates_are_those_of_the_weights_at_each_epoch():
    run = tiny(gated=True, epochs=1, rate=1e-9, decay=0.0, rho=0.0, scheme="mutual")
    state = run.start()
    x, _ = run.samples("calibration")
    np.testing.assert_array_equal(run.network.calibrated(state["w"], x), state["w"])
    assert run.network.layout.views(state["w"])["a.stage1.block1.conv1.norm.running_mean"].any()
    np.testing.assert_allclose(train(run).w, state["w"], atol=1e-5)


def test_a_rate_too_large_is_said():
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match=r"loss of step \d+ in epoch"):
        train(tiny(rate=1e30, epochs=20))
    with np.errstate(all="ignore"), pytest.raises(DivergenceError, match="gates are not finite"):
        train(tiny(rate=1e39, gated=True))  # the first step is infinite


def test_which_member_is_used_at_each_depth():
    def used(scheme, by_part, **given):
        run = tiny(scheme=scheme, **given)
        return run.deployed([by_part.get(part, 0.5) for part in run.network.parts])

    a, b = ({depth: Part(member, depth) for depth in (1, 2, 3)} for member in ("a", "b"))
    assert used("cooperative", {Part("leader", 3): 1.0}) == a
    assert used("cooperative", {b[2]: 0.6}) == b
    mixed = {1: a[1], 2: b[2], 3: b[3]}
    assert used("cooperative", {b[3]: 0.6, a[1]: 0.9}, sets="complementary") == mixed
    assert used("alone", {}) == {depth: Part(f"alone{depth}", depth) for depth in (1, 2, 3)}


def test_the_cost_of_a_scheme():
    """Training costs three forward passes, nearly; each teacher costs one more."""
    cost = {name: tiny(scheme=name).cost for name in ("alone", "mutual", "cooperative")}
    assert 1.9 < cost["alone"] < 2.1  # depths 1/3, 2/3 and 1
    assert cost["cooperative"] - cost["mutual"] == pytest.approx(4 / 3, abs=0.02)


def test_settings_that_do_not_go_together():
    with pytest.raises(ConfigError, match="no stages"):
        tiny(model="mlp")
    with pytest.raises(InputError, match="depths 1 to 3"):
        tiny(depths=[4])
    with pytest.raises(ConfigError, match="ways is no setting"):
        resolve(None, None, ways=3)


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_resolve(name):
    assert resolve(None, name).dataset in ("digits", "cifar10", "cifar100")


def test_data_of_other_shapes_train(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.random((60, 3, 9, 8)), y=np.repeat(np.arange(4), 15))
    run = tiny(dataset=str(tmp_path / "mine.npz"), model="cnn7", widths=[], epochs=1, validation=0.2,
               scheme="mutual", crop=2)  # fmt: skip
    assert run.depths.full == 2
    assert np.isfinite(train(run).w).all()


def test_digits_have_no_published_test_part():
    assert load("digits").n_train == len(load("digits"))
