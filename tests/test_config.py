"""Configurations: presets, files and options, and what is refused with whose name."""

from __future__ import annotations

import pytest

from refimpl.config import DATASETS, USUAL_GATES, Config, preset, resolve
from refimpl.errors import InputError


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_has_a_preset_with_a_model_of_its_own(dataset):
    assert "model" in preset(dataset)
    config = resolve(dataset=dataset)
    assert config.dataset == dataset
    assert config.gates == USUAL_GATES[config.model]


def test_options_go_before_the_file_and_the_file_before_the_preset(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text("rounds = 7\neta = 0.25\n[fedavg]\neta = 0.5\n")
    assert resolve(file, rounds=3).rounds == 3
    assert resolve(file).rounds == 7
    assert resolve(file).eta == 0.25
    assert resolve(file, method="fedavg").eta == 0.5
    assert resolve().rounds == preset("digits")["rounds"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('rounds = "two"', "rounds must be int, got 'two'"),
        ("rounds = 2.5", "rounds must be int"),
        ("rounds = true", "rounds must be int"),
        ("gates = [1]", "gates must be list"),
        ('gate_mode = "hrad"', "unknown gate_mode 'hrad'; choose one of hard"),
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
    ],
)
def test_impossible_values_are_refused(options, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        Config(**options)


def test_no_largest_size_means_the_usual_range_whatever_the_smallest():
    assert Config(node_min=40, node_max=0).node_max == 0
