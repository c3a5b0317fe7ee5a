"""`refimpl data`: what is known, what is there, whether it is right, and how it is cut into nodes."""

from __future__ import annotations

import gzip
import json
import re
from importlib import resources
from pathlib import Path

import click
import numpy as np
import pytest
from small_mnist import FILES, md5, write_mnist

from refimpl.cli import app
from refimpl.data import partition as partition_module
from refimpl.data.sets.mnist import Mnist
from refimpl.experiments.config import PRESETS, preset, resolve
from refimpl.experiments.experiment import prepare
from refimpl.registry import DATASETS, PARTITIONS

RNG = np.random.default_rng(2)
SUBCOMMANDS = ("list", "verify", "fetch", "partition")


@pytest.fixture
def folder(tmp_path):
    """A data folder with the small MNIST."""
    return write_mnist(tmp_path / "folder")


@pytest.fixture
def published(monkeypatch):
    """The small MNIST is the published one."""
    monkeypatch.setattr(Mnist, "contents", {name: md5(data) for name, data in FILES.items()})


def one_line(code: int, out: str, err: str) -> str:
    assert (code, out) == (app.WRONG_USE, "")
    assert err.startswith("refimpl: ")
    assert err.count("\n") == 1
    return err


# --- help


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_json_and_an_example_that_parses(refimpl, name):
    group = app.cli.get_command(click.Context(app.cli), "data")
    target = group.get_command(click.Context(group), name)
    assert any("--json" in option.opts for option in target.params)
    code, out, _ = refimpl("data", name, "--help")
    assert code == 0
    examples = re.findall(rf"^\s+refimpl data {name} ?(.*)$", out, re.MULTILINE)
    assert examples
    for example in examples:
        target.make_context(name, example.split(), resilient_parsing=True)
        target.make_parser(click.Context(target)).parse_args(example.split())


def test_the_group_lists_its_subcommands(refimpl):
    code, out, _ = refimpl("data", "--help")
    assert code == 0
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in SUBCOMMANDS)


# --- list


def test_listing_needs_no_folder(refimpl):
    code, out, err = refimpl("data", "list")
    assert (code, err) == (0, "")
    for name in DATASETS:
        assert re.search(rf"^{name} ", out, re.MULTILINE)
    assert "none is set" in out
    assert out.count("not there") == len(DATASETS) - 1


def test_listing_says_what_is_there(refimpl, folder):
    (folder / "cifar-100").mkdir()
    (folder / "cifar-100/test.xz").write_bytes(b"never read")
    (folder / "cifar-10").mkdir()
    (folder / "cifar-10/data_batch_1").write_bytes(b"never read")
    code, out, _ = refimpl("data", "list", "--data-dir", folder, "--json")
    assert code == 0
    found = {entry["name"]: entry for entry in json.loads(out)["datasets"]}
    assert found["digits"]["state"] == "in the package"
    assert (found["mnist"]["state"], found["mnist"]["place"]) == ("there", str(folder / "mnist"))
    assert found["cifar100"]["state"] == "partly: no train"
    assert found["cifar10"]["state"].startswith("cannot be used: lacks data_batch_2")
    assert found["omniglot"]["state"] == "not there"
    assert {name for name in DATASETS if found[name]["usable"]} == {"digits", "mnist", "cifar100"}
    assert found["mnist"]["looked_for"] == ["mnist/", "MNIST/raw/"]
    assert all(entry["licence"] and entry["citation"] for entry in found.values())
    text = refimpl("data", "list", "--data-dir", folder)[1]
    assert re.search(r"^cifar100 .* partly: no train$", text, re.MULTILINE)


def test_what_is_listed_of_the_digits_is_true(refimpl):
    from refimpl.data import load

    (entry,) = (
        e for e in json.loads(refimpl("data", "list", "--json")[1])["datasets"] if e["name"] == "digits"
    )
    digits = load("digits")
    assert (entry["train"], entry["classes"]) == (len(digits), digits.classes)
    assert entry["shape"] == list(digits.shape)


