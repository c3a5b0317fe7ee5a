"""Read pickles as data, by Python's own unpickler restricted to the opcodes that CIFAR's files use.

A pickle is a program; `pickle.load` runs it, which is why a downloaded one may do anything. Here the global
names that a pickle mentions are never looked up: the five that spell out a NumPy array are recognised by name
and turned into an array of bytes by our own code, any other name is an error.

The base class is Python's unpickler written in Python. `pickle.Unpickler`, which is written in C, would not
do, because names are not the only danger. It allocates as many places as a memo index claims (9 bytes took
2 GiB), it hashes whatever a pickle uses as a dictionary key (a tuple nested three million deep crashed the
process, thirty tuples that each hold the one before twice took a minute), and it offers no way to refuse
either.
"""

import io
import math
import pickle
import pickletools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refimpl.errors import DataError
from refimpl.files.sniff import looks_like

Value = Any  # dict, list, tuple, str, bytes, int, bool, None or a uint8 array

_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_NDARRAY, _DTYPE, _ENCODE = "numpy.ndarray", "numpy.dtype", "_codecs.encode"
_ALLOWED = (*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE)
_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
_ADMITTED_NAMES = (
    "PROTO", "BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "MARK", "EMPTY_DICT", "EMPTY_LIST",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "GLOBAL", "STACK_GLOBAL",
    "STOP",
)  # fmt: skip
_ADMITTED = tuple(ord(opcode.code) for opcode in pickletools.opcodes if opcode.name in _ADMITTED_NAMES)


@dataclass(frozen=True)
class _Global:
    """A name the pickle mentions: only ever compared, never imported."""

    name: str


@dataclass(eq=False)
class _Record:
    """What the pickle says was made by `_reconstruct` or `dtype`, with the state it then sets."""

    name: str
    args: tuple[Value, ...]
    state: Value = None


_DAMAGE = (  # what the unpickler raises
    pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError
)  # fmt: skip


class _Malformed(Exception):
    """What is wrong with the pickle, without the file's name."""


def read_pickle(data: bytes, who: str) -> Value:
    """The value a pickle describes, made of dict, list, tuple, str, bytes, int, bool, None and uint8 arrays.

    Python-2 strings come back as bytes. Raises `DataError` starting with `who` for a damaged pickle and for
    one that mentions anything else; nothing in the file is ever executed.
    """
    try:
        value = _Unpickler(data).load()
        if isinstance(value, dict):
            return {key: _finished(item) for key, item in value.items()}
        return _finished(value)
    except _Malformed as error:
        raise DataError(f"{who}: {error}{looks_like(data)}") from None
    except EOFError:
        raise DataError(f"{who}: truncated pickle; fetch the file again{looks_like(data)}") from None
    except _DAMAGE as error:
        raise DataError(f"{who}: damaged pickle ({type(error).__name__}); fetch the file again") from error


class _File(io.BytesIO):
    """The bytes of a pickle; an argument that is cut off is a `ValueError`."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As many bytes as asked for, or none instead of one at the end."""
        found = super().read(size)
        if size is not None and 1 < size != len(found):
            raise ValueError("cut off")
        return found


class _Unpickler(pickle._Unpickler):
    """Opcodes change a stack; those that would call or look up something are replaced or refused."""

    stack: list[Value]

    def __init__(self, data: bytes) -> None:
        self._file = _File(data)
        super().__init__(self._file, encoding="bytes")

    def find_class(self, module: str, name: str) -> _Global:
        """The name itself in place of what it names."""
        wanted = f"{module}.{name}"
        if wanted not in _ALLOWED:
            raise _Malformed(
                f"refused: the pickle asks for {wanted[:80]!a}, which no data file needs; it was not "
                "executed; do not use this file"
            )
        return _Global(wanted)

    def _refuse(self) -> None:
        position = self._file.tell() - 1
        code = self._file.getvalue()[position : position + 1]
        name = f"operation {_NAMES[code]}" if code in _NAMES else f"byte 0x{code.hex()}"
        raise _Malformed(f"not a data pickle: {name} at position {position} is not admitted")

    def _set_items(self, items: list[Value]) -> None:
        target = _expect(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only text as keys: hashing a hostile, deeply nested tuple overflows the C stack.
            target[key if isinstance(key, str) else _expect(key, bytes).decode("latin-1")] = value

    def _reduce(self) -> None:
        args = _expect(self.stack.pop(), tuple)
        name = _expect(self.stack.pop(), _Global).name
        if name == _NDARRAY:
            raise _Malformed(f"damaged pickle: {name} is called")
        self.stack.append(_encoded(*args) if name == _ENCODE else _Record(name, args))

    def _build(self) -> None:
        state = self.stack.pop()
        _expect(self.stack[-1], _Record).state = state

    dispatch: ClassVar[dict[int, Any]] = {
        **dict.fromkeys(range(256), _refuse),
        **{code: pickle._Unpickler.dispatch[code] for code in _ADMITTED},
        pickle.FRAME[0]: lambda self: self.read(8),  # a frame only says how much may be read at once
        pickle.SETITEM[0]: lambda self: self._set_items([self.stack.pop(), self.stack.pop()][::-1]),
        pickle.SETITEMS[0]: lambda self: self._set_items(self.pop_mark()),
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
    }


def _encoded(text: Value, codec: Value) -> bytes:
    if codec != "latin1":
        raise _Malformed(f"damaged pickle: unexpected text encoding {_shown(codec)}")
    return _expect(text, str).encode("latin-1")


def _expect(value: Value, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _Malformed(f"damaged pickle: a {kind.__name__.strip('_')} expected, got {type(value).__name__}")
    return value


def _finished(value: Value) -> Value:
    """`value`, or the uint8 array of a record with state (version, shape, dtype, Fortran order, bytes)."""
    if not isinstance(value, _Record):
        return value
    if value.name not in _RECONSTRUCT or value.args[0] != _Global(_NDARRAY):
        raise _Malformed("damaged pickle: an object that is not an array")
    _, shape, dtype, fortran, content = _expect(value.state, tuple)
    kind = dtype.args[0] if isinstance(dtype, _Record) and dtype.name == _DTYPE else None
    if kind not in ("u1", b"u1"):
        raise _Malformed(f"expected an array of unsigned bytes ('u1'), got {_shown(kind)}")
    sizes = [_expect(size, int) for size in _expect(shape, tuple)]
    content = _expect(content, bytes)
    if fortran is not False or min(sizes, default=0) < 0 or math.prod(sizes[:32]) != len(content):
        raise _Malformed(
            f"expected a C-ordered array, got {len(content)} bytes for shape {ascii(tuple(sizes[:9]))[:60]}"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(sizes)


def _shown(value: Value) -> str:
    return ascii(value)[:40] if isinstance(value, (str, bytes)) else type(value).__name__
