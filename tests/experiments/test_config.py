"""Configurations: layers over each other, complete, and refused where they make no sense."""

from __future__ import annotations

import pytest

from refimpl.errors import ConfigError, InputError
from refimpl.experiments.config import DATASETS, METHODS, USUAL_GATES, Config, from_table, preset, resolve


def test_layers_go_over_each_other(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("eta = 0.7\nrounds = 9\n[fedavg]\neta = 0.8\n[metagater]\nbeta = 0.125\n")
    shipped = preset("digits")
    assert resolve(dataset="digits").eta == shipped["eta"]
    assert resolve(file).eta == 0.7
    assert resolve(file, method="fedavg").eta == 0.8
    assert resolve(file, method="fedavg", eta=0.9).eta == 0.9
    assert resolve(file).beta == 0.125
    assert resolve(file, method="fedavg").beta == shipped["beta"]
    assert resolve(file).rounds == 9


def test_method_sections_of_presets_apply_to_their_method_only():
    section = preset("digits")["fedavg"]
    assert resolve(method="fedavg").eta == section["eta"]
    assert resolve(method="metagater").eta == preset("digits")["eta"]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_data_set_has_a_complete_configuration(dataset, method):
    config = resolve(dataset=dataset, method=method)
    assert from_table(config.table()) == config
    assert config.gates


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"etaa": 0.1}, "unknown key 'etaa'; did you mean eta\\? choose one of"),
        ({"dataset": "mnits"}, "unknown dataset"),
        ({"method": "sgd"}, "unknown method"),
        ({"rounds": 2.5}, "rounds must be int"),
        ({"weighted": 1}, "weighted must be bool"),
        ({"eta": True}, "eta must be float"),
        ({"gates": "conv1"}, "gates must be list"),
        ({"eta": 0.0}, "eta must be positive"),
        ({"rounds": 0}, "rounds must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(options, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        resolve(**options)
    assert "\n" not in str(caught.value)


def test_a_stored_table_must_be_complete():
    table = Config().table()
    del table["eta"]
    with pytest.raises(ConfigError, match="eta"):
        from_table(table)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_has_a_preset_with_a_model_of_its_own(dataset):
    assert "model" in preset(dataset)
    config = resolve(dataset=dataset)
    assert config.dataset == dataset
    assert config.gates == USUAL_GATES[config.model]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('rounds = "two"', "rounds must be int, got 'two'"),
        ("rounds = 2.5", "rounds must be int"),
        ("rounds = true", "rounds must be int"),
        ("gates = [1]", "gates must be list"),
        ('gate_mode = "hrad"', "unknown gate_mode 'hrad'; did you mean hard? choose one of hard"),
        ("leaning_rate = 0.1", "unknown key 'leaning_rate'"),
        ("[fedavgg]", "unknown section 'fedavgg'"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path, line, words):
    file = tmp_path / "my.toml"
    file.write_text(line + "\n")
    with pytest.raises(InputError) as caught:
        resolve(file)
    assert str(file) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"node_min": 0, "node_max": 5}, "no node may be empty"),
        ({"node_min": 9, "node_max": 5}, "node_max 5 is below node_min 9"),
        ({"test_share": 1.0}, "test_share must lie in"),
        ({"test_share": 0.0}, "test_share must lie in"),
        ({"snip_keep": 1.5}, "snip_keep must lie in"),
        ({"eta": float("nan")}, "eta must be positive"),
        ({"per_round": 11}, "per_round 11 exceeds nodes 10"),
        ({"lam": 0.0}, "lam must be positive"),
        ({"lam": 0.0, "method": "pfedme"}, "lam must be positive for pfedme"),
        ({"delta": 0.0}, "delta must be positive"),
        ({"mix": -1.0}, "mix must be positive"),
        ({"inner_steps": 0}, "inner_steps must be at least 1"),
    ],
)
def test_impossible_values_are_refused(options, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        Config(**options)


def test_no_largest_size_means_the_usual_range_whatever_the_smallest():
    assert Config(node_min=40, node_max=0).node_max == 0


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "seed = " + "9" * 10_000])
def test_a_file_without_end_is_one_line(tmp_path, text):
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(InputError, match=r"my\.toml: not readable as TOML: [^\n]{1,250}$"):
        resolve(tmp_path / "my.toml")
