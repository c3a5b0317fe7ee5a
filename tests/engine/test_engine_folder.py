"""The app folder that `refimpl engine app` writes, and a node with a file of its own, without Flower."""

import os
import re
import subprocess
import tomllib

import numpy as np
import pytest

from refimpl.engine.folder import Address, write_app
from refimpl.engine.job import OWN, Job, read_job
from refimpl.engine.node import Worker
from refimpl.engine.rounds import Patience
from refimpl.errors import ConfigError, DataError, InputError
from refimpl.experiments.config import Config, resolve
from refimpl.rng import SeedTree


def own_job(**more):
    config = resolve(dataset=OWN, model="mlp", method="fedavg", nodes=3, targets=0, rounds=2, **more)
    return Job(Config(**{**config.table(), "dataset": OWN}), (1, 2, 3), 4)


def test_the_command_writes_a_folder_from_which_the_job_is_read_again(refimpl, tmp_path):
    options = ("--shape", "1,2,3", "--classes", 4, "--method", "fedavg", "--model", "mlp", "--nodes", 3)
    code, out, err = refimpl(
        "engine", "app", "fed", *options, "--targets", 0, "--rounds", 2, "--policy", "skip", "--deadline", 5
    )
    assert (code, err) == (0, "")
    assert "README.md says what to do next" in out
    folder = tmp_path / "fed"
    assert read_job(folder / "job.toml") == own_job()
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    settings = project["tool"]["flwr"]["app"]["config"]
    assert settings == {"out": "run", "policy": "skip", "deadline": 5.0, "attempts": 10, "fewest": 1}
    assert os.access(folder / "bin" / "flwr-clientapp", os.X_OK)
    assert not [path for path in folder.rglob("*") if path.is_file() and "@HOST@" in path.read_text()]


def test_no_word_of_a_template_is_left(tmp_path):
    write_app(tmp_path / "app", own_job(), Patience(), Address.parse("server.example.org:443"))
    for path in (tmp_path / "app").rglob("*"):
        assert path.is_dir() or not [word for word in path.read_text().split("@")[1::2] if word.isupper()]
    readme = (tmp_path / "app" / "README.md").read_text()
    assert "server.example.org:443" in readme
    assert "--host 0.0.0.0 --port 443" in readme
    assert "DNS:server.example.org,DNS:localhost,IP:127.0.0.1" in readme


def test_the_environment_is_quiet_and_keeps_flowers_settings_in_the_folder(tmp_path):
    write_app(tmp_path / "app", own_job(), Patience(), Address())
    script = ". ./environment.sh && env"
    done = subprocess.run(
        ["sh", "-ec", script], cwd=tmp_path / "app", capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    for line in (
        "FLWR_TELEMETRY_ENABLED=0",
        "FLWR_DISABLE_UPDATE_CHECK=1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
        "RAY_USAGE_STATS_ENABLED=0",
        f"FLWR_HOME={tmp_path}/app/.flwr",
    ):
        assert line in said
    config = tomllib.loads((tmp_path / "app" / ".flwr" / "config.toml").read_text())["superlink"]
    assert config["federation"] == {
        "address": "localhost:8000",
        "root-certificates": f"{tmp_path}/app/tls/ca.pem",
    }


def test_the_example_of_the_readme_uses_the_meta_model(tmp_path, monkeypatch, capsys):
    job = own_job()
    write_app(tmp_path / "app", job, Patience(), Address())
    monkeypatch.chdir(tmp_path / "app")
    layout = job.network().layout
    with job.folder(tmp_path / "app" / "run") as folder:
        folder.save_model(layout.to_arrays(layout.initialise(SeedTree(0))))
    (example,) = re.findall(r"```python\n(.*?)```", (tmp_path / "app" / "README.md").read_text(), flags=re.S)
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"\[[0-3]\]\n", capsys.readouterr().out)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_app(tmp_path, own_job(), Patience(), Address())


@pytest.mark.parametrize("text", ["localhost", ":8000", "host:", "host:0", "host:x", "host:70000"])
def test_an_address_has_a_host_and_a_port(text):
    with pytest.raises(InputError, match="HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize(
    "wrong", ["", "input_shape = 3\n", "input_shape = [1]\nclass_count = true\n", 'input_shape = ["a"]\n']
)
def test_a_damaged_job_is_refused(tmp_path, wrong):
    (tmp_path / "job.toml").write_text(wrong)
    with pytest.raises(ConfigError, match="expected"):
        read_job(tmp_path / "job.toml")


@pytest.mark.parametrize(("shape", "classes"), [((), 3), ((0, 2), 3), ((2**20, 2**20), 3), ((1, 2), 1)])
def test_a_job_needs_a_shape_and_classes(shape, classes):
    with pytest.raises(ConfigError, match="--shape"):
        Job(own_job().config, shape, classes)


def samples(count, labels):
    return np.arange(count * 6).reshape(count, 2, 3).astype("f4"), np.resize(labels, count)


def test_a_node_trains_on_its_own_file_which_need_not_have_all_classes(tmp_path):
    x, y = samples(7, [1, 3])
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    node = Worker(own_job(), 2, tmp_path / "mine.npz")
    np.testing.assert_array_equal(node.experiment.train_nodes[0].train.x[:, 0], x)
    assert node.hello()[:2] == (2, 7)


def test_a_nodes_test_samples_stay_out_of_the_training(tmp_path):
    (x, y), (other, labels) = samples(7, [1, 3]), samples(2, [0])
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=other, y_test=labels)
    assert Worker(own_job(), 0, tmp_path / "mine.npz").hello().samples == 7


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.ones((2, 3, 3), "f4"), [0, 1], "expected samples of shape"),
        (np.ones((2, 2, 3), "f4"), [0, 4], "expected 0..3"),
        (np.full((2, 2, 3), np.nan, "f4"), [0, 1], "NaN"),
        (np.array([{}, {}]), [0, 1], "mine.npz"),
    ],
)
def test_an_unfit_file_is_refused(tmp_path, x, y, said):
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    with pytest.raises(DataError, match=said):
        Worker(own_job(), 0, tmp_path / "mine.npz").hello()


def test_a_node_says_what_it_lacks():
    with pytest.raises(ConfigError, match="partition-id from 0 to 2"):
        Worker(own_job(), 3)
    with pytest.raises(ConfigError, match="data="):
        Worker(own_job(), 0).hello()


def test_simulation_names_the_extra_where_it_is_missing(refimpl, monkeypatch):
    monkeypatch.setattr("refimpl.cli.engine.find_spec", lambda name: None)
    code, _, err = refimpl("engine", "simulate", "--dataset", "digits")
    assert code == 2
    assert "refimpl[flower]" in err


def test_shape_and_classes_go_together(refimpl):
    assert refimpl("engine", "app", "fed", "--shape", "1,2")[0] == 2
    assert refimpl("engine", "app", "fed", "--shape", "1,2", "--classes", 3, "--dataset", "digits")[0] == 2
