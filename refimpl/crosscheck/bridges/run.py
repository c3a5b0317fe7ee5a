"""Compute a golden file with PyTorch, in the form that `refimpl golden check` reads.

python -m refimpl.crosscheck.bridges.run F.npz --out THEIRS.npz
refimpl golden check F.npz THEIRS.npz
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from refimpl.crosscheck.golden.file import read_golden
from refimpl.errors import InputError, RefimplError
from refimpl.files.paths import expanded
from refimpl.files.storage import check_new, npz_bytes, write_whole


def outputs_of(golden: Path) -> bytes:
    """An .npz file with PyTorch's arrays `<case>/<output>` for every case of the golden file."""
    from refimpl.crosscheck.bridges.torch.run import run, single_threaded

    single_threaded()
    return npz_bytes(
        {
            f"{case.name}/{name}": value
            for case in read_golden(golden).cases
            for name, value in run(case).items()
        }
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m refimpl.crosscheck.bridges.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("golden", type=expanded, metavar="F", help="the golden file to compute")
    parser.add_argument("--out", type=expanded, required=True, help="the .npz file to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    options = parser.parse_args(arguments)
    if options.out.resolve() == options.golden.resolve():
        raise InputError(f"{options.out}: that is the golden file; write the outputs beside it")
    check_new(options.out, options.force)
    write_whole(options.out, outputs_of(options.golden))
    return 0


def leave_with(name: str, main: Callable[[], int]) -> NoReturn:
    """Run a script and end the process; a user's mistake prints one line."""
    try:
        sys.exit(main())
    except RefimplError as problem:
        sys.exit(f"{name}: {problem}")


if __name__ == "__main__":
    leave_with("run", main)
