"""The command line as a user meets it: help, suggestions, one line per mistake, nothing imported in vain."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from commands import assert_one_line, assert_refused, files

from refimpl.cli import app
from refimpl.errors import RefimplError
from refimpl.experiments.config import Config, keys
from refimpl.files.storage import toml_text

SMALL = ("--dataset", "digits", "--nodes", "2", "--targets", "1", "--rounds", "2", "--local-steps", "1", "-q")


def command(name: str) -> click.Command:
    found = app.cli.get_command(click.Context(app.cli), name)
    assert found is not None
    return found


def every_command(found: click.Command, words: tuple[str, ...] = ()):
    """All commands with the words that call them, subcommands included."""
    if isinstance(found, click.Group):
        context = click.Context(found)
        for name in found.list_commands(context):
            yield from every_command(found.get_command(context, name), (*words, name))
    else:
        yield " ".join(words), found


@pytest.mark.parametrize(("words", "found"), [*every_command(app.cli)], ids=lambda one: str(one))
def test_every_command_has_flags_for_less_and_more_progress(words, found):
    flags = {name for option in found.params for name in option.opts}
    assert {"-q", "--quiet", "-v", "--verbose"} <= flags, words
    wanted = [option for option in found.params if {"-q", "-v"} & {*option.opts}]
    assert all(option.help for option in wanted)


# --- help


def test_alone_it_shows_the_jobs_and_the_demo(refimpl):
    code, out, _ = refimpl()
    assert code == 0
    for job, _ in app.JOBS:
        assert job in out
    shown = re.findall(r"^  refimpl (\w+)", out, re.MULTILINE)
    assert "demo" in shown
    assert set(shown) <= set(app.COMMANDS)


def test_every_job_has_a_command_that_exists():
    for job, uses in app.JOBS:
        assert any(use.split()[0] in app.COMMANDS for use in uses), job


@pytest.mark.parametrize("name", app.COMMANDS)
def test_the_listed_help_is_the_commands_own(name, refimpl):
    assert (command(name).help or "").splitlines()[0] == app.COMMANDS[name]
    _, out, _ = refimpl("--help")
    assert re.search(rf"^  {name} ", out, re.MULTILINE)


def all_commands() -> list[tuple[str, ...]]:
    """The words of every command and subcommand."""
    found: list[tuple[str, ...]] = []
    for name in app.COMMANDS:
        found.append((name,))
        if isinstance(command(name), click.Group):
            found += [(name, sub) for sub in command(name).commands]
    return found


def parse(words: list[str]) -> None:
    """Parse a whole command line as click would, running nothing; for unknown options it raises."""
    target, names = command(words[0]), ["refimpl", words.pop(0)]
    if isinstance(target, click.Group):
        assert words, f"{names} needs a subcommand"
        if target.invoke_without_command and words[0].startswith("-"):  # it does something by itself
            target.make_context(" ".join(names), words)
            return
        names.append(words[0])
        target = target.commands[words.pop(0)]
    target.make_context(" ".join(names), words)


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_help_has_an_example_and_all_of_them_parse(words, refimpl):
    code, out, _ = refimpl(*words, "--help")
    assert code == 0
    examples = re.findall(r"^ +refimpl (.+)$", out.split("Example", 1)[1], re.MULTILINE)
    own = [example for example in examples if tuple(shlex.split(example)[: len(words)]) == words]
    assert own, f"no example of refimpl {' '.join(words)}"
    for example in examples:
        parse(shlex.split(example.split(">")[0]))


def test_an_example_with_an_unknown_option_would_be_found():
    with pytest.raises(click.UsageError):
        parse(["report", "a", "--slow"])
    with pytest.raises(click.UsageError):
        parse(["data", "list", "--all"])


@pytest.mark.parametrize(
    "name", ["train", "compare", "tune", "demo", "report", "adapt", "gradcheck", "bench", "warmup", "info"]
)
def test_commands_that_last_take_q_and_v(name):
    options = {flag for option in command(name).params for flag in option.opts}
    assert {"-q", "--quiet", "-v", "--verbose"} <= options


@pytest.mark.parametrize("name", ["train", "adapt", "demo", "compare", "tune", "gradcheck", "info"])
def test_commands_that_print_results_print_json_too(name):
    assert any("--json" in option.opts for option in command(name).params)


def test_version(refimpl):
    from refimpl import __version__

    assert refimpl("--version") == (0, f"refimpl {__version__}\n", "")


# --- imports


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import refimpl", ("numba", "llvmlite", "scipy", "click")),
        ("import refimpl.experiments.record", ("numba", "llvmlite", "scipy")),
        ("from refimpl.cli import app; app.run([])", ("numba", "llvmlite", "scipy", "numpy")),
        ("from refimpl.cli import app; app.run(['--help'])", ("numba", "llvmlite", "scipy", "numpy")),
        ("from refimpl.cli import app; app.run(['gradcheck', '--help'])", ("numba", "llvmlite", "scipy")),
    ],
)
def test_nothing_heavy_is_imported_in_vain(statement, absent):
    loaded = f"(name for name in {absent!r} if name in sys.modules)"
    script = f"import sys; {statement}; print(*{loaded}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


# --- mistakes


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("trian", "train"),
        ("inf", "info"),
        ("gradchek", "gradcheck"),
        ("addapt", "adapt"),
        ("reprot", "report"),
    ],
)
def test_a_misspelt_command_suggests_the_nearest(refimpl, typed, meant):
    assert f"did you mean {meant}?" in assert_one_line(*refimpl(typed))


@pytest.mark.parametrize(
    ("group", "typed", "meant"),
    [("data", "fecth", "fetch"), ("theory", "lemas", "lemmas"), ("golden", "chek", "check")],
)
def test_a_misspelt_subcommand_suggests_the_nearest(refimpl, group, typed, meant):
    assert f"did you mean {meant}?" in assert_one_line(*refimpl(group, typed))


def test_an_unknown_command_lists_all(refimpl):
    err = assert_one_line(*refimpl("xyzzy"))
    assert all(name in err for name in app.COMMANDS)


WRONG = [
    (("train", "--rouds", "3"), ["--rounds", "refimpl train --help"]),
    (("--verson",), ["--version"]),
    (("train", "--rounds", "many"), ["--rounds", "many"]),
    (("train", "--rounds", "0"), ["rounds", "at least 1"]),
    (("train", "--eta", "nan"), ["eta"]),
    (("train", "--dataset", "imagenet"), ["imagenet", "digits", "cifar10"]),
    (("train", "--method", "maml2"), ["maml2", "metagater"]),
    (("train", "--model", "resnet"), ["resnet", "cnn3"]),
    (("train", "--gates", "conv9"), ["conv9", "conv2"]),
    (("train", "--gates", "conv2,,conv1"), ["gates"]),
    (("train", "--threads", "0"), ["--threads"]),
    (("train", "--dataset", "mnist"), ["mnist", "--data-dir", "REFIMPL_DATA"]),
    (("train", "--dataset", "mnist", "--data-dir", "nowhere"), ["nowhere"]),
    (("train", "--nodes", "1000"), ["1797", "missing"]),
    (("train", "--config", "missing.toml"), ["missing.toml"]),
    (("train", "--resume"), ["--out"]),
    (("train", "--resume", "--force", "--out", "a"), ["--force"]),
    (("train", "--resume", "--out", "nowhere"), ["nowhere"]),
    (("adapt", "nowhere"), ["nowhere", "not a run folder"]),
    (("adapt",), ["RUN"]),
    (("gradcheck", "--model", "vgg"), ["vgg", "cnn3"]),
    (("gradcheck", "--all", "--model", "mlp"), ["--all"]),
    (("gradcheck", "--mode", "ungated", "--gate-grad", "dense"), ["ungated"]),
    (("info", "surplus"), ["surplus"]),
]


@pytest.mark.parametrize(("args", "words"), WRONG, ids=[" ".join(args) for args, _ in WRONG])
def test_a_mistake_is_one_line_and_writes_nothing(refimpl, tmp_path, args, words):
    assert_refused(refimpl(*args), words, tmp_path)


BAD_TOML = [
    ("rounds = = 3", ["my.toml", "line 1"]),
    ("rouds = 3", ["rouds", "rounds"]),
    ("[metagator]\nrounds = 3", ["metagator"]),
    ("rounds = '3'", ["rounds", "int"]),
    ("rounds = true", ["rounds", "int"]),
    ("gates = 'conv2'", ["gates", "list"]),
    ("lam = -1.0", ["lam"]),
    ("eta = nan", ["eta"]),
    ("dataset = 'imagenet'", ["imagenet"]),
    ("dataset = 3", ["dataset"]),
    ("dataset = ['digits']", ["dataset"]),
]


@pytest.mark.parametrize(("text", "words"), BAD_TOML, ids=[text for text, _ in BAD_TOML])
def test_a_bad_configuration_file_is_one_line_and_writes_nothing(refimpl, tmp_path, text, words):
    (tmp_path / "my.toml").write_text(text)
    err = assert_one_line(*refimpl("train", "--config", "my.toml", "--out", "run"))
    for word in words:
        assert word in err
    assert set(files(tmp_path)) == {"my.toml"}


def test_a_binary_configuration_file_is_one_line(refimpl, tmp_path):
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe\x00")
    assert "my.toml" in assert_one_line(*refimpl("train", "--config", "my.toml"))


def test_an_unexpected_message_with_line_breaks_stays_one_line(refimpl, monkeypatch):
    def fail(*_, **__):
        raise RefimplError("first\n  second")

    monkeypatch.setattr(app.cli, "main", fail)
    assert assert_one_line(*refimpl("info")) == "refimpl: first second\n"


def test_an_interrupt_outside_a_run_exits_with_130(refimpl, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command("info"), "callback", interrupted)
    assert refimpl("info")[0] == app.INTERRUPTED


# --- configuration: flags and file are the same thing


# What makes another value of a key valid.
COMPANIONS = {"target_min": {"target_max": 9}, "target_max": {"target_min": 1}, "fold": {"folds": 2}}


def other_value(item) -> object:
    """A valid value that differs from the default."""
    default = getattr(Config(), item.name)
    if item.choices:
        return next(choice for choice in item.choices if choice != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, list):
        return ["conv1", "conv2"] if item.type == "list[str]" else list(range(30, 50))
    if item.name in ("node_min", "per_round"):
        return default + 1 if item.name == "per_round" else max(default - 1, 1)
    return default + 1 if isinstance(default, int) else default / 2


def as_flag(name: str, value: object) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]


@pytest.mark.parametrize("item", keys().values(), ids=lambda item: item.name)
def test_every_key_is_a_flag_and_the_other_way_round(refimpl, tmp_path, item):
    value = other_value(item)
    table = {item.name: value, **COMPANIONS.get(item.name, {})}
    flags = [flag for name, entry in table.items() for flag in as_flag(name, entry)]
    code, by_flag, err = refimpl("train", "--dry-run", *flags)
    assert (code, err) == (0, "")
    assert tomllib.loads(by_flag)[item.name] == value
    (tmp_path / "my.toml").write_text(toml_text(table))
    assert refimpl("train", "--dry-run", "--config", "my.toml") == (0, by_flag, "")


def test_a_dry_run_prints_a_complete_file_that_resolves_to_itself(refimpl, tmp_path):
    _, out, _ = refimpl("train", "--dry-run", "--seed", 7, "--gates", "none")
    assert set(tomllib.loads(out)) == set(keys())
    assert tomllib.loads(out)["gates"] == []
    (tmp_path / "my.toml").write_text(out)
    assert refimpl("train", "--dry-run", "--config", "my.toml")[1] == out
    assert set(files(tmp_path)) == {"my.toml"}


def test_flags_win_over_the_file(refimpl, tmp_path):
    (tmp_path / "my.toml").write_text("rounds = 5\neta = 0.25\n")
    table = tomllib.loads(refimpl("train", "--dry-run", "--config", "my.toml", "--rounds", 6)[1])
    assert (table["rounds"], table["eta"]) == (6, 0.25)


# --- info


def test_info_says_where_things_are(refimpl, monkeypatch):
    monkeypatch.setenv("REFIMPL_DATA", "/some/data")
    code, out, _ = refimpl("info", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["packages"]["numba"]
    assert found["data_folder"] == "/some/data"
    assert Path(found["cache_folder"]).is_dir()
    assert Path(found["package_folder"]).name == "refimpl"
    _, text, _ = refimpl("info")
    assert found["cpu"]["name"] in text
    assert found["cache_folder"] in text
