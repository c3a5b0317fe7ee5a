"""What a run's numbers and times may depend on: versions, processor, threads, commit.

Also how to start another Python with the same modules.
"""

import contextlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from refimpl._version import __version__


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def another_python(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command that runs a module in a process of its own, and its environment variables.

    All modules are found there where they are found here: a package of that name in the current folder, which
    Python would look into first, is another one.
    """
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    return [sys.executable, "-P", "-m", module, *arguments], {**os.environ, "PYTHONPATH": path}


def environment(threads: int | None = None) -> dict[str, Any]:
    """What a run's numbers and times may depend on: versions, CPU, threads, commit; nothing personal."""
    return {
        "refimpl": __version__,
        "commit": _commit(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: _version(name) for name in ("numpy", "numba", "llvmlite", "scipy", "click")},
        "platform": " ".join(
            part for part in (platform.system(), platform.machine(), *platform.libc_ver()) if part
        ),
        "cpu": _cpu(),
        "cores": cores(),
        "threads": threads,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    """Model name, and name and features as the compiler sees them (`NUMBA_CPU_*` overrides included)."""
    from llvmlite import binding as llvm  # only here: importing the package must stay cheap

    features = os.environ.get("NUMBA_CPU_FEATURES") or llvm.get_host_cpu_features().flatten()
    return {
        "model": _cpu_model(),
        "name": os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name(),
        "features": sorted(item[1:] for item in features.split(",") if item.startswith("+")),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match.group(1)
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the checkout this package runs from, `-dirty` if edited; None for an installed package."""
    here = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, check=True, timeout=10, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # not merely installed below someone's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
