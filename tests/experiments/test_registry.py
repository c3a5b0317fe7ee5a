"""What users choose by name is declared once: a new file brings new choices to the whole command line."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from forks import Command
from readme_commands import document

from refimpl import prepare, resolve, train
from refimpl.errors import ConfigError, InputError
from refimpl.experiments.config import Config, from_table, keys
from refimpl.experiments.methods import keys_taken
from refimpl.federated.warmup import warm_up
from refimpl.optim import prox
from refimpl.registry import METHODS, PENALTIES, SCHEDULES, STARTS, USE, Registry, key, keys_of, own_object

SMALL = {"nodes": 2, "targets": 1, "rounds": 1, "local_steps": 1, "node_min": 40, "node_max": 44}

MINE = '''
from dataclasses import dataclass
import numpy as np
from refimpl.optim.accel import Steps
from refimpl.registry import METHODS, PENALTIES, SCHEDULES, key

@PENALTIES.register("huber")
@dataclass(frozen=True)
class Huber:
    """R(u) = weight sum of u^2/2 where |u| <= 1, |u| - 1/2 elsewhere."""
    softness: float = key(0.25, "weight of the Huber penalty", at_least=0.0)

    def value(self, u):
        return float(self.softness * np.where(np.abs(u) <= 1, u * u / 2, np.abs(u) - 0.5).sum())

    def prox(self, v, step, out):
        step = step * self.softness
        np.copyto(out, np.where(np.abs(v) <= 1 + step, v / (1 + step), v - step * np.sign(v)))
        return self.value(out)

    def subdifferential_distance(self, s, u):
        return float(np.linalg.norm(s - self.softness * np.clip(u, -1, 1)))

@SCHEDULES.register("halving")
@dataclass(frozen=True)
class Halving:
    first: float = key(0.5, "first step of the schedule", above=0.0)

    def steps(self, k):
        return Steps(1.0, self.first * 0.5 ** (k // 10), self.first * 0.5 ** (k // 10))
'''

FLAGS = [f for name, value in SMALL.items() for f in (f"--{name.replace('_', '-')}", str(value))]
ALONE = ("--threads", "1")  # without processes of its own, each of which takes seconds to start


def in_new_process(*args, **variables):
    """Run the command line in a Python that has imported nothing yet."""
    command = [sys.executable, "-m", "refimpl", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Runs the command line with a user's file; returns what it prints, its complaint where it fails.

    The processes are forked from this one, and import the modules of commands anew: with the user's choices.
    """
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    warm_up(threads=1)  # which the processes then have done
    for name in [name for name in sys.modules if name.startswith("refimpl.cli.")]:
        monkeypatch.delitem(sys.modules, name)

    def run(*args, use=("--use", "mine.py"), code=0, **variables):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with Command([*use, *map(str, args)]) as command:
                out, err = command.communicate()
        assert command.returncode == code, err
        return err if code else out

    return run


def test_a_file_of_a_users_brings_its_choices_to_the_command_line(mine, tmp_path):
    text = mine("train", "--help", COLUMNS="200")
    for words in ("--softness", "weight of the Huber penalty (huber)", "--first", "halving"):
        assert words in text
    mine("train", *FLAGS, "--penalty", "huber", "--softness", 0.5, "--schedule", "halving", "--out", "run")
    mine("adapt", "run")  # the stored configuration is read again
    (tmp_path / "my.toml").write_text('penalty = "huber"\nsoftness = 0.75\n')
    table = tomllib.loads(mine("train", "--dry-run", "--config", "my.toml"))
    assert (table["penalty"], table["softness"], table["first"]) == ("huber", 0.75, 0.5)
    by_variable = in_new_process(
        "train", "--dry-run", "--config", "my.toml", **{USE: str(tmp_path / "mine.py")}
    )
    assert tomllib.loads(by_variable.stdout) == table


def test_a_comparison_and_its_report_know_the_choices_of_a_users_file(mine, tmp_path):
    mine(  # in several processes, where there are several cores
        "compare", *FLAGS, "--methods", "metagater", "--seeds", "0", "--penalty", "huber",
        "--vary", "softness=0.1,0.2", "--out", "both",
    )  # fmt: skip
    labels = {row["label"] for row in json.loads((tmp_path / "both" / "results.json").read_text())["rows"]}
    assert {"metagater softness=0.1", "metagater softness=0.2"} <= labels
    mine("report", "both", "--quick", "-q")
    assert "softness=0.2" in (tmp_path / "both" / "report" / "report.html").read_text()


