"""`refimpl warmup`: compiles the kernels now instead of during the first run."""

import time

import click

from refimpl.cli.options import Session, session_options
from refimpl.cli.progress import SECOND, WARM_UP, Progress, notice
from refimpl.files.tables import counted

DTYPES = ("float32", "float64")


@click.command(epilog="\b\nExamples:\n  refimpl warmup\n  refimpl warmup --dtype float64")
@click.option(
    "--dtype", type=click.Choice([*DTYPES, "both"]), default="float32", show_default=True, help="Number type."
)
@session_options("talk")
def command(dtype: str, session: Session) -> None:
    """Compile the kernels for this machine and keep them on disk.

    Every command compiles the kernels it needs by itself. The machine code is kept until the package or Numba
    changes.
    """
    from refimpl.federated.warmup import warm_up, warm_up_options
    from refimpl.kernels.jit import cache_folder

    started = time.perf_counter()
    total = WARM_UP + (SECOND if dtype == "both" else 0)
    with Progress(0, session.talk) as progress, notice(progress, total) as compiled:
        for name in DTYPES if dtype == "both" else (dtype,):
            warm_up(name)
            warm_up_options(name)
    seconds = time.perf_counter() - started
    functions = counted(len(compiled), "function")
    click.echo(f"{functions} compiled in {seconds:.0f} s; kept in {cache_folder()}")
