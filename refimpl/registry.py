"""Named choices: whatever users choose by name is declared once, in the file that defines it.

A choice is a dataclass that is registered under its name. Its fields made with `key` are its keys in a
configuration:

    @PENALTIES.register("l1")
    @dataclass(frozen=True)
    class L1:
        rho: float = key(0.01, "weight of the penalty", at_least=0.0)

The command line, TOML files and the checks of a configuration read these declarations. A key that several
choices declare has the same type and the same default in all of them. The package's own choices are found in
the modules that the registries at the end of this file name. A file of a user's that registers choices of
its own is imported by the option `refimpl --use FILE.py`, or by naming it in the environment variable
REFIMPL_USE, which worker processes inherit.
"""

from __future__ import annotations

import math
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from inspect import isclass, isfunction
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from refimpl.errors import ConfigError, InputError, cause, nearest, one_of, shown

USE = "REFIMPL_USE"
C = TypeVar("C")
KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


@dataclass(frozen=True)
class Key:
    """One key of a configuration: its type, default, help text, and the values it takes.

    type: `int`, `float`, `bool`, `str`, or a list of one of them. choices: the only names it may have, if
    there are any; ending: names with this ending are allowed as well. of: the choices that have this key,
    unless all have it. search: the range in which `tune` searches it, unless told otherwise. adapts: whether
    it matters only for the adaptation at target nodes, and not for the training before.
    """

    name: str
    type: str
    default: Any
    help: str
    choices: Iterable[str] = ()
    ending: str = ""
    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    of: tuple[str, ...] = ()
    search: tuple[float, float] | None = None
    adapts: bool = False

    @property
    def range(self) -> str:
        """The numbers it takes, in words: `positive and below 1`."""
        bounds = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "below": self.below,
        }
        words = [f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound)]
        return " and ".join("positive" if word == "above 0" else word for word in words)

    def check(self, source: str, given: object) -> Any:
        """The value in plain Python; where it does not fit, a `ConfigError` names `source`, who gave it."""
        value = plain(given)
        kind = self.type.removeprefix("list[").removesuffix("]")
        entries = [value] if kind == self.type else value
        if type(entries) is not list or not all(type(entry) in KINDS[kind] for entry in entries):
            raise ConfigError(f"{source}: {self.name} must be {self.type}, got {shown(value)}")
        for entry in entries:
            self._check_entry(source, entry)
        return value

    def _check_entry(self, source: str, value: Any) -> None:
        choices = tuple(self.choices)
        if choices and not (self.ending and str(value).lower().endswith(self.ending)):
            one_of(source, self.name, value, (*choices, *((f"FILE{self.ending}",) if self.ending else ())))
        if isinstance(value, str):
            return
        if math.isinf(value):
            raise ConfigError(f"{source}: {self.name} must be a finite number, got {value}")
        if not (self.at_least <= value <= self.at_most and self.above < value < self.below):
            raise ConfigError(f"{source}: {self.name} must be {self.range or 'a finite number'}, got {value}")


def plain(value: object) -> object:
    """NumPy's scalars, and lists, tuples and arrays of values, as Python's own; anything else as it is.

    A float32 becomes the shortest decimal number that names it: np.float32(0.1) becomes 0.1.
    """
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if type(value).__module__ != "numpy":
        return value
    import numpy as np  # only here: the command line's help does without

    if isinstance(value, np.ndarray):
        return plain(list(value) if value.ndim else value[()])
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item() if isinstance(value, (np.integer, np.bool_, np.str_)) else value


def written(value: Any, between: str = ",") -> str:
    """A value of a key as people write it: `on`, `conv1,conv2`, `none`; `between` stands between entries."""
    if isinstance(value, list):
        return between.join(map(str, value)) or "none"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def key(default: Any, help: str, *, alone: Any = None, **rules: Any) -> Any:
    """A dataclass field that is a key of configurations; `rules` are fields of `Key`.

    alone: the field's value in objects that Python code makes without it, if it is not the default.
    """
    metadata = {"key": {"default": default, "help": help, **rules}}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default if alone is None else alone, metadata=metadata)


