"""Plans of comparisons: what is trained once, what is varied, and what makes no sense."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from outcomes import plan

from refimpl.errors import ConfigError, DataError, InputError
from refimpl.experiments.compare.plan import Plan, parse_vary, plan_from_text, slug, varied
from refimpl.experiments.config import Config, keys, resolve
from refimpl.experiments.methods import keys_taken, takes, training_key
from refimpl.registry import METHODS


def test_metasnip_shares_the_training_of_the_ungated_method():
    config = resolve(method="metagater-ungated")
    for method in ("metasnip", "metasnip-weights"):
        pruned = replace(config, method=method, snip_keep=0.3, eta_theta=1.0, gates=["conv1"])
        assert training_key(config) == training_key(pruned)
    gated = replace(config, method="metagater")
    assert training_key(config) != training_key(gated)
    assert training_key(gated) != training_key(replace(gated, rho=0.5))
    assert training_key(gated) != training_key(replace(gated, gates=["conv1"]))
    assert training_key(config) != training_key(replace(config, seed=1))
    assert training_key(config) != training_key(replace(config, eta=0.5))


def test_a_plan_is_read_back_as_it_was_written():
    whole = plan("metagater", "metasnip", seeds=(3, 1), every=2)
    assert plan_from_text("plan.json", json.dumps(whole.table())) == whole
    for text in ("{", "[]", "{}", json.dumps({**whole.table(), "rows": [{"label": "a", "config": {}}]})):
        with pytest.raises(DataError, match=r"plan\.json: expected a comparison's plan"):
            plan_from_text("plan.json", text)


@pytest.mark.parametrize(
    ("rows", "seeds", "words"),
    [((), (0,), "rows"), (("a", "a"), (0,), "rows"), (("a",), (), "seeds"), (("a",), (1, 1), "seeds")],
)
def test_plans_that_make_no_sense_are_refused(rows, seeds, words):
    with pytest.raises(ConfigError, match=words):
        Plan(tuple((row, Config()) for row in rows), seeds)
    with pytest.raises(ConfigError, match="no target nodes"):
        Plan((("a", Config(targets=0)),), (0,))


def test_varied_keys_multiply_and_apply_to_methods_that_take_them():
    vary = [parse_vary(text) for text in ("rho=0.001,0.01", "snip-keep=0.3,0.5", "rounds=5")]
    rows = dict(varied(("metagater", "metasnip", "fedavg"), vary))
    assert list(rows) == [
        "metagater rho=0.001 rounds=5",
        "metagater rho=0.01 rounds=5",
        "metasnip snip_keep=0.3 rounds=5",
        "metasnip snip_keep=0.5 rounds=5",
        "fedavg rounds=5",
    ]
    assert rows["metagater rho=0.01 rounds=5"] == resolve(method="metagater", rho=0.01, rounds=5)
    with pytest.raises(ConfigError, match="mix plays no part in fedavg"):
        list(varied(["fedavg"], [("mix", [0.5])]))


def test_a_varied_data_set_or_model_brings_the_settings_of_its_own():
    """The same as if it were the only one: rates, sizes and network of its preset, gates of its model."""
    rows = dict(varied(["fedavg"], [parse_vary("dataset=digits,mnist,cifar10")]))
    for name in ("digits", "mnist", "cifar10"):
        assert rows[f"fedavg dataset={name}"] == resolve(method="fedavg", dataset=name)
    assert rows["fedavg dataset=mnist"].eta != rows["fedavg dataset=cifar10"].eta
    gates = [config.gates for _, config in varied(["metagater"], [parse_vary("model=digits,mlp")])]
    assert gates == [["conv2"], ["fc1"]]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("gates=conv1,conv1+conv2,none", [["conv1"], ["conv1", "conv2"], []]),
        ("local-steps=1, 5", [1, 5]),
        ("eta=1e-3", [1e-3]),
        ("weighted=on,off", [True, False]),
        ("gate_mode=hard,ste", ["hard", "ste"]),
    ],
)
def test_values_have_the_type_of_their_key(text, values):
    assert parse_vary(text)[1] == values


@pytest.mark.parametrize(
    "text", ["rho", "rho=", "rhoo=1", "rho=x", "rounds=1.5", "weighted=maybe", "method=maml"]
)
def test_values_of_another_type_are_refused_in_one_line(text):
    with pytest.raises(InputError, match="--vary") as caught:
        parse_vary(text)
    assert "\n" not in str(caught.value)


def test_every_method_has_its_keys_and_they_are_keys():
    names = set(keys())
    assert all(keys_taken(method) <= names for method in METHODS)
    assert takes("fedavg", "rounds")
    assert takes("fedavg", "eta_theta")
    assert not takes("fedavg", "rho")


@pytest.mark.parametrize("method", METHODS)
def test_keys_a_method_does_not_take_do_not_change_its_method(method):
    """What `keys_taken` leaves out must be without effect: the built method stays equal."""
    from refimpl.experiments.experiment import build_network
    from refimpl.experiments.methods import build_method, is_gated

    config = resolve(method=method)
    network = build_network(config, (1, 8, 8), 10, is_gated(config))
    built = repr(build_method(config, network))
    for item in keys().values():
        if item.type == "float" and not takes(method, item.name):
            other = replace(config, **{item.name: getattr(config, item.name) / 2})
            assert repr(build_method(other, network)) == built, item.name


def test_labels_become_file_names():
    assert slug("metagater gates=conv5+conv6 rho=1e-05") == "metagater-gates=conv5+conv6-rho=1e-05"
    assert "/" not in slug("dataset=/a b/c.npz")
