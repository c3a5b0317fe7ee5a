"""A user's own arrays get settings that fit them, and what the nodes have of them is said."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl import prepare, resolve
from refimpl.data.node import Node
from refimpl.experiments.dealing import strangers, unseen_classes, unseen_said
from refimpl.experiments.fitting import model_for


def written(path, count, shape, classes):
    rng = np.random.default_rng(0)
    y = np.arange(count) % classes
    np.savez(path, x=rng.random((count, *shape), dtype="float32"), y=y)
    return str(path)


@pytest.mark.parametrize(
    ("shape", "model", "gates"),
    [
        ((3, 12, 9), "cnn3", ["conv3"]),
        ((28, 28), "cnn3", ["conv3"]),
        ((8, 8), "digits", ["conv2"]),
        ((3, 8, 8), "cnn3", ["conv3"]),
        ((6, 6), "mlp", ["fc1"]),
        ((17,), "mlp", ["fc1"]),
    ],
)
def test_the_model_fits_the_samples_and_is_built(tmp_path, shape, model, gates):
    file = written(tmp_path / "mine.npz", 400, shape, 4)
    config = resolve(dataset=file)
    assert (config.model, config.gates) == (model, gates)
    experiment = prepare(config)
    assert experiment.network.input_shape[-1] == (shape[-1] if model != "mlp" else np.prod(shape))


def test_what_the_user_says_stays(tmp_path):
    file = written(tmp_path / "mine.npz", 400, (3, 12, 12), 4)
    assert resolve(dataset=file, model="mlp").model == "mlp"
    assert resolve(dataset=file, gates=["fc1"]).model == "mlp"  # a gate of the usual model
    config = resolve(dataset=file, support=7, batch_size=3, classes_per_node=1)
    assert (config.support, config.batch_size, config.classes_per_node) == (7, 3, 1)
    (tmp_path / "my.toml").write_text(f'dataset = "{file}"\nmodel = "mlp"\n')
    assert resolve(tmp_path / "my.toml").model == "mlp"


@pytest.mark.parametrize(("count", "classes"), [(60, 2), (90, 3), (400, 26), (1797, 10), (40, 1)])
def test_usual_settings_suffice_for_any_size_and_training_nodes_have_every_class(tmp_path, count, classes):
    config = resolve(dataset=written(tmp_path / "mine.npz", count, (5,), classes))
    experiment = prepare(config)
    assert not unseen_classes(experiment.train_nodes, experiment.target_nodes)
    seen = np.unique(np.concatenate([node.y for node in experiment.train_nodes]))
    assert seen.tolist() == list(range(classes))
    sizes = [node.n_support + node.n_query for node in experiment.train_nodes]
    assert config.batch_size <= min(sizes)
    assert all(node.n_support and node.n_test for node in experiment.target_nodes)


def test_ample_data_keep_the_usual_numbers(tmp_path):
    config = resolve(dataset=written(tmp_path / "mine.npz", 1797, (8, 8), 10))
    assert (config.support, config.batch_size, config.classes_per_node) == (20, 20, 2)


def test_a_file_that_is_not_there_changes_nothing(tmp_path):
    assert resolve(dataset=str(tmp_path / "none.npz")).model == "mlp"
    (tmp_path / "odd.npz").write_bytes(b"no archive")
    assert resolve(dataset=str(tmp_path / "odd.npz")).model == "mlp"


def test_a_shape_without_room_for_three_poolings_is_no_image():
    assert [model_for((1, size, 40)) for size in (7, 8)] == ["mlp", "cnn3"]


def test_support_samples_are_stratified(tmp_path):
    file = written(tmp_path / "mine.npz", 1000, (5,), 4)
    for node in prepare(resolve(dataset=file, classes_per_node=2)).target_nodes:
        counts = np.unique(node.y[: node.n_support], return_counts=True)[1]
        assert counts.sum() == 20
        assert abs(counts[0] - counts[1]) <= 1


def node(name, labels):
    labels = np.array(labels)
    return Node(name, np.zeros((len(labels), 2), dtype="float32"), labels, 1, 0)


def test_classes_that_no_training_node_has_are_found_and_explained():
    train = [node("train-0", [0, 1, 1]), node("train-1", [2, 2])]
    targets = [node("a", [0, 2]), node("b", [3, 4, 4]), node("c", [1, 4])]
    unseen = unseen_classes(train, targets)
    assert unseen == {"b": [3, 4], "c": [4]}
    assert strangers(unseen, targets) == ["b"]
    line = unseen_said(unseen)
    assert "(b: 3, 4, c: 4)" in line
    assert unseen_said({}) == ""


def test_commands_say_model_samples_and_chance(tmp_path, refimpl):
    file = written(tmp_path / "mine.npz", 600, (6,), 6)
    options = ("--method", "fedavg", "--nodes", 1, "--targets", 2, "--rounds", 1, "--classes-per-node", 2)
    code, out, _ = refimpl("train", "--dataset", file, *options, "--out", "run", "-q")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["model"] == "mlp"
    used, _, total = lines["samples"].partition(":")[0].split()
    assert (int(used) < 600, total) == (True, "600")
    assert "node_min and node_max set others" in lines["samples"]
    code, out, err = refimpl("adapt", "run", "-q")
    assert code == 0
    assert out.count("(chance)") == 2
    assert "data: classes of target nodes that no training node has" in err
