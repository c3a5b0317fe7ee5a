"""Every method from configuration to adapted target node: what it may see, and what it reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refimpl.data.node import Node
from refimpl.errors import InputError
from refimpl.experiments.config import resolve
from refimpl.experiments.experiment import adapt_targets, personalise, prepare, train
from refimpl.federated.adapt import AdaptSettings, adapt, evaluate
from refimpl.federated.methods.metasnip import adapt_channels, adapt_weights
from refimpl.federated.pruning.snip import channel_scores, is_weight, keep_top, weight_scores
from refimpl.nn import zoo
from refimpl.nn.context import Context
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.weightmask import WeightMask
from refimpl.registry import METHODS
from refimpl.rng import SeedTree

SMALL = {"nodes": 2, "targets": 2, "rounds": 2, "local_steps": 2, "inner_steps": 2, "adapt_steps": 2}


def experiment(method, **options):
    return prepare(resolve(dataset="digits", method=method, **(SMALL | options)))


def test_every_name_has_a_method_of_that_name():
    for method, kind in METHODS.classes().items():
        assert {kind.trains_as, kind.beside} - {""} <= set(METHODS)
        assert experiment(method).method.name == method


def nodes_with(last_label=1, x_shape=(1, 8, 8), support=4, test=2):
    """Two nodes of eight samples, the second with this label in its test part."""
    x = np.random.default_rng(0).standard_normal((8, *x_shape)).astype(np.float32)
    y = np.arange(8) % 2
    other = np.append(y[:-1], last_label)
    return (Node("good", x, y, 4, 2),), (
        Node("other", x[: 6 + test], other[: 6 + test], support, 6 - support),
    )


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"last_label": 10}, r"labels must lie in 0\.\.9, got 0\.\.10"),
        ({"last_label": 10**9}, r"labels must lie in 0\.\.9"),
        ({"support": 0}, "samples to adapt on and to test on, got 0 and 2"),
        ({"test": 0}, "samples to adapt on and to test on, got 4 and 0"),
    ],
)
def test_target_nodes_must_fit_the_network_before_anything_is_trained(node, message):
    e, (train_nodes, target_nodes) = experiment("fedavg"), nodes_with(**node)
    with pytest.raises(InputError, match=f"node 'other'.*{message}"):
        replace(e, train_nodes=train_nodes, target_nodes=target_nodes)


def test_nodes_of_other_images_do_not_fit_the_network():
    e, (train_nodes, _) = experiment("fedavg"), nodes_with(x_shape=(1, 9, 9))
    with pytest.raises(InputError, match=r"node 'good'.*expected at least one sample of shape"):
        replace(e, train_nodes=train_nodes)


def poison(nodes):
    """Overwrite the nodes' test parts in place."""
    for node in nodes:
        node.test.x[:] = np.nan
        node.test.y[:] = 0
        assert np.isnan(node.x).any()
        assert np.isfinite(node.train.x).all()


@pytest.mark.parametrize("method", METHODS)
def test_neither_training_nor_adaptation_sees_the_test_parts(method):
    """Whole nodes are handed over; with NaN in their test parts the same parameters come out."""
    clean, poisoned = experiment(method), experiment(method)
    poison([*poisoned.train_nodes, *poisoned.target_nodes])
    models = [train(e, threads=1).w for e in (clean, poisoned)]
    assert models[0].tobytes() == models[1].tobytes()
    for mine, other in zip(clean.target_nodes, poisoned.target_nodes, strict=True):
        adapted = personalise(clean, models[0], mine).adapted.w
        assert adapted.tobytes() == personalise(poisoned, models[1], other).adapted.w.tobytes()
        assert np.isfinite(adapted).all()


def test_poisoning_would_be_noticed():
    """The check above can fail: training on everything a node has is changed by the poison."""
    e = experiment("fedavg")
    poison(e.target_nodes)
    node = e.target_nodes[0]
    with np.errstate(invalid="ignore"):
        seen = adapt(e.network, e.start()["w"], node.x, node.y, AdaptSettings(0.0, 0.1))
    assert np.isnan(seen.w).any()


# pFedMe


def test_pfedme_reports_the_global_and_the_personalised_model():
    e = experiment("pfedme", lam=3.0, eta_theta=0.1, adapt_steps=3)
    w = train(e, threads=1).w
    for node, report in zip(e.target_nodes, adapt_targets(e, w), strict=True):
        x, y = node.support
        t, gradient = w.copy(), np.empty_like(w)
        for _ in range(3):
            NetworkObjective(e.network, x, y, Context(train=("theta",)))(t, gradient)
            t -= np.float32(0.1) * (gradient + np.float32(3.0) * (t - w))
        assert report.accuracy_before == evaluate(e.network, w, *node.test).accuracy
        assert report.accuracy_after == evaluate(e.network, t, *node.test).accuracy
        np.testing.assert_allclose(personalise(e, w, node).adapted.w, t, rtol=1e-6, atol=1e-7)


def test_the_personalised_model_stays_nearer_the_larger_lambda():
    e = experiment("pfedme", eta_theta=0.1, adapt_steps=5)
    w, node = e.start()["w"], e.target_nodes[0]

    def distance(lam):
        config = replace(e.config, lam=lam)
        return np.linalg.norm(personalise(replace(e, config=config), w, node).adapted.w - w)

    assert distance(5.0) < 0.8 * distance(0.1)


# MetaSNIP


PLAIN, GATED = zoo.digits((3, 5), gates=()), zoo.digits((3, 5), gates=("conv1", "conv2"))
SETTINGS = AdaptSettings(eta_phi=0.0, eta_theta=0.1)


