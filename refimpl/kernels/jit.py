"""`kernel`: how every function of this room is compiled, and where its machine code is kept.

Numba's on-disk cache does not notice an edit in a function imported from another file. The cache folder
is therefore named by a fingerprint of this whole room, so that any change of any kernel starts from a
fresh folder. A problem with that folder costs time and one warning, never a result: code that cannot be
read is compiled again, and code that cannot be written is compiled again at the next start.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import logging
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numba
import numba.extending
from numba import types
from numba.core import caching, serialize, sigutils
from numba.core import config as numba_config
from numba.core.registry import CPUDispatcher

from refimpl._version import __version__
from refimpl.errors import ConfigError, InputError, one_of
from refimpl.kernels import linking

settings: Any = numba_config  # type checkers do not know its entries, which are made at run time
intrinsic: Any = numba.extending.intrinsic  # callers leave out the first of its declared arguments
shared: Any = numba.extending.register_jitable  # small functions for Python and for compiled code


# --- which kernels are used


def chosen_kernels() -> str:
    """`tile` (fast) or `plain` (readable), from the environment variable REFIMPL_KERNELS.

    With Numba's compiler switched off only the plain kernels can run. Raises ConfigError for other names.
    """
    name = os.environ.get("REFIMPL_KERNELS", "tile")
    try:
        one_of("REFIMPL_KERNELS", "kernels", name, ("tile", "plain"))
    except InputError as error:
        raise ConfigError(str(error)) from None
    return "plain" if settings.DISABLE_JIT else name


USE_TILE = chosen_kernels() == "tile"


# --- where it is kept


def _user_cache() -> Path:
    """The user's cache folder on this platform. Raises `RuntimeError` for a user without a home."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _temporary() -> Path:
    """A temporary folder that belongs to this user alone. Raises `OSError` if another user has made it."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # not by name: containers run users without one
    folder = Path(tempfile.gettempdir()) / f"refimpl-{user}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.lstat().st_uid != user:
        raise PermissionError(f"{folder} belongs to another user")
    return folder


def _candidates() -> Iterator[Path]:
    """Folders in which compiled code may be kept, the best first; each is looked up when it is needed."""
    if settings.CACHE_DIR:
        yield Path(settings.CACHE_DIR)
    with suppress(RuntimeError):
        yield _user_cache() / "refimpl"
    with suppress(OSError):
        yield _temporary()
    yield Path(__file__).parent / "__pycache__"


def _writable(folder: Path) -> bool:
    """Make the folder if it does not exist, and say whether files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """The folder for compiled kernels, below `NUMBA_CACHE_DIR` or the user's cache.

    If that cannot be written (a read-only home), the temporary folder takes its place. If no folder can be
    written, this is the first choice, and no code will be kept.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    fingerprint = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folders = (place / f"{__version__}-{fingerprint}" for place in _candidates())
    first = next(folders)
    if _writable(first):
        return first
    return next(filter(_writable, folders), first)


def keeps_code() -> bool:
    """Whether compiled code can be kept."""
    return _writable(cache_folder())


# --- how it is kept


class _Locator(caching.UserProvidedCacheLocator):
    """Tells Numba to keep a function's files in our folder, whether or not that can be written."""

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        """A locator for any function: none is refused."""
        return cls(py_func, py_file)

    def get_cache_path(self) -> str:
        """The folder for the functions of one source file."""
        return str(cache_folder() / self.get_suitable_cache_subpath(self._py_file))


class _SealedCode(caching.CompileResultCacheImpl):
    """Compiled code as bytes with their checksum: code that has changed on the disk is never run."""

    _locator_classes = (_Locator,)

    def reduce(self, cres: Any) -> tuple[bytes, bytes]:
        """The checksum and the bytes that are written to the disk."""
        content = serialize.dumps((linking.places_used(cres.library), super().reduce(cres)))
        return hashlib.sha256(content).digest(), content

    def rebuild(self, target_context: Any, payload: tuple[bytes, bytes]) -> Any:
        """The compiled code. Raises `ValueError` if the bytes have changed since they were written."""
        checksum, content = payload
        if hashlib.sha256(content).digest() != checksum:
            raise ValueError("the bytes have changed since they were written")
        used, compiled = pickle.loads(content)
        for module, name, argument_types in used:
            getattr(importlib.import_module(module), name).place(argument_types)
        return super().rebuild(target_context, compiled)


