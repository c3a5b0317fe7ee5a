"""Configurations: layers over each other, complete, and refused where they make no sense."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import numpy as np
import pytest

from refimpl.errors import ConfigError, InputError, OlderVersionWarning
from refimpl.experiments.config import Config, from_table, preset, resolve
from refimpl.files.storage import toml_text
from refimpl.registry import DATASETS, METHODS, MODELS


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


def test_keys_that_an_older_version_did_not_store_get_their_defaults_and_a_note():
    whole = resolve(method="fedavg", eta=0.7, model="mlp").table()
    older = {key: value for key, value in whole.items() if key not in ("mix", "gates", "eta_phi")}
    with pytest.warns(OlderVersionWarning, match="run: an older version stored no") as told:
        found = from_table(older, "run")
    assert found == Config(**{**whole, "mix": 1.0, "gates": ["fc1"], "eta_phi": 0.05})
    (note,) = told
    for words in ("eta_phi = 0.05", "mix = 1.0", "gates = ['fc1']", "these defaults are used"):
        assert words in str(note.message)
    with pytest.raises(ConfigError, match="run: the stored configuration has no dataset"):
        from_table({key: value for key, value in whole.items() if key != "dataset"}, "run")


def test_a_stored_key_that_is_not_known_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="run: unknown key 'etaa'; did you mean eta"):
        from_table({**Config().table(), "etaa": 0.1}, "run")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble"])
def test_numpy_numbers_become_the_shortest_decimal_that_names_them(dtype):
    config = resolve(eta=np.dtype(dtype).type("0.1"), lam=np.array(2, dtype))
    assert (config.eta, config.lam) == (0.1, 2.0)
    assert type(config.eta) is type(config.lam) is float
    assert replace(config, eta=np.dtype(dtype).type("0.3")).eta == 0.3


def test_numpy_values_are_stored_as_plain_ones():
    config = resolve(
        seed=np.arange(3)[1],
        rounds=np.uint8(7),
        weighted=np.bool_(True),
        method=np.str_("fedavg"),
        nodes=np.int16(2),
        targets=1,
        sizes=np.array([30, 40, 50], np.int32),
        gates=(np.str_("conv1"), "conv2"),
    )
    table = config.table()
    assert tomllib.loads(toml_text(table)) == table
    assert [table[key] for key in ("seed", "rounds", "weighted", "method")] == [1, 7, True, "fedavg"]
    assert table["sizes"] == [30, 40, 50]
    assert table["gates"] == ["conv1", "conv2"]
    assert resolve(nodes=2, targets=1, sizes=(np.int64(30), 40, 50)).sizes == [30, 40, 50]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounds": np.float64(2)}, "rounds must be int, got 2.0"),
        ({"seed": np.bool_(True)}, "seed must be int, got True"),
        ({"weighted": np.int64(1)}, "weighted must be bool, got 1"),
        ({"eta": np.array([0.1, 0.2])}, r"eta must be float, got \[0.1, 0.2\]"),
        ({"eta": np.complex64(1)}, "eta must be float"),
        ({"eta": "0.1"}, "eta must be float, got '0.1'"),
        ({"eta": np.array(["0.1"])}, "eta must be float"),
        ({"sizes": np.ones((3, 2), int)}, "sizes must be list"),
        ({"sizes": np.arange(100_000.0)}, "sizes must be list"),
        ({"gates": np.array([1])}, "gates must be list"),
        ({"method": np.int64(1)}, "method must be str, got 1"),
        ({"method": np.datetime64("2020-01-01")}, "method must be str"),
    ],
)
def test_numpy_values_of_another_type_are_refused_in_one_short_line(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(**options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("sizes", [[20, 60], [30] * 5, [30, 30, 30, 0]])
def test_sizes_are_one_for_each_node_and_never_a_range(sizes):
    words = "no node may be empty" if 0 in sizes else r"each of 3 \+ 1 nodes, got \d numbers; for a range"
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(nodes=3, targets=1, sizes=sizes)
    assert "\n" not in str(caught.value)


def test_a_file_of_arrays_is_known_by_its_path_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve(dataset="a/mine.npz").dataset == str(tmp_path / "a" / "mine.npz")
    assert resolve(dataset="~/mine.npz").dataset == str(tmp_path / "home" / "mine.npz")
    (tmp_path / "my.toml").write_text('dataset = "~/mine.npz"')
    assert resolve("my.toml").dataset == str(tmp_path / "home" / "mine.npz")
    assert resolve(dataset="digits").dataset == "digits"
    with pytest.raises(InputError, match=r"~nobody-here/mine\.npz: ~ stands for no home folder"):
        resolve(dataset="~nobody-here/mine.npz")


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_has_a_preset_with_a_model_of_its_own(dataset):
    assert "model" in preset(dataset)
    config = resolve(dataset=dataset)
    assert config.dataset == dataset
    assert config.gates == list(MODELS[config.model]().usual_gates)


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


def test_a_presets_nodes_a_round_fit_fewer_nodes_and_ones_own_must_fit():
    assert resolve(dataset="cifar10").per_round == 20
    assert resolve(dataset="cifar10", nodes=4).per_round == 4
    with pytest.raises(ConfigError, match="per_round 20 exceeds nodes 4"):
        resolve(dataset="cifar10", nodes=4, per_round=20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"node_min": 0, "node_max": 5}, "no node may be empty"),
        ({"node_min": 9, "node_max": 5}, "node_max 5 is below node_min 9"),
        ({"test_share": 1.0}, "test_share must be positive and below 1"),
        ({"test_share": 0.0}, "test_share must be positive and below 1"),
        ({"snip_keep": 1.5}, "snip_keep must be positive and at most 1"),
        ({"eta": float("nan")}, "eta must be positive"),
        ({"per_round": 11}, "per_round 11 exceeds nodes 10"),
        ({"target_min": 5}, "target_min from 1 up to target_max, got 5 and 0"),
        ({"target_max": 5}, "target_min from 1 up to target_max, got 0 and 5"),
        ({"target_min": 4, "target_max": 5, "folds": 2}, "target_max and folds exclude each other"),
        ({"target_min": 4, "target_max": 5, "sizes": [9] * 20}, "target_max and sizes exclude each other"),
        ({"fold": 1}, "fold must be below folds 1, got 1"),
        ({"folds": 4, "targets": 5, "nodes": 16}, r"all 16 \+ 5 nodes; set nodes to 15"),
        ({"lam": 0.0}, "lam must be positive"),
        ({"lam": 0.0, "method": "pfedme"}, "lam must be positive for pfedme"),
        ({"delta": -1e-9}, "delta must be at least 0"),
        ({"mix": -1.0}, "mix must be positive"),
        ({"inner_steps": 0}, "inner_steps must be at least 1"),
        ({"eta_theta": float("inf")}, "eta_theta must be a finite number, got inf"),
        (
            {"method": "metasnip", "gates": []},
            "metasnip prunes channels of the layers",
        ),
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