def test_the_recipe_of_a_method_brings_it_to_every_command(mine, tmp_path):
    """The file and the commands are those that `refimpl/README.md` prints."""
    tour = document("refimpl/README.md")
    (recipe,) = re.findall(r"```python\n(# momentum\.py\n.*?)```", tour, flags=re.S)
    (tmp_path / "momentum.py").write_text(recipe)
    use = ("--use", "momentum.py")
    for line in re.findall(r"^\$ refimpl --use momentum\.py (.*)$", tour, flags=re.M):
        command, *given = shlex.split(line)
        settings = FLAGS[:4] if command == "tune" or "--rounds" in given else FLAGS
        mine(command, *given, *((*settings, *ALONE) if command not in ("adapt", "report") else ()), use=use)

    help_text = mine("train", "--help", use=use, COLUMNS="200")
    assert re.search(r"--method \[\S*\bmomentum\b", help_text)
    assert "share m of the velocity that the server keeps (momentum)  [0.5]" in help_text
    stored = tomllib.loads((tmp_path / "runs" / "momentum" / "config.toml").read_text())
    assert (stored["method"], stored["momentum"]) == ("momentum", 0.3)
    assert "momentum: the server keeps a velocity" in mine("adapt", "runs/momentum", use=use)

    found = (tmp_path / "momentum.toml").read_text()
    assert "momentum 0.1..0.9" in found
    assert 0.1 <= tomllib.loads(found)["momentum"]["momentum"] <= 0.9
    table = tomllib.loads(mine("train", "--dry-run", "--config", "momentum.toml", use=use))
    assert table["momentum"] == tomllib.loads(found)["momentum"]["momentum"]

    rows = json.loads((tmp_path / "runs" / "both" / "results.json").read_text())["rows"]
    assert {row["label"] for row in rows} == {"fedavg", "momentum momentum=0.3", "momentum momentum=0.6"}
    page = (tmp_path / "runs" / "both" / "report" / "report.html").read_text()
    assert "momentum=0.6" in page
    assert "the server keeps a velocity" in page

    without = mine("adapt", "runs/momentum", use=(), code=2)
    assert without.count("\n") == 1
    assert "unknown key 'momentum'" in without
    assert "name such a file with refimpl --use FILE.py" in without


