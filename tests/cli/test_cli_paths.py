"""A leading ~ is the home folder in every path of every command, also where no shell has replaced it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commands import assert_one_line
from small_mnist import write_mnist

from refimpl.cli.app import COMMANDS, cli
from refimpl.cli.options import OwnPath
from refimpl.errors import InputError
from refimpl.files.paths import expanded

TINY = ("--method", "fedavg", "--nodes", "2", "--targets", "1", "--rounds", "1", "--local-steps", "1", "-q")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder beside the working folder."""
    folder = tmp_path / "at home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def parameters(command: click.Command, path: str) -> Iterator[tuple[str, click.Parameter]]:
    for parameter in command.params:
        yield f"{path} {parameter.name}", parameter
    for name, inner in getattr(command, "commands", {}).items():
        yield from parameters(inner, f"{path} {name}")


def test_every_path_of_every_command_is_of_the_kind_that_knows_the_home_folder():
    context = click.Context(cli)
    found = [pair for name in COMMANDS for pair in parameters(cli.get_command(context, name), name)]
    paths = {name: parameter for name, parameter in found if isinstance(parameter.type, click.Path)}
    assert len(paths) > 20
    assert [name for name, parameter in paths.items() if not isinstance(parameter.type, OwnPath)] == []


def test_options_and_arguments_know_the_home_folder(refimpl, home):
    (home / "my.toml").write_text("seed = 3\n")
    assert refimpl("train", *TINY, "--config", "~/my.toml", "--out", "~/run")[0] == 0
    assert (home / "run" / "meta_model.npz").is_file()
    assert refimpl("adapt", "~/run", "-q")[0] == 0


@pytest.mark.parametrize("by", ["option", "variable"])
def test_the_data_folder_knows_the_home_folder(refimpl, home, monkeypatch, by):
    write_mnist(home / "data")
    given = ("--data-dir", "~/data") if by == "option" else ()
    if by == "variable":
        monkeypatch.setenv("REFIMPL_DATA", "~/data")
    assert "there" in refimpl("data", "list", *given)[1]
    small = ("--nodes", "1", "--targets", "1", "--node-min", "6", "--node-max", "6", "--support", "2")
    assert refimpl("data", "partition", "--dataset", "mnist", *small, *given)[0] == 0


def test_a_home_folder_that_is_none_is_one_line(refimpl, tmp_path):
    err = assert_one_line(*refimpl("train", *TINY, "--out", "~nobody-here/run"))
    assert "~nobody-here/run: ~ stands for no home folder" in err
    assert list(tmp_path.iterdir()) == []


def test_other_paths_stay_as_they_are(home):
    for path in ("a/~/b", "./~b", "/a~", "a"):
        assert str(expanded(path)) == str(Path(path))
    assert expanded(Path("~/a")) == home / "a"
    with pytest.raises(InputError, match="no home folder"):
        expanded("~nobody-here")