class _Cache(caching.FunctionCache):
    """Numba's cache of a function, which warns of files it cannot read or write instead of raising."""

    _impl_class = _SealedCode

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code kept for these types; None if there is none that can be used."""
        try:
            found = super().load_overload(sig, target_context)
            if found is not None and found.signature.args != tuple(sigutils.normalize_signature(sig)[0]):
                raise ValueError("code for other types stands in its place")
            return found
        except Exception as error:  # damaged pickles raise anything
            _tell("cannot be used", error, "it is compiled again, once")
        with suppress(OSError):
            self.flush()  # a damaged index would stop the new code from being kept
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the code to the disk if that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a damaged index that could not be flushed is read here, too
            remedy = "set NUMBA_CACHE_DIR to a folder with room"
            _tell("cannot be kept", error, f"the next start compiles it again; {remedy}")


def kept_types(compiled: Any) -> list[tuple[Any, ...]]:
    """The types of arguments for which code of this kernel for this processor is on the disk."""
    processor = compiled.targetctx.codegen().magic_tuple()
    try:
        index = compiled._cache._cache_file._load_index()
        return [types for types, made_for, _ in index if made_for == processor]
    except Exception:  # damaged pickles raise anything; loading the code will warn
        return []


def _tell(trouble: str, error: Exception, outcome: str) -> None:
    """Warn in one line what is wrong with the files and what follows from it."""
    why = (error.strerror or "unknown").lower() if isinstance(error, OSError) else "its files are damaged"
    _log(f"compiled code {trouble} in {cache_folder()} ({why}); {outcome}")


@cache  # each line is logged once
def _log(line: str) -> None:
    """Log a warning. Worker processes stay silent: their parent has met the same trouble."""
    if parent_process() is None:
        logging.getLogger("refimpl").warning("refimpl: %s", line)


# --- how it is compiled


def inlined(function: Callable[..., Any]) -> Any:
    """A part of a kernel that is compiled only inside its callers; its arguments may be functions.

    A kernel of its own would be optimised twice: once by itself and, with all it calls, again in its caller.
    """
    return numba.njit(inline="always", nogil=True, error_model="numpy")(function)


OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy"}


class _Kernel(CPUDispatcher):
    """Numba's compiled function, with our cache, and compiled without pauses for Python's garbage.

    Other kernels do not call its machine code: they inline a copy, `part`, which is compiled only in them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function, targetoptions=dict(OPTIONS))
        self._cache = _Cache(function)
        options = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        self.part = CPUDispatcher(function, {}, options, linking.PartCompiler)
        self._seen_by_callers = self.part._numba_type_

    @property
    def _numba_type_(self) -> Any:
        """The type that compiled callers see."""
        return self._seen_by_callers

    def compile(self, sig: Any) -> Any:
        """Compile for a list of types, or load from the disk what was compiled for it."""
        with _no_collection():
            return super().compile(sig)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause Python's garbage collector: it takes a tenth of a compilation to visit what that makes."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` on first call: GIL released, cached on disk, IEEE arithmetic as written.

    `fastmath` stays off: it would re-associate sums and delete NaN checks. Division by zero follows
    NumPy (no Python exception inside loops, which would keep them from being vectorised).
    """
    return function if settings.DISABLE_JIT else _Kernel(function)


def large_kernel(function: Callable[..., Any]) -> Any:
    """A kernel that its compiled callers reach through its address: they are compiled without it.

    Numba optimises a kernel again in each kernel that calls it. For large kernels this doubled the time of
    compilation, and a call that is not inlined costs them nothing that can be measured. The first call in
    the process compiles the kernel, so that a program whose operations do not need it never does.

    Callers are compiled before the kernel is: what it returns is a float if it is annotated so, or nothing.
    """
    return function if settings.DISABLE_JIT else _LargeKernel(function)


class _LargeKernel(_Kernel):
    """A kernel whose compiled callers see only its address."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        returns_float = function.__annotations__.get("return") in (float, "float")
        self.returns = types.float64 if returns_float else types.void
        self._seen_by_callers = linking.called_by_address(self)

    def place(self, argument_types: tuple[Any, ...]) -> str:
        """Make the place that holds the address of the code for these types; returns its name."""
        return linking.place(self, argument_types)


# --- what LLVM is told


@intrinsic
def optimise_for_size(typingctx):
    """Ask LLVM to keep the enclosing function small, if it runs once per call and, say, fills tables.

    Otherwise it unrolls and vectorises every loop over a handful of entries, which makes compilation slow.
    """

    def codegen(context, builder, signature, args):
        builder.function.attributes.add("optsize")
        builder.function.attributes.add("minsize")
        return context.get_dummy_value()

    return types.void(), codegen