# --- verify


def test_verify_says_ok_file_by_file(refimpl, folder, published):
    code, out, err = refimpl("data", "verify", "mnist", "--data-dir", folder)
    assert code == 0
    shown = err.splitlines()
    assert [line.split()[0] for line in shown] == ["verified"] * 4
    assert shown[-1].endswith("  0:00 left")
    assert refimpl("data", "verify", "mnist", "--data-dir", folder, "-q") == (0, out, "")
    assert [line.split()[0] for line in out.splitlines()] == ["ok"] * 4
    assert str(folder / "mnist/t10k-labels-idx1-ubyte.gz") in out


def test_verify_fails_on_a_wrong_file_and_on_a_missing_one(refimpl, folder, published):
    (folder / "mnist/t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    code, out, _ = refimpl("data", "verify", "mnist", "--data-dir", folder)
    assert code == app.CHECK_FAILED
    assert [line.split()[0] for line in out.splitlines()] == ["ok"] * 3 + ["wrong"]
    (folder / "mnist/t10k-labels-idx1-ubyte.gz").unlink()
    code, out, _ = refimpl("data", "verify", "mnist", "--data-dir", folder, "--json")
    result = json.loads(out)
    assert (code, result["passed"]) == (app.CHECK_FAILED, False)
    assert [check["state"] for check in result["datasets"]["mnist"]] == ["ok"] * 3 + ["missing"]
    assert "refimpl data fetch mnist" in result["datasets"]["mnist"][3]["detail"]


def test_verifying_one_that_is_not_there_fails_but_all_passes_over_it(refimpl, folder, published):
    assert refimpl("data", "verify", "omniglot", "--data-dir", folder)[0] == app.CHECK_FAILED
    code, out, _ = refimpl("data", "verify", "all", "--data-dir", folder)
    assert code == 0
    assert (
        sorted(line.split()[0] for line in out.splitlines()) == ["absent"] * (len(DATASETS) - 2) + ["ok"] * 6
    )
    (folder / "mnist/t10k-labels-idx1-ubyte.gz").unlink()
    assert refimpl("data", "verify", "all", "--data-dir", folder)[0] == app.CHECK_FAILED


def test_verify_reads_own_arrays(refimpl, tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.zeros((4, 3)), y=[0, 1, 0, 1])
    assert refimpl("data", "verify", "mine.npz")[:2] == (
        0,
        "ok       mine.npz  4 samples of shape (1, 1, 3), 2 classes\n",
    )
    np.savez(tmp_path / "mine.npz", x=np.full((4, 3), np.nan), y=[0, 1, 0, 1])
    code, out, _ = refimpl("data", "verify", "mine.npz")
    assert (code, out.split()[0]) == (app.CHECK_FAILED, "wrong")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("verify", "emnist"), ["emnist", "digits", "cifar100", "FILE.npz"]),
        (("verify", "mnist"), ["mnist", "--data-dir", "REFIMPL_DATA"]),
        (("verify",), ["all"]),
        (("verify", "all"), ["--data-dir", "REFIMPL_DATA"]),
        (("fetch", "emnist"), ["emnist", "omniglot"]),
        (("fetch", "mnist"), ["--data-dir", "REFIMPL_DATA"]),
        (("fetch", "mnist", "--data-dir", "folder", "--from", "ftp://x"), ["ftp://x", "not a web address"]),
        (("partition", "--nodes", "400"), ["1797", "missing"]),
        (("partition", "--sizes", "40,30"), ["sizes", "10 + 10"]),
        (("partition", "--sizes", "4,,3"), ["--sizes", "4,,3"]),
        (("partition", "--classes-per-node", "11"), ["11 classes per node", "10"]),
        (("partition", "--partition", "two-class", "--classes-per-node", "3"), ["two-class", "3"]),
        (("partition", "--partition", "dirichlet", "--concentration", "0"), ["concentration"]),
        (("partition", "--preset", "cifar"), ["cifar", "cifar10-small"]),
        (("partition", "--preset", "cifar10-small", "--dataset", "mnist"), ["cifar10-small", "mnist"]),
        (("partition", "--dataset", "none.npz"), ["none.npz", "no such file"]),
        (("partition", "--dataset", "mnist"), ["--data-dir"]),
        (("lits",), ["lits"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_one_line(refimpl, args, words):
    err = one_line(*refimpl("data", *args))
    for word in words:
        assert word in err


# --- partition


def test_a_partition_is_the_one_training_uses(refimpl):
    options = ("--nodes", 6, "--targets", 2, "--node-min", 20, "--node-max", 40, "--seed", 3)
    code, out, err = refimpl("data", "partition", *options, "--json")
    assert (code, err) == (0, "")
    shown = json.loads(out)
    experiment = prepare(resolve(nodes=6, targets=2, node_min=20, node_max=40, seed=3))
    nodes = experiment.train_nodes + experiment.target_nodes
    assert [node["node"] for node in shown["nodes"]] == [node.name for node in nodes]
    for node, line in zip(nodes, shown["nodes"], strict=True):
        assert (line["training"], line["support"], line["test"]) == (
            node.n_train,
            node.n_support,
            node.n_test,
        )
        counts = {str(c): int((node.y == c).sum()) for c in node.classes}
        assert line["classes"] == counts
    assert shown["overlap"] == 0
    assert shown["used"] == sum(len(node) for node in nodes) == shown["training"] + shown["test"]


def test_the_table_has_a_line_for_each_node_and_the_totals(refimpl):
    code, out, _ = refimpl("data", "partition", "--partition", "two-class", "--nodes", 5, "--targets", 1)
    assert code == 0
    lines = out.splitlines()
    assert lines[1].startswith("train-0 ")
    assert lines[6].startswith("target-0 ")
    assert all(len(re.findall(r"\d+ \(\d+\)", line)) == 2 for line in lines[1:7])
    assert re.search(r"^overlap +0$", out, re.MULTILINE)
    assert re.search(r"^training sizes +40\.\.44, ", out, re.MULTILINE)


def test_a_table_of_sizes_and_every_kind(refimpl):
    for kind in PARTITIONS:
        sizes = ("--nodes", 2, "--targets", 1, "--sizes", "50,30,20", "--support", 5)
        code, out, _ = refimpl("data", "partition", "--partition", kind, *sizes, "--json")
        found = json.loads(out)
        assert code == 0
        assert [node["training"] for node in found["nodes"]] == [50, 30, 20]
        assert found["overlap"] == 0
        assert found["config"]["partition"] == kind
    assert len(found["nodes"][0]["classes"]) == 10  # iid, the last


def test_concentration_is_that_of_the_dirichlet_distribution(refimpl):
    def classes(concentration):
        out = refimpl(
            "data", "partition", "--partition", "dirichlet", "--concentration", concentration, "--json"
        )[1]
        return np.mean([len(node["classes"]) for node in json.loads(out)["nodes"]])

    assert classes(0.05) < 5 < 9.5 < classes(1000.0)


def test_an_overlap_would_be_seen_and_fail(refimpl, monkeypatch):
    plan = partition_module.plan

    def faulty(*args):
        first, second, *rest = plan(*args)
        return [first, second._replace(samples=first.samples), *rest]

    monkeypatch.setattr(partition_module, "plan", faulty)
    code, out, _ = refimpl("data", "partition")
    assert code == app.CHECK_FAILED
    overlap = int(re.search(r"^overlap +(\d+)$", out, re.MULTILINE)[1])
    assert overlap >= 80


def test_own_arrays_are_cut_and_trained_on(refimpl, tmp_path):
    x = RNG.standard_normal((300, 6))
    np.savez(tmp_path / "mine.npz", x=x, y=(x[:, 0] > 0).astype(int) + 2 * (x[:, 1] > 0))
    options = ("--dataset", "mine.npz", "--nodes", 3, "--targets", 1)
    code, out, _ = refimpl("data", "partition", *options)
    assert code == 0
    assert re.search(r"^data +mine\.npz: values as they are, not normalised$", out, re.MULTILINE)
    code, out, _ = refimpl("train", *options, "--rounds", 2, "--method", "fedavg", "-q")
    assert code == 0
    assert "values as they are" in out
    assert refimpl("adapt", "runs/mine-fedavg-0")[0] == 0


def test_the_output_says_that_only_a_part_was_there(refimpl, tmp_path):
    import pickle

    labels = [i % 100 for i in range(200)]
    data = RNG.integers(0, 256, (200, 3072), dtype=np.uint8)
    (tmp_path / "cifar-100").mkdir()
    (tmp_path / "cifar-100/test").write_bytes(pickle.dumps({"data": data, "fine_labels": labels}, 2))
    sizes = ("--nodes", 2, "--targets", 1, "--node-min", 5, "--node-max", 6, "--support", 5)
    out = refimpl("data", "partition", "--preset", "cifar100-small", *sizes, "--data-dir", ".")[1]
    note = "only the published test part of cifar100 was found and used"
    assert note in out
    tiny = (*sizes, "--per-round", 0, "--rounds", 1, "--local-steps", 1, "--model", "mlp", "--data-dir", ".")
    code, out, _ = refimpl("train", "--preset", "cifar100-small", *tiny, "--out", "run", "-q", "--json")
    assert (code, json.loads(out)["data"]) == (0, note)
    assert json.loads(refimpl("adapt", "run", "--data-dir", ".", "--json")[1])["data"] == note


# --- presets


@pytest.mark.parametrize("name", PRESETS.names())
def test_every_value_of_a_preset_says_where_it_comes_from(name):
    text = (resources.files("refimpl.experiments") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert line.lstrip()[:1] in ("", "#", "[") or re.search(r" = [^#]+# \S", line), line


@pytest.mark.parametrize("name", PRESETS.names())
def test_every_value_of_a_preset_is_known_and_has_its_data_set(name):
    config = resolve(None, name) if name != "npz" else resolve(dataset="mine.npz")
    assert {key for key, value in preset(name).items() if not isinstance(value, dict)} <= set(config.table())
    own = str(Path("mine.npz").absolute())
    assert config.dataset == preset(name).get("dataset", own if name == "npz" else name)


@pytest.mark.parametrize(
    ("name", "model", "dataset"),
    [
        ("cifar10-moderate", "cnn7", "cifar10"),
        ("cifar10-small", "cnn7", "cifar10"),
        ("cifar100-small", "cnn7", "cifar100"),
        ("cifar10-small-minibatch", "cnn3", "cifar10"),
    ],
)
def test_the_presets_of_the_papers_other_experiments(refimpl, name, model, dataset):
    config = resolve(None, name, seed=4)
    assert (config.model, config.dataset, config.seed) == (model, dataset, 4)
    code, out, _ = refimpl("train", "--preset", name, "--dry-run")
    assert code == 0
    assert f'model = "{model}"' in out


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar10-moderate", "cifar10-small", "cifar100-small"])
def test_presets_of_the_papers_experiments_follow_its_protocol(name):
    config, drawn, ours = (
        resolve(None, name),
        5 if name == "mnist" else 20,
        resolve(None, f"{name}-minibatch"),
    )
    assert (config.batch_size, config.local_steps, config.support) == (0, 1, 0)  # the node's whole data
    assert (config.per_round, config.targets) == (drawn, drawn)
    assert config.nodes + config.targets >= 4 * drawn
    assert (ours.dataset, ours.batch_size) == (config.dataset, 20)
    assert ours.local_steps > 2