def keys_of(declared: Any) -> dict[str, Key]:
    """The keys that a dataclass declares, by name."""
    return _keys_of(declared if isinstance(declared, type) else type(declared))


@lru_cache(maxsize=256)
def _keys_of(declared: Any) -> dict[str, Key]:
    found = {}
    for item in fields(declared):
        if "key" in item.metadata:
            written = item.type.__name__ if isinstance(item.type, type) else str(item.type)
            found[item.name] = Key(**{"name": item.name, "type": written, **item.metadata["key"]})
    return found


def check_keys(who: str, choice: Any) -> None:
    """Raise `ConfigError`, in the name of `who`, unless the keys of a choice have values that they take."""
    for name, one in keys_of(choice).items():
        one.check(who, getattr(choice, name))


class Registry:
    """The choices of one kind, by name; `home` is the module or package whose modules register them.

    hooks: attributes that a class may have besides its keys, with their values for classes that have none.
    """

    def __init__(self, kind: str, home: str, **hooks: Any) -> None:
        self.kind, self.home, self.hooks = kind, home, hooks
        self._classes: dict[str, type[Any]] = {}
        self._keys: dict[str, Key] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Decorator: the class is chosen by `name`, which becomes its attribute `name`.

        A name that another class has is an `InputError`.
        """

        def add(declared: type[C]) -> type[C]:
            known = self._classes.setdefault(name, declared)
            if known.__qualname__ != declared.__qualname__:
                raise InputError(f"{self.kind} {name!r} is registered already; choose another name")
            self._classes[name] = declared
            self._keys = {}
            for hook, usual in {**self.hooks, "name": name}.items():
                if hook == "name" or not hasattr(declared, hook):
                    setattr(declared, hook, usual)
            return declared

        return add

    def classes(self) -> dict[str, type[Any]]:
        """All classes by name: the package's own by module, then those of the user's files."""
        if not self._complete:
            self._complete = True
            home = import_module(self.home)
            for module in pkgutil.iter_modules(getattr(home, "__path__", [])):
                import_module(f"{self.home}.{module.name}")
            self._classes = dict(sorted(self._classes.items(), key=_place))
        import_user_files()
        return self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self.classes())

    def __len__(self) -> int:
        return len(self.classes())

    def __contains__(self, name: object) -> bool:
        return name in self.classes()

    def __getitem__(self, name: str) -> type[Any]:
        one_of("config", self.kind, name, tuple(self))
        return self.classes()[name]

    def keys(self) -> dict[str, Key]:
        """The keys of all choices, by name; `InputError` where two of them declare one key differently."""
        classes = self.classes()
        if self._keys:
            return self._keys
        found: dict[str, Key] = {}
        owners: dict[str, list[str]] = {}
        for choice, declared in classes.items():
            for name, one in keys_of(declared).items():
                agree(f"{self.kind} {choice}", one, found.setdefault(name, one))
                owners.setdefault(name, []).append(choice)
        self._keys = {
            name: replace(one, of=tuple(owners[name]) if len(owners[name]) < len(classes) else ())
            for name, one in found.items()
        }
        return self._keys

    def make(self, name: str, values: Mapping[str, Any], **context: Any) -> Any:
        """The choice of that name: keys from `values` or with their defaults, other fields from `context`."""
        declared = self[name]
        wanted = {item.name for item in fields(declared) if item.init}
        own = {name: values.get(name, one.default) for name, one in keys_of(declared).items()}
        return declared(**own, **{key: value for key, value in context.items() if key in wanted})


def _place(entry: tuple[str, type[Any]]) -> tuple[bool, str]:
    """Sorts choices by the names of their modules, so that their order does not depend on imports."""
    module = entry[1].__module__
    return not module.startswith("refimpl."), module


def agree(who: str, mine: Key, known: Key) -> None:
    """Raise `InputError` unless both declarations of a key give it one type and one default."""
    if (mine.type, mine.default) != (known.type, known.default):
        raise InputError(
            f"{who}: the key {mine.name} is {known.type} with the default {known.default!r} already, got "
            f"{mine.type} with {mine.default!r}; declare it equally, or give it another name"
        )


def use(files: Iterable[str]) -> None:
    """Name further files of a user's in REFIMPL_USE, by their paths from the root."""
    named = [os.environ.get(USE, ""), *(str(Path(file).expanduser().absolute()) for file in files)]
    os.environ[USE] = os.pathsep.join(filter(None, named))


