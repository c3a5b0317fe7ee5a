"""Forking beside threads that the child does not need."""

from __future__ import annotations

import os
import warnings


def fork() -> int:
    """`os.fork`, without the warning that newer Pythons, and JAX where it is loaded, give of threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()
