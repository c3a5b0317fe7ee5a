"""Tests on fixed episodes: statistics, intervals, settings and presets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refimpl.data import DataSet, Episodes
from refimpl.errors import ConfigError, InputError
from refimpl.fewshot.config import PRESETS, FewShotConfig, from_table, resolve
from refimpl.fewshot.evaluate import Measurement, accuracies, interval, normalising
from refimpl.fewshot.experiment import build_learner
from refimpl.fewshot.tasks import EpisodeTask
from refimpl.nn.predict import predict
from refimpl.nn.zoo import network
from refimpl.rng import SeedTree

NET = network("conv4", (), (1, 16, 16), 2, widths=[3, 2, 3, 2])


def measurement(statistics="transductive", steps=3, noise=0.2):
    """Episodes of two classes out of three, which differ in where the image is bright."""
    y = np.repeat(np.arange(3), 6)
    rng = np.random.default_rng(0)
    images = noise * rng.standard_normal((18, 1, 16, 16))
    for label in range(3):
        images[y == label, :, :, 5 * label : 5 * label + 5] += 1
    data = DataSet("bright", images, y, ("left", "middle", "right"), scale=1.0)
    episodes = Episodes(data, 2, 2, 0, 3)
    tasks = [EpisodeTask(NET, episodes, SeedTree(3), "test", 0, i, "float64") for i in range(4)]
    config = resolve(None, None, method="maml", alpha=0.3)
    return Measurement(build_learner(config, NET), steps, statistics, tasks)


class Swapped(EpisodeTask):
    """An episode whose support labels are the wrong way round."""

    @property
    def node(self):
        node = super().node
        return replace(node, y=np.where(np.arange(len(node)) < node.n_support, 1 - node.y, node.y))


W = NET.layout.initialise(SeedTree(1), "float64")


def test_support_statistics_leave_samples_to_themselves():
    """Under them a sample is classified alike with and without others; under the batch's it is not."""
    node = measurement().tasks[0].node
    net, w = normalising(NET, W, node.support.x, "support")
    whole = predict(net, w, node.test.x).logits
    single = np.concatenate([predict(net, w, node.test.x[i : i + 1]).logits for i in range(6)])
    np.testing.assert_allclose(single, whole, rtol=1e-12)
    together = predict(NET, W, node.test.x).logits
    assert np.abs(together - whole).max() > 1e-3
    at_support = predict(net, w, node.support.x).logits
    np.testing.assert_allclose(at_support, predict(NET, W, node.support.x).logits, rtol=1e-9)


def test_adaptation_learns_an_easy_episode_and_only_on_its_support_samples():
    found = accuracies(measurement(steps=30), W, threads=2)
    assert found.tolist() == accuracies(measurement(steps=30), W, threads=1).tolist()
    assert found.mean() > 0.9
    swapped = replace(measurement(steps=30), tasks=[Swapped(**vars(t)) for t in measurement().tasks])
    assert accuracies(swapped, W).mean() < 0.1


def test_the_interval_is_students():
    """Five values: t(0.975, 4) = 2.776445 (any table), standard deviation sqrt(2.5), root of 5."""
    found = interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found.mean == 3
    assert found.half == pytest.approx(2.776445 * (2.5 / 5) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_resolve_for_every_method(name):
    for method in ("maml", "fomaml", "reptile", "anil", "boil"):
        config = resolve(None, name, method=method)
        section = PRESETS.read(name).get(method, {})
        assert config.method == method
        assert {key: getattr(config, key) for key in section} == section
        assert from_table(config.table(), "stored") == config


def test_levels_override_each_other(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("alpha = 0.2\nways = 3\n[reptile]\nalpha = 0.9\n")
    assert resolve(file, "omniglot-5way-1shot").alpha == 0.2
    assert resolve(file, "omniglot-5way-1shot", method="reptile").alpha == 0.9
    assert resolve(file, "omniglot-5way-1shot", method="reptile", alpha=0.1).alpha == 0.1
    assert resolve(file, "omniglot-5way-1shot").ways == 3


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        ({"wayz": 3}, "wayz is no setting of a few-shot run"),
        ({"nodes": 3}, "expected a few-shot run, found a federated run; it is for refimpl adapt"),
        ({"ways": 1}, "ways must be at least 2, got 1"),
        ({"method": "mamml"}, "did you mean maml"),
        ({"statistics": "query"}, "choose one of"),
        ({"alpha": "fast"}, "alpha must be float"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong, pattern):
    with pytest.raises(InputError, match=pattern):
        from_table(wrong, "config")


def test_unknown_presets_and_sections_are_refused(tmp_path):
    with pytest.raises(InputError, match="unknown preset"):
        PRESETS.read("omniglot")
    file = tmp_path / "mine.toml"
    file.write_text("[fedavg]\nalpha = 0.1\n")
    with pytest.raises((ConfigError, InputError), match="unknown section 'fedavg'"):
        resolve(file)


def test_every_setting_has_a_help_text():
    from refimpl.registry import keys_of

    assert all(one.help for one in keys_of(FewShotConfig).values())


def test_episodes_whose_adapted_model_is_not_finite_are_counted_and_in_no_mean():
    too_fast = replace(measurement().learner, alpha=1e200)
    for statistics in ("transductive", "support"):
        found = accuracies(replace(measurement(statistics), learner=too_fast), W)
        assert np.isnan(found).all()
    mixed = interval(np.array([0.25, np.nan, 0.75]))
    assert (mixed.mean, mixed.episodes, mixed.diverged) == (0.5, 2, 1)
    assert np.isnan(interval(np.array([0.25, np.nan])).half)
