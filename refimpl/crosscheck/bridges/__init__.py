"""Bridges to other frameworks: a second implementation in PyTorch, and export to ONNX.

Each needs an extra (`torch`, `onnx`); nothing else in the package imports this room.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from refimpl.errors import RefimplError


def leave_with(name: str, main: Callable[[], int]) -> NoReturn:
    """Run a script of this room and end the process; a user's mistake prints one line."""
    try:
        sys.exit(main())
    except RefimplError as problem:
        sys.exit(f"{name}: {problem}")