def test_two_files_may_have_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, name in (("one", "first"), ("other", "second")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(
            MINE.replace('"huber"', f'"huber-{name}"').replace("halving", name)
        )
    files = ("--use", "one/mine.py", "--use", "other/mine.py")
    text = in_new_process(*files, "train", "--help", COLUMNS="300").stdout
    assert "huber-first" in text
    assert "huber-second" in text


def test_the_table_of_methods_is_that_of_their_declarations():
    lines = re.findall(
        r"^\| `([\w-]+)` \| [^|]+ \| `([\w ]+)` \|$", document("refimpl/federated/README.md"), flags=re.M
    )
    others = {*PENALTIES.keys(), *SCHEDULES.keys(), *STARTS.keys()}  # the keys of what a method is made with
    assert {name: set(listed.split()) for name, listed in lines} == {
        name: keys_taken(name) - others for name in METHODS
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "--use: expected a Python file"),
        ("1 / 0", "cannot be imported: division by zero"),
        ("from refimpl.registry import SCHEDULES\nSCHEDULES.register('nesterov')(int)", "registered already"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "bad.py").write_text(content)
    done = in_new_process("--use", "bad.py", "train", "--dry-run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_penalty_of_the_library_trains(penalty):
    experiment = prepare(resolve(penalty=penalty, **SMALL))
    ((_, used),) = experiment.method.penalty.parts
    assert type(used) is PENALTIES[penalty]
    train(experiment, threads=1)
    assert from_table(experiment.config.table()) == experiment.config


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_is_made_with_its_keys(schedule):
    made = prepare(resolve(schedule=schedule, beta=0.125, fraction=0.5, **SMALL)).method.schedule
    assert type(made) is SCHEDULES[schedule]
    assert {name: getattr(made, name) for name in keys_of(made)}.items() <= {
        "beta": 0.125,
        "fraction": 0.5,
    }.items()


def test_the_whole_library_of_penalties_can_be_chosen():
    classes = {kind for kind in vars(prox).values() if isinstance(kind, type) and hasattr(kind, "prox")}
    others = {prox.Penalty, prox.Norm, prox.Separable, prox.Rising}  # bases and wrappers
    assert set(PENALTIES.classes().values()) >= classes - others


def test_a_key_says_which_choices_it_belongs_to():
    assert keys()["fraction"].of == ("bounded",)
    assert set(keys()["radius"].of) == {"bounded-group-lasso", "l1-ball", "l2-ball", "linf-ball"}
    assert keys()["beta"].of == ()


def test_one_key_has_one_meaning():
    from dataclasses import dataclass

    registry = Registry("penalty", "refimpl.registry")

    @registry.register("one")
    @dataclass
    class One:
        rho: float = key(0.5, "weight")

    @registry.register("two")
    @dataclass
    class Two:
        rho: float = key(0.25, "another weight")

    with pytest.raises(InputError, match=r"penalty two: the key rho is float with the default 0\.5 already"):
        registry.keys()


def test_keys_of_choices_are_read_and_stored_like_all_others():
    config = Config(penalty="elastic-net", ridge=2.0)
    assert config.ridge == config.table()["ridge"] == 2.0
    assert json.loads(json.dumps(config.table())) == config.table()
    with pytest.raises(InputError, match="ridge must be at least 0, got -1"):
        Config(ridge=-1.0)
    with pytest.raises(InputError, match="unknown key 'rigde'; did you mean ridge"):
        resolve(rigde=1.0)


MODEL = """
from dataclasses import dataclass
from math import prod
from typing import ClassVar
from refimpl import Network, zoo
from refimpl.nn.layers import Linear
from refimpl.nn.pointwise import Tanh
from refimpl.nn.pooling import Flatten
from refimpl.registry import MODELS, key

@MODELS.register("two-layers")
@dataclass(frozen=True)
class TwoLayers:
    units: int = key(6, "units of the tanh layer", at_least=1)
    gain: float = key(1.0, "gain of the output layer", above=0.0)

    input_shape: ClassVar = (64,)
    usual_gates: ClassVar = ("first",)

    def build(self, input_shape, classes, gates=()):
        size = prod(input_shape)
        blocks = [(Flatten(),), (Linear("first", size, self.units), Tanh())]
        blocks.append((Linear("last", self.units, classes, gain=self.gain),))
        return Network("two-layers", zoo.with_gates(blocks, gates), (size,))
"""


def test_a_file_of_a_users_brings_its_model_everywhere(mine, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)

    def run(*args):
        return mine(*args, use=("--use", "model.py"))

    text = " ".join(run("train", "--help").split())
    for words in ("|two-layers]", "--units", "units of the tanh layer (two-layers)"):
        assert words in text
    (tmp_path / "my.toml").write_text('model = "two-layers"\nunits = 5\n')
    table = tomllib.loads(run("train", "--dry-run", "--config", "my.toml", "--gain", 0.5))
    wanted = {"model": "two-layers", "units": 5, "gain": 0.5, "gates": ["first"]}
    assert wanted.items() <= table.items()
    few = ("--config", "my.toml", *FLAGS, *ALONE)
    run("compare", *few, "--methods", "fedavg", "--seeds", 0, "--vary", "units=4,5", "--out", "both")
    run("report", "both", "--quick", "-q")
    assert "fedavg units=4" in (tmp_path / "both" / "report" / "report.html").read_text()
    search = ("--keys", "gain", "--range", "gain=0.5:2", "--budget", 2)
    run("tune", "--method", "fedavg", *few, *search, "--out", "best.toml")
    assert 0.5 <= tomllib.loads((tmp_path / "best.toml").read_text())["gain"] <= 2
    assert "first.weight" in run("gradcheck", "--model", "two-layers", "--mode", "ungated", "-q")


def test_widths_are_keys_of_the_models():
    layers = ("conv1.weight", "conv2.weight")
    for widths, shapes in (([], [(16, 1, 3, 3), (32, 16, 3, 3)]), ([4, 6], [(4, 1, 3, 3), (6, 4, 3, 3)])):
        slots = prepare(resolve(widths=widths, **SMALL)).network.layout.slots
        assert [slot.shape for slot in slots if slot.name in layers] == shapes
    assert prepare(resolve(model="mlp", hidden=[], method="fedavg", **SMALL)).network.layout.size == 650
    assert (resolve(model="mlp").gates, resolve(model="mlp", hidden=[]).gates) == (["fc1"], [])
    with pytest.raises(InputError, match=r"digits: expected 2 positive widths, got \(4,\)"):
        prepare(resolve(widths=[4], **SMALL))


DATA = '''
from dataclasses import dataclass
import numpy as np
from refimpl.data.dataset import DataSet
from refimpl.data.deal import Rule
from refimpl.data.source import About, DataSource, Form
from refimpl.registry import DATASETS, PARTITIONS, key

@DATASETS.register("stripes")
class Stripes(DataSource):
    """Images made by code: a class has its own bright row."""
    about = About(240, 0, (1, 8, 8), 4, "none", "nobody")
    usual = {"model": "digits", "node_min": 12, "node_max": 16, "support": 6}

    def read(self, found):
        y = np.arange(240) % 4
        images = np.random.default_rng(0).integers(0, 99, (240, 1, 8, 8), dtype=np.uint8)
        images[np.arange(240), 0, 2 * y] = 255
        return DataSet(self.name, images, y, ("a", "b", "c", "d"), n_train=240)

@DATASETS.register("bytes")
class Bytes(Stripes):
    """The same, if a file is there."""
    forms = (Form(("bytes",), ("letters",)),)

    def read(self, found):
        ((file, where, content),) = found.contents()
        assert (file, content) == ("letters", b"abc")
        return super().read(found)

@PARTITIONS.register("one-class")
@dataclass(frozen=True)
class OneClass(Rule):
    """Every node has the samples of one class."""
    first_class: int = key(0, "class of the first node", at_least=0)

    def deal(self, stock, sizes, targets, rng):
        counts = np.zeros((len(sizes), len(stock)), dtype=np.int64)
        counts[np.arange(len(sizes)), (np.arange(len(sizes)) + self.first_class) % len(stock)] = sizes
        return counts
'''


@pytest.fixture
def my_data(mine, tmp_path):
    (tmp_path / "mine.py").write_text(DATA)
    return mine


def test_a_data_set_and_a_partition_of_a_users_are_on_the_command_line(my_data, tmp_path):
    text = my_data("train", "--help", COLUMNS="200")
    for words in ("stripes", "one-class", "--first-class", "class of the first node (one-class)"):
        assert words in text
    chosen = ("--dataset", "stripes", "--partition", "one-class", "--nodes", 3, "--targets", 1)
    parts = json.loads(my_data("data", "partition", *chosen, "--first-class", 2, "--json"))
    assert [list(node["classes"]) for node in parts["nodes"]] == [["2"], ["3"], ["0"], ["1"]]
    (tmp_path / "my.toml").write_text(
        'dataset = "stripes"\npartition = "one-class"\nfirst_class = 1\nnodes = 3\ntargets = 1\nrounds = 1\n'
    )
    my_data("train", "--config", "my.toml", "--method", "fedavg", "--out", "run", "-q")
    stored = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (stored["dataset"], stored["first_class"], stored["support"]) == ("stripes", 1, 6)
    my_data("adapt", "run")


def test_a_comparison_a_search_and_a_report_know_a_users_data(my_data, tmp_path):
    chosen = ("--dataset", "stripes", "--nodes", 2, "--targets", 1, "--rounds", 1, *ALONE)
    my_data(
        "compare", *chosen, "--methods", "fedavg", "--seeds", "0", "--partition", "one-class",
        "--vary", "first_class=0,2", "--out", "both",
    )  # fmt: skip
    labels = {row["label"] for row in json.loads((tmp_path / "both" / "results.json").read_text())["rows"]}
    assert labels == {"fedavg first_class=0", "fedavg first_class=2"}
    my_data("report", "both", "--quick", "-q")
    assert "stripes" in (tmp_path / "both" / "report" / "report.html").read_text()
    my_data("tune", *chosen, "--method", "fedavg", "--budget", 1, "--out", "best.toml", "-q")
    assert "stripes" in (tmp_path / "best.toml").read_text()


def test_the_data_commands_know_a_users_data_set(my_data, tmp_path):
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "letters").write_bytes(b"abc")
    listed = {
        e["name"]: e for e in json.loads(my_data("data", "list", "--data-dir", ".", "--json"))["datasets"]
    }
    assert (listed["stripes"]["state"], listed["bytes"]["state"]) == ("made by its code", "there")
    assert "ok" in my_data("data", "verify", "bytes", "--data-dir", ".")
    my_data("data", "partition", "--dataset", "bytes", "--data-dir", ".", "--nodes", 2, "--targets", 1)


def test_choices_are_listed_in_one_order_whichever_module_was_imported_first():
    listed = "from refimpl.registry import METHODS; print(*METHODS)"
    first = "import refimpl.federated.methods.reptile, refimpl.federated.methods.maml; "
    plain, other = (
        subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
        for code in (listed, first + listed)
    )
    assert plain == other
    assert plain.startswith("fedavg")


# --- objects in a user's file: FILE.py:NAME ---------------------------------------------------------


def test_an_object_of_ones_own_is_named_by_its_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import math\ntau = 2 * math.pi\ndef make(): return [tau]\nclass Odd:\n  tau = 3\n")
    assert own_object(f"{file}:tau", "--thing", "a thing") == math.tau
    assert own_object(f"{file}:make", "--thing", "a thing") == [math.tau]
    assert own_object(f"{file}:Odd", "--thing", "a thing").tau == 3


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "", "--thing: expected a thing as FILE.py:NAME, got"),
        (None, ":x", "--thing: expected a Python file that defines a thing, got"),
        ("problem = 1", ":problme", "defines no problme; did you mean problem\\? name a thing"),
        ("def x(n): return n", ":x", "x\\(\\) of .* fails: x\\(\\) missing 1 required"),
        ("1/0", ":x", "cannot be imported: division by zero"),
    ],
)
def test_what_no_file_defines_is_one_line(tmp_path, content, name, message):
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        own_object(f"{file}{name}", "--thing", "a thing")