def import_user_files() -> None:
    """Import the files named in REFIMPL_USE, once each, so that what they register is known."""
    _import_files(os.environ.get(USE, ""))


@lru_cache(maxsize=1)
def _import_files(entries: str) -> None:
    for entry in filter(None, entries.split(os.pathsep)):
        path = Path(entry).expanduser().resolve()
        _module_of(path, "--use", "registers choices")


def own_object(named: str, who: str, what: str) -> Any:
    """The object that `FILE.py:NAME` names: what the file defines under that name.

    A function or a class stands for what it returns when it is called without arguments. Raises
    `ConfigError`, which says that `who` expected `what`, where there is no such file or name.
    """
    file, _, name = named.rpartition(":")
    if not file.endswith(".py") or not name:
        raise ConfigError(f"{who}: expected {what} as FILE.py:NAME, got {shown(named)}")
    path = Path(file).expanduser().resolve()
    defined = vars(_module_of(path, who, f"defines {what}"))
    if name not in defined:
        near = nearest(name, defined)
        raise ConfigError(f"{who}: {path} defines no {name}; {near}name {what} that the file defines")
    found = defined[name]
    try:
        return found() if isfunction(found) or isclass(found) else found
    except Exception as error:
        raise ConfigError(f"{who}: {name}() of {path} fails: {cause(error)}; mend the file") from error


def _module_of(path: Path, who: str, does: str) -> ModuleType:
    """The module of a Python file of a user's, which is imported once."""
    name = f"refimpl_use_{path.stem}_{sha256(bytes(path)).hexdigest()[:16]}"  # two files may share a stem
    if name in sys.modules:
        return sys.modules[name]
    found = spec_from_file_location(name, path)
    if found is None or found.loader is None or not path.is_file():
        raise ConfigError(f"{who}: expected a Python file that {does}, got {path}")
    sys.modules[name] = module = module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{who}: {path} cannot be imported: {cause(error)}; mend the file") from error
    return module


def drawn(result: Any, path: Path) -> Path:
    """Draw the figure of a result into a file, and return its path.

    Figures are drawn in `report`, which needs matplotlib and may import all other rooms. So it is imported by
    its name, and only when a figure is wanted.
    """
    return Path(import_module("refimpl.report.results").draw(result, path))


METHODS = Registry(
    "method",
    "refimpl.federated.methods",
    gated=False,  # whether its network has gates, which are trained
    trains_as="",  # the method whose meta-training it shares; by default it has its own
    prunes="",  # `channels` or `weights` if it prunes the meta-model at a target node
    beside="",  # the method that `adapt` shows beside it, from the same meta-model
    personalise=None,  # its work at a target node, where that is not the usual adaptation
    check=None,  # raises `ConfigError` where its keys do not go together
    note="",  # what a reader of its results must know
    labels={},  # columns of its table that mean something else, by their usual names
)
MODELS = Registry("model", "refimpl.nn.zoo")
STARTS = Registry("gate start", "refimpl.nn.starts")
PENALTIES = Registry("penalty", "refimpl.optim.prox")
SCHEDULES = Registry("schedule", "refimpl.optim.accel")
DATASETS = Registry("dataset", "refimpl.data.sets")
PARTITIONS = Registry("partition", "refimpl.data.deal")
FINDERS = Registry("finder", "refimpl.fewshot.tickets.finders")
SCHEMES = Registry("scheme", "refimpl.cooperative.schemes")
