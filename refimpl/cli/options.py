"""Options that several commands share; those of a configuration are generated from the declared keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click

from refimpl.cli.progress import Talk
from refimpl.errors import one_of
from refimpl.experiments.config import keys, preset_keys, preset_names
from refimpl.files.paths import expanded
from refimpl.registry import Key

Decorator = Callable[[Any], Any]


class Names(click.ParamType):
    """A list of names: `conv5,conv6`, or `none`."""

    name = "name,name|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """The list; spaces around names are ignored."""
        if isinstance(value, list):
            return value
        words = [word.strip() for word in value.split(",")]
        if words in (["none"], [""]):
            return []
        if "" in words:
            self.fail(f"expected names with commas between them, got {value!r}", param, ctx)
        return words


class Numbers(click.ParamType):
    """A list of whole numbers: `200,150,150`, or `none`."""

    name = "number,number|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """The list; spaces around numbers are ignored."""
        if isinstance(value, list):
            return value
        if value.strip() in ("none", ""):
            return []
        try:
            return [int(word) for word in value.split(",")]
        except ValueError:
            self.fail(f"expected whole numbers with commas between them, got {value!r}", param, ctx)


class OwnPath(click.Path):
    """A path in which a leading ~ is the home folder, also where no shell has replaced it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, checked."""
        return super().convert(str(expanded(value)), param, ctx)


class ModelName(click.ParamType):
    """A model that is registered, or `residual`; which ones there are is looked up only when one is given."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, checked."""
        from refimpl.nn.zoo import checked_names

        one_of("--model", "model", value, checked_names())
        return str(value)


PATH = OwnPath(path_type=Path)
FILE = OwnPath(dir_okay=False, path_type=Path)
FOLDER = OwnPath(file_okay=False, path_type=Path)


class Seeds(click.ParamType):
    """Seeds: `0-4`, `0,2,5`, or both."""

    name = "0-4|0,2,5"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """All of them, in the order given."""
        if isinstance(value, tuple):
            return value
        try:
            ends = [[int(end) for end in word.split("-")] for word in value.split(",")]
            return tuple(seed for first, *last in ends for seed in range(first, _last(first, last) + 1))
        except ValueError:
            self.fail(f"expected seeds like 0-4 or 0,2,5, got {value!r}", param, ctx)


def _last(first: int, rest: list[int]) -> int:
    """The last seed of a range; `ValueError` if it is none."""
    (last,) = rest or [first]
    if last < first:
        raise ValueError
    return last


_TYPES: Mapping[str, click.ParamType] = {
    "int": click.INT,
    "float": click.FLOAT,
    "str": click.STRING,
    "list[str]": Names(),
    "list[int]": Numbers(),
}


def config_options(only: Collection[str] = (), without: Collection[str] = ()) -> Decorator:
    """Click options for the keys of a configuration (of `only`, but not `without`); not given means None."""

    def decorate(command: Any) -> Any:
        for item in reversed(keys().values()):
            if item.name not in without and (not only or item.name in only):
                command = _option(item)(command)
        return command

    return decorate


def _option(item: Key) -> Decorator:
    flag = "--" + item.name.replace("_", "-")
    presets = "by preset, else " if item.name in preset_keys() else ""
    of = f" ({', '.join(item.of)})" if item.of else ""
    text = f"{item.help}{of}  [{presets}{_shown(item.default)}]"
    if item.type == "bool":
        negated = "--no-" + item.name.replace("_", "-")
        return click.option(f"{flag}/{negated}", item.name, default=None, help=text)
    choices = tuple(item.choices)
    if item.ending:  # more than the choices is admitted: `Config` checks it
        shown = f"[{'|'.join([*choices, f'FILE{item.ending}'])}]"
        return click.option(flag, item.name, metavar=shown, default=None, help=text)
    kind = click.Choice(choices) if choices else _TYPES[item.type]
    return click.option(flag, item.name, type=kind, default=None, help=text)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _talk(*flags: str, value: Talk, text: str) -> Decorator:
    """One of the flags for `talk`; a default of its own would be the first flag's value in some Clicks."""
    return click.option(
        *flags, "talk", flag_value=value, type=click.UNPROCESSED, callback=_or_usual, help=text
    )


def _or_usual(ctx: click.Context, param: click.Parameter, value: Talk | None) -> Talk:
    return value or Talk.USUAL


file_option: Decorator = click.option("--config", "file", type=FILE, help="TOML file of options.")
preset_option: Decorator = click.option(
    "--preset",
    "from_preset",
    type=click.Choice(preset_names()),
    help="Shipped configuration to start from.  [that of the data set]",
)
json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option: Decorator = _talk("-q", "--quiet", value=Talk.QUIET, text="No progress.")
verbose_option: Decorator = _talk("-v", "--verbose", value=Talk.VERBOSE, text="A line for every step.")


def talk_options(command: Any) -> Any:
    """How much a command that lasts says as it goes, as `talk`."""
    return quiet_option(verbose_option(command))


threads_option: Decorator = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads; results do not depend on it.  [all cores]"
)
data_dir_option: Decorator = click.option(
    "--data-dir",
    type=FOLDER,
    envvar="REFIMPL_DATA",
    help="Folder of the data sets.  [REFIMPL_DATA]",
)


def run_options(without: Collection[str] = ()) -> Decorator:
    """What all commands that train take: threads, data, output, and the configuration (not `without`)."""
    shared = (threads_option, data_dir_option, json_option, talk_options, config_options(without=without))

    def decorate(command: Any) -> Any:
        for option in reversed(shared):
            command = option(command)
        return command

    return decorate
