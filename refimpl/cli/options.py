"""Options that several commands share; those of a configuration are generated from the declared keys."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from refimpl.cli.progress import Talk
from refimpl.errors import InputError, one_of
from refimpl.experiments.config import PRESETS, keys, preset_keys
from refimpl.files.paths import expanded
from refimpl.files.presets import Presets
from refimpl.registry import Key, written

Decorator = Callable[[Any], Any]


class Parsed(click.ParamType):
    """An option whose text is converted by `parse`; if that raises `ValueError`, `expected` was expected."""

    def __init__(self, name: str, parse: Callable[[str], Any], expected: str) -> None:
        self.name, self._parse, self._expected = name, parse, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value; a default value, which is not text, is returned unchanged."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InputError:
            raise  # it says itself what is wrong
        except ValueError:
            self.fail(f"expected {self._expected}, got {value!r}", param, ctx)


def _names(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if words in (["none"], [""]):
        return []
    if "" in words:
        raise ValueError
    return words


def _numbers(text: str) -> list[int]:
    return [] if text.strip() in ("none", "") else [int(word) for word in text.split(",")]


def _shares(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _seeds(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for word in text.split(","):
        first, *rest = map(int, word.split("-"))
        (last,) = rest or [first]
        if last < first:
            raise ValueError
        found += range(first, last + 1)
    return tuple(found)


def _model(name: str) -> str:
    """A model that is registered, or `residual`; which ones there are is looked up only when one is given."""
    from refimpl.nn.zoo import MODELS

    one_of("--model", "model", name, (*MODELS, "residual"))
    return name


NAME_LIST = Parsed("name,name|none", _names, "names with commas between them")
NUMBER_LIST = Parsed("number,number|none", _numbers, "whole numbers with commas between them")
SHARE_LIST = Parsed("share,share", _shares, "shares like 0,0.5,0.75")
SEED_LIST = Parsed("0-4|0,2,5", _seeds, "seeds like 0-4 or 0,2,5")
MODEL = Parsed("name", _model, "a model")


class OwnPath(click.Path):
    """A path in which a leading ~ is the home folder, also where no shell has replaced it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, checked."""
        return super().convert(str(expanded(value)), param, ctx)


PATH = OwnPath(path_type=Path)
FILE = OwnPath(dir_okay=False, path_type=Path)
FOLDER = OwnPath(file_okay=False, path_type=Path)


def expect_figures(path: Path | None) -> None:
    """Raise `InputError`, before any work is done, if a figure is to be drawn and matplotlib is missing."""
    if path is not None:
        from refimpl.report.canvas import require_matplotlib

        require_matplotlib()


_TYPES: Mapping[str, click.ParamType] = {
    "int": click.INT,
    "float": click.FLOAT,
    "str": click.STRING,
    "list[str]": NAME_LIST,
    "list[int]": NUMBER_LIST,
}


def config_options(only: Collection[str] = (), without: Collection[str] = ()) -> Decorator:
    """Click options for the keys of a configuration (of `only`, but not `without`); not given means None."""
    chosen = [one for one in keys().values() if one.name not in without and (not only or one.name in only)]
    return key_options(chosen, preset_keys())


def key_options(chosen: Iterable[Key], by_preset: Collection[str]) -> Decorator:
    """Click options for keys, of which presets set those named in `by_preset`; not given means None."""
    return together(*(_option(item, by_preset) for item in chosen))


def _option(item: Key, by_preset: Collection[str]) -> Decorator:
    flag = "--" + item.name.replace("_", "-")
    presets = "by preset, else " if item.name in by_preset else ""
    of = f" ({', '.join(item.of)})" if item.of else ""
    text = f"{item.help}{of}  [{presets}{written(item.default)}]"
    if item.type == "bool":
        negated = "--no-" + item.name.replace("_", "-")
        return click.option(f"{flag}/{negated}", item.name, default=None, help=text)
    choices = tuple(item.choices)
    if item.ending:  # more than the choices is admitted: `Config` checks it
        shown = f"[{'|'.join([*choices, f'FILE{item.ending}'])}]"
        return click.option(flag, item.name, metavar=shown, default=None, help=text)
    kind = click.Choice(choices) if choices else _TYPES[item.type]
    return click.option(flag, item.name, type=kind, default=None, help=text)


def _talk(*flags: str, value: Talk, text: str) -> Decorator:
    """One of the flags for `talk`; a default of its own would be the first flag's value in some Clicks."""
    return click.option(
        *flags,
        "talk",
        flag_value=value,
        type=click.UNPROCESSED,
        callback=lambda ctx, param, given: given or Talk.USUAL,
        help=text,
    )


def shipped(presets: Presets, what: str, usual: str = "") -> Decorator:
    """The option --preset, which names one of a room's presets."""
    text = f"Shipped {what} to start from.{usual}"
    return click.option("--preset", "from_preset", type=click.Choice(presets.names()), help=text)


file_option: Decorator = click.option("--config", "file", type=FILE, help="TOML file of options.")
preset_option: Decorator = shipped(PRESETS, "configuration", "  [that of the data set]")
share_option: Decorator = click.option(
    "--share", is_flag=True, help="Share the work with all processes started with --share and this --out."
)


def together(*options: Decorator) -> Decorator:
    """One decorator for several options, which help lists in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def no_talk_options(command: Any) -> Any:
    """Accept -q and -v, without effect, in a command that shows no progress: every command takes them."""
    text = "Has no effect: this command shows no progress."
    flags = (("-q", "--quiet"), ("-v", "--verbose"))
    options = (click.option(*names, is_flag=True, expose_value=False, help=text) for names in flags)
    return together(*options)(command)


_quiet = _talk("-q", "--quiet", value=Talk.QUIET, text="No progress.")
_SESSION: Mapping[str, Decorator] = {
    "threads": click.option(
        "--threads", type=click.IntRange(min=1), help="Threads; results do not depend on it.  [all cores]"
    ),
    "data_dir": click.option(
        "--data-dir", type=FOLDER, envvar="REFIMPL_DATA", help="Folder of the data sets.  [REFIMPL_DATA]"
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    "quiet": _quiet,
    "talk": together(_quiet, _talk("-v", "--verbose", value=Talk.VERBOSE, text="A line for every step.")),
}


@dataclass(frozen=True)
class Session:
    """The options that say how a command runs and prints, whatever it computes."""

    threads: int | None = None
    data_dir: Path | None = None
    as_json: bool = False
    talk: Talk = Talk.USUAL


USUAL_SESSION = Session()


def session_options(*names: str) -> Decorator:
    """The named options of `_SESSION`, of which the command gets the values as one `session`."""
    return gathered("session", Session, *(_SESSION[name] for name in names))


def gathered(argument: str, kind: type, *options: Decorator) -> Decorator:
    """Options of which the command gets the values as one `argument`, an object of the dataclass `kind`.

    Options that are not given (None) have the defaults of the dataclass.
    """

    def decorate(function: Any) -> Any:
        @wraps(function)
        def command(*args: Any, **given: Any) -> Any:
            own = {item.name: given.pop(item.name) for item in fields(kind) if item.name in given}
            made = kind(**{name: value for name, value in own.items() if value is not None})
            return function(*args, **{argument: made}, **given)

        return together(*options)(command)

    return decorate


def run_options(without: Collection[str] = ()) -> Decorator:
    """What all commands that train take: a session's options, and the configuration (not `without`)."""
    return together(session_options("threads", "data_dir", "json", "talk"), config_options(without=without))