@pytest.fixture
def case():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((6, 1, 8, 8)), rng.integers(0, 10, 6)
    return PLAIN.layout.initialise(SeedTree(2), "float64"), x, y


def objective(network, x, y):
    return NetworkObjective(network, x, y, Context(train=("theta",)))


def test_pruned_weights_are_zero_and_the_others_take_one_gradient_step(case):
    w, x, y = case
    personal = adapt_weights(PLAIN, w, x, y, SETTINGS, 0.25)
    weights = is_weight(PLAIN)
    kept = np.ones(w.size, dtype=bool)
    kept[weights] = keep_top(weight_scores(objective(PLAIN, x, y), w)[weights], 0.25)
    assert personal.weights_off == pytest.approx(0.75, abs=1 / weights.sum())
    np.testing.assert_array_equal(personal.start, np.where(kept, w, 0))
    dense, gradient = np.empty_like(w), np.empty_like(w)
    objective(PLAIN, x, y)(personal.start, dense)
    context = Context(train=("theta",), weights=WeightMask(PLAIN.layout, kept))
    NetworkObjective(PLAIN, x, y, context)(personal.start, gradient)
    np.testing.assert_array_equal(personal.adapted.w, personal.start - 0.1 * gradient)
    np.testing.assert_allclose(gradient[kept], dense[kept], rtol=0, atol=1e-13)
    assert not gradient[~kept].any()
    assert (dense[~kept] != 0).any()


def test_weights_save_work_in_gradients_and_channels_more(case):
    """Both pay for the sensitivity; then a step costs what is kept, and in the weight variant all of `fc`."""
    w, x, y = case
    dense = adapt(PLAIN, w, x, y, SETTINGS).flops_backbone
    weights = adapt_weights(PLAIN, w, x, y, SETTINGS, 0.25).adapted
    channels = adapt_channels(PLAIN, GATED, w, x, y, SETTINGS, 0.25).adapted
    assert weights.flops_gate == channels.flops_gate == dense
    assert channels.flops_backbone < 0.5 * dense
    assert 0.2 * dense < weights.flops_backbone < 0.6 * dense
    assert weights.seconds_gate > 0
    assert channels.seconds_gate > 0


def test_pruned_channels_then_stage_two(case):
    w, x, y = case
    personal = adapt_channels(PLAIN, GATED, w, x, y, SETTINGS, 0.5)
    kept = keep_top(np.concatenate(channel_scores(GATED, objective(PLAIN, x, y), w)), 0.5)
    views = GATED.layout.views(personal.start)
    gates = [views[f"conv{i}.gate.fc2.bias"][1::2] for i in (1, 2)]
    np.testing.assert_array_equal(np.concatenate(gates), kept)
    np.testing.assert_array_equal(personal.adapted.w, adapt(GATED, personal.start, x, y, SETTINGS).w)
    assert personal.weights_off == 0


@pytest.mark.parametrize("method", ["metasnip", "metasnip-weights"])
def test_before_is_the_meta_model_and_the_pruned_one_has_a_number_of_its_own(method):
    e = experiment(method, rounds=5, snip_keep=0.1)
    w = train(e, threads=1).w
    reports = adapt_targets(e, w)
    for node, report in zip(e.target_nodes, reports, strict=True):
        personal, whole = personalise(e, w, node), evaluate(e.network, w, *node.test)
        pruned = evaluate(personal.network, personal.start, *node.test)
        assert (report.accuracy_before, report.loss_before) == (whole.accuracy, whole.loss)
        assert report.accuracy_pruned == pruned.accuracy
        assert pruned.loss != whole.loss


@pytest.mark.parametrize("method", ["metagater", "metasnip", "pfedme"])
def test_nodes_adapted_at_the_same_time_have_the_same_reports_in_order(method):
    e, found = experiment(method, targets=3), []
    w = train(e, threads=1).w
    for threads in (1, 2, 7):
        told = []
        reports = adapt_targets(e, w, told.append, threads)
        assert told == reports
        found.append([report._replace(seconds_gate=0.0, seconds_backbone=0.0) for report in reports])
    assert [report.node for report in found[0]] == [node.name for node in e.target_nodes]
    assert str(found[0]) == str(found[1]) == str(found[2])  # with every digit; a NaN equals itself


def test_methods_that_prune_nothing_have_no_pruned_model():
    e = experiment("metagater")
    assert all(np.isnan(report.accuracy_pruned) for report in adapt_targets(e, e.method.model(e.start())))


@pytest.mark.parametrize("mode", ["soft", "gumbel", "ste"])
def test_pruned_channels_are_closed_whatever_gate_mode_is_configured(mode):
    """metasnip trains no gates, so the mode plays no part in it: channels are open or closed."""
    usual, other = experiment("metasnip"), experiment("metasnip", gate_mode=mode)
    w, node = usual.method.model(usual.start()), usual.target_nodes[0]
    found = [personalise(e, w, node).adapted.w.tobytes() for e in (usual, other)]
    assert found[0] == found[1]
    assert adapt_targets(other, w)[0].sparsity_mean == pytest.approx(0.5)


def test_reports_tell_weights_from_channels():
    for method, weights, channels in (("metasnip-weights", True, False), ("metasnip", False, True)):
        e = experiment(method, snip_keep=0.5)
        for report in adapt_targets(e, e.method.model(e.start())):
            assert (report.weights_off > 0.49) == weights
            assert (report.sparsity_mean > 0.4) == channels
            assert (report.flops_executed < report.flops_dense) == channels
