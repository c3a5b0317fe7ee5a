"""`kernel`: how every function of this room is compiled, and where its machine code is kept.

Numba's on-disk cache does not notice an edit in a function imported from another file
(architecture.md §5). The cache folder is therefore named by a fingerprint of this whole room, so that
any change of any kernel starts from a fresh folder.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numba.extending
from numba import types
from numba.core import config as numba_config

from refimpl._version import __version__

settings: Any = numba_config  # its entries are made at run time: unknown to type checkers
intrinsic: Any = numba.extending.intrinsic  # called without the first of its declared arguments
shared: Any = numba.extending.register_jitable  # small functions for Python and for compiled code


def _user_cache() -> Path:
    """The user's cache folder, by the platform's convention."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Where compiled kernels are kept: a folder of their own below `NUMBA_CACHE_DIR` or the user's cache.

    A cache folder that cannot be written (a read-only home) falls back to the temporary folder.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    fingerprint = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    name = f"{__version__}-{fingerprint}"
    chosen = [Path(settings.CACHE_DIR)] if settings.CACHE_DIR else []
    fallbacks = [_user_cache() / "refimpl", Path(tempfile.gettempdir()) / f"refimpl-{getpass.getuser()}"]
    for base in chosen + fallbacks:
        folder = base / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="refimpl-"))


def inlined(function: Callable[..., Any]) -> Any:
    """A part of one kernel, written apart for the reader: it is compiled inside its caller only.

    As a kernel of its own it would be optimised once by itself and, with all it calls, again in its caller.
    """
    return numba.njit(inline="always", nogil=True, error_model="numpy")(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` on first call: GIL released, cached on disk, IEEE arithmetic as written.

    `fastmath` stays off: it would re-associate sums and delete NaN checks. Division by zero follows
    NumPy (no Python exception inside loops, which would keep them from being vectorised).
    """
    outside = settings.CACHE_DIR
    settings.CACHE_DIR = str(cache_folder())  # ours alone: other users of Numba keep theirs
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    finally:
        settings.CACHE_DIR = outside


@intrinsic
def brief(typingctx):
    """Ask LLVM to keep the enclosing function small: for what runs once per call, such as filling tables.

    Otherwise it unrolls and vectorises every loop over a handful of entries, which makes compilation slow.
    """

    def codegen(context, builder, signature, args):
        builder.function.attributes.add("optsize")
        builder.function.attributes.add("minsize")
        return context.get_dummy_value()

    return types.void(), codegen
