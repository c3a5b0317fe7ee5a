"""The `refimpl` command: finds subcommands without importing them, and turns errors into one line.

Exit codes: 0 good, 1 a check failed, 2 wrong use or bad input, 130 interrupted.
"""

from __future__ import annotations

import importlib
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import click

from refimpl._version import __version__
from refimpl.cli.groups import SuggestingGroup, said
from refimpl.errors import OlderVersionWarning, RefimplError
from refimpl.registry import use

CHECK_FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

# Name: one line of help, in the order of listing. Each lives in a module of its name, as `command`.
# The help stands here so that `refimpl --help` need not import the modules, and Numba with them.
COMMANDS = {
    "demo": "Meta-train, adapt and compare five methods on handwritten digits, offline.",
    "train": "Meta-train one method on one data set into a run folder.",
    "adapt": "Adapt a run's meta-model at its target nodes, in two stages.",
    "export": "Export a run's model for inference as ONNX, gates included: masks multiply.",
    "compare": "Compare methods, or settings of one, over seeds, in the paper's tables.",
    "report": "Tables and figures of runs, as one page and PNG files.",
    "tune": "Search the best settings of methods on validation nodes.",
    "data": "List, verify and fetch data sets; show how one is cut into nodes.",
    "theory": "Check the paper's lemmas, theorem and rates numerically.",
    "bench": "Time layers and whole programs, dense and gated, against the FLOPs they execute.",
    "golden": "Write and check cross-check files for other implementations.",
    "gradcheck": "Check gradients against central differences, in float64.",
    "warmup": "Compile the kernels for this machine and keep them on disk.",
    "info": "Show versions, CPU features, threads, kernels and folders.",
}

# The three jobs the package is for, each with the commands that do it; what they stand on, and the way in.
JOBS = (
    ("Verify the theory", ("theory", "gradcheck --all")),
    ("Benchmark on this CPU", ("compare", "tune", "bench", "train", "adapt", "report")),
    ("Cross-check another implementation", ("golden make", "golden check", "export", "gradcheck")),
    ("Look after data, this machine and compiled code", ("data", "info --check", "warmup")),
    ("New here? A minute of everything, offline", ("demo",)),
)


class LazyGroup(SuggestingGroup):
    """A group whose subcommands are imported when they are called."""

    OTHERWISE: ClassVar[Mapping[str, str]] = {**SuggestingGroup.OTHERWISE, "doctor": "info --check"}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"refimpl.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExample:\n  refimpl demo",
)
@click.option(
    "--use",
    multiple=True,
    metavar="FILE.py",
    callback=lambda ctx, param, files: use(files),
    expose_value=False,
    help="Python file that registers penalties and other choices of your own.",
)
@click.version_option(__version__, prog_name="refimpl", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """MetaGater on the CPU: federated meta-learning of channel-gated networks, made to be checked."""
    if ctx.invoked_subcommand is None:
        click.echo(welcome())


def welcome() -> str:
    """What `refimpl` alone prints: the jobs the package is for and the commands that do them."""
    lines = [f"refimpl {__version__}: CPU reference implementation of MetaGater (arXiv 2011.12511)", ""]
    for job, uses in JOBS:
        known = [f"refimpl {use}" for use in uses if use.split()[0] in COMMANDS]
        lines += [job, *(f"  {use}" for use in known), ""]
    lines.append("refimpl --help lists all commands; refimpl COMMAND --help explains one, with an example.")
    return "\n".join(lines)


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A user's mistake prints one line, never a traceback."""
    try:
        with _notes():
            result = cli.main(args, prog_name="refimpl", standalone_mode=False)
    except click.UsageError as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return _complain(said(error) + where)
    except click.ClickException as error:
        return _complain(error.format_message())
    except click.Abort as error:  # Ctrl-C where a command has nothing of its own to say
        if isinstance(error.__cause__, EOFError):
            raise error.__cause__ from None  # a defect: no command asks for input that could end
        again = shlex.join(["refimpl", *(sys.argv[1:] if args is None else args)])
        _say(f"stopped; no file is left half written; the same command begins again: {again}")
        return INTERRUPTED
    except RefimplError as error:
        return _complain(str(error))
    except OSError as error:  # of the machine, where a command does not know better
        return _complain(f"{error.filename or 'the system'}: {(error.strerror or str(error)).lower()}")
    except MemoryError:
        return _complain("not enough memory; use a smaller model, batch or data set")
    return result if isinstance(result, int) else 0


@contextmanager
def _notes() -> Iterator[None]:
    """Warnings about what an older version wrote are one line each, said once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", OlderVersionWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, OlderVersionWarning):
                _say(f"note: {message}")
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _complain(message: str) -> int:
    _say(message)
    return WRONG_USE


def _say(message: str) -> None:
    """One line on stderr, whatever line breaks the message had."""
    click.echo(f"refimpl: {' '.join(message.split())}", err=True)
