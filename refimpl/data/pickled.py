"""Pickles read as data: a small interpreter of the opcodes CIFAR's files use, which calls nothing.

A pickle is a program; `pickle.load` runs it, which is why a downloaded one may do anything. Here
the global names a pickle mentions are never looked up: the five that spell out a NumPy array are
recognised by name and turned into an array of bytes by our own code, any other name is an error.
Python's own table of opcodes (`pickletools`) does the parsing.

`pickle.Unpickler` with a `find_class` that admits these names only is shorter and faster, but not safe:
names are not the only danger. It allocates as many places as a memo index claims (9 bytes took 2 GiB), it
hashes whatever a pickle uses as a dictionary key (a tuple nested three million deep crashed the process,
thirty tuples that each hold the one before twice took a minute), and it offers no way to refuse either.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refimpl.errors import DataError
from refimpl.files.sniff import looks_like

Value = Any  # dict, list, tuple, str, bytes, int, bool, None or a uint8 array

_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_NDARRAY, _DTYPE, _ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
_ALLOWED = (*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE)
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_MARK = object()


@dataclass(frozen=True)
class _Global:
    """A name the pickle mentions: only ever compared, never imported."""

    name: str


@dataclass(eq=False)
class _Record:
    """What the pickle says was made by `_reconstruct` or `dtype`, with the state it then sets."""

    kind: str
    args: tuple[Value, ...]
    state: Value = None


class _Malformed(Exception):
    """What is wrong with the pickle, without the file's name."""


def read_pickle(data: bytes, who: str) -> Value:
    """The value a pickle describes, made of dict, list, tuple, str, bytes, int, bool, None and uint8 arrays.

    Python-2 strings come back as bytes. Raises `DataError` starting with `who` for a damaged pickle and for
    one that mentions anything else; nothing in the file is ever executed.
    """
    try:
        return _finished(_Machine().run(data))
    except _Malformed as error:
        raise DataError(f"{who}: {error}{looks_like(data)}") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(f"{who}: damaged pickle ({type(error).__name__}); fetch the file again") from error


class _Machine:
    """Stack, memo, and one method per group of opcodes."""

    def __init__(self) -> None:
        self.stack: list[Value] = []
        self.memo: dict[int, Value] = {}

    def run(self, data: bytes) -> Value:
        file = io.BytesIO(data)
        while code := file.read(1):
            opcode = _OPCODES.get(code.decode("latin-1"))
            if opcode is None or (opcode.name not in _ACTIONS and opcode.name != "STOP"):
                name = f"byte 0x{code.hex()}" if opcode is None else f"operation {opcode.name}"
                raise _Malformed(f"not a data pickle: {name} at position {file.tell() - 1} is not admitted")
            if opcode.name == "STOP":
                return self.stack.pop()
            _ACTIONS[opcode.name](self, _argument(opcode, file))
        raise _Malformed("truncated pickle; fetch the file again")

    def push(self, value: Value) -> None:
        self.stack.append(value)

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def since_mark(self) -> list[Value]:
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise IndexError("no mark")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def tuple_of(self, count: int | None) -> None:
        items = self.since_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        self.push(tuple(items))

    def append(self, items: list[Value]) -> None:
        _expect(self.stack[-1], list).extend(items)

    def set_items(self, items: list[Value]) -> None:
        target = _expect(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only text as keys: hashing a hostile, deeply nested tuple overflows the C stack.
            target[key if isinstance(key, str) else _expect(key, bytes).decode("latin-1")] = value

    def mention(self, name: str) -> None:
        if name not in _ALLOWED:
            raise _Malformed(
                f"refused: the pickle asks for {name[:80].replace(' ', '.')!a}, which no data file "
                "needs; it was not executed; do not use this file"
            )
        self.push(_Global(name))

    def mention_from_stack(self, _: None) -> None:
        name, module = _expect(self.stack.pop(), str), _expect(self.stack.pop(), str)
        self.mention(f"{module} {name}")

    def reduce(self, _: None) -> None:
        args = _expect(self.stack.pop(), tuple)
        name = _expect(self.stack.pop(), _Global).name
        if name == _ENCODE:
            text, codec = args
            if codec != "latin1":
                raise _Malformed(f"damaged pickle: unexpected text encoding {ascii(codec)[:40]}")
            self.push(_expect(text, str).encode("latin-1"))
        elif name == _DTYPE:
            self.push(_Record("dtype", args))
        elif name in _RECONSTRUCT:
            self.push(_Record("array", args))
        else:
            raise _Malformed(f"damaged pickle: {name.replace(' ', '.')} is called")

    def build(self, _: None) -> None:
        state = self.stack.pop()
        _expect(self.stack[-1], _Record).state = state


def _argument(opcode: pickletools.OpcodeInfo, file: io.BytesIO) -> Value:
    if opcode.name == "GLOBAL":  # pickletools' own reader warns about backslashes in the two lines
        module, name = file.readline(), file.readline()
        return f"{module.decode('ascii').rstrip()} {name.decode('ascii').rstrip()}"
    return None if opcode.arg is None else opcode.arg.reader(file)


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, a: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), lambda m, a: m.push(a.encode("latin-1"))),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "NONE": lambda m, a: m.push(None),
    "NEWTRUE": lambda m, a: m.push(True),
    "NEWFALSE": lambda m, a: m.push(False),
    "MARK": lambda m, a: m.push(_MARK),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "TUPLE": _Machine.tuple_of,
    "TUPLE1": lambda m, a: m.tuple_of(1),
    "TUPLE2": lambda m, a: m.tuple_of(2),
    "TUPLE3": lambda m, a: m.tuple_of(3),
    "APPEND": lambda m, a: m.append([m.stack.pop()]),
    "APPENDS": lambda m, a: m.append(m.since_mark()),
    "SETITEM": lambda m, a: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, a: m.set_items(m.since_mark()),
    "GLOBAL": _Machine.mention,
    "STACK_GLOBAL": _Machine.mention_from_stack,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}


def _expect(value: Value, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _Malformed(f"damaged pickle: a {kind.__name__.strip('_')} expected, got {type(value).__name__}")
    return value


def _finished(value: Value) -> Value:
    """`value` with array records in it, or one dict level down, replaced by arrays."""
    if isinstance(value, dict):
        return {key: _finished_item(item) for key, item in value.items()}
    return _finished_item(value)


def _finished_item(value: Value) -> Value:
    return _array(value) if isinstance(value, _Record) else value


def _array(record: _Record) -> NDArray[np.uint8]:
    """The uint8 array of a record with state (version, shape, dtype, Fortran order, bytes)."""
    if record.kind != "array" or not isinstance(record.args[0], _Global) or record.args[0].name != _NDARRAY:
        raise _Malformed("damaged pickle: an object that is not an array")
    _, shape, dtype, fortran, content = _expect(record.state, tuple)
    if not isinstance(dtype, _Record) or dtype.kind != "dtype" or dtype.args[0] not in ("u1", b"u1"):
        name = dtype.args[0] if isinstance(dtype, _Record) and dtype.args else None
        raise _Malformed(f"expected an array of unsigned bytes ('u1'), got {ascii(name)[:40]}")
    sizes = [_expect(size, int) for size in _expect(shape, tuple)]
    content = _expect(content, bytes)
    if fortran is not False or min(sizes, default=0) < 0 or _product(sizes) != len(content):
        raise _Malformed(
            f"expected a C-ordered array, got {len(content)} bytes for shape {ascii(tuple(sizes))[:60]}"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(sizes)


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes[:32]:
        total *= size
    return total
