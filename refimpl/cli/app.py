"""The `refimpl` command. It lists subcommands without importing them, and turns errors into one line.

The exit code is 0 for success, 1 if a check failed, 2 for wrong use or bad input, and 130 after Ctrl-C.
"""

import importlib
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import click

from refimpl._version import __version__
from refimpl.errors import OlderVersionWarning, RefimplError, nearest
from refimpl.registry import use

CHECK_FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

# The name of each command with one line of help, in the order in which they are listed. The command itself is
# `command` in the module of that name. The help stands here so that `refimpl --help` imports neither these
# modules nor Numba.
COMMANDS = {
    "demo": "Meta-train, adapt and compare five methods on handwritten digits, offline.",
    "train": "Meta-train one method on one data set into a run folder.",
    "adapt": "Adapt a run's meta-model at its target nodes, in two stages.",
    "export": "Export a run's model with its gates for inference, as ONNX.",
    "compare": "Compare methods, or settings of one, over seeds, in the paper's tables.",
    "report": "Write tables and figures of runs, as one page and PNG files.",
    "fewshot": "Meta-train and test on few-shot episodes.",
    "tickets": "Find sparse networks that meta-train as well as dense ones.",
    "cooperative": "Train networks whose depth is chosen at run time.",
    "engine": "Run federations over Flower, simulated or over many machines.",
    "tune": "Search for the best settings of methods on validation nodes.",
    "data": "List, verify and fetch data sets; show how one is cut into nodes.",
    "theory": "Check the paper's lemmas, theorem and rates numerically.",
    "bench": "Time layers and whole programs, dense and gated, against the FLOPs they execute.",
    "golden": "Write golden files, and check other implementations with them.",
    "gradcheck": "Check gradients against central differences, in float64.",
    "warmup": "Compile the kernels for this machine and keep them on disk.",
    "info": "Show versions, CPU features, threads, kernels and folders.",
}

# The jobs of the package, each with the commands that do it.
JOBS = (
    ("Verify the theory", ("theory", "gradcheck --all")),
    ("Benchmark on this CPU", ("compare", "tune", "bench", "train", "adapt", "report")),
    ("Learn from a few samples of new classes", ("fewshot train", "fewshot test", "tickets demo")),
    ("Choose the depth of a network at run time", ("cooperative demo", "cooperative predict")),
    ("Cross-check another implementation", ("golden make", "golden check", "export", "gradcheck")),
    ("Look after data, this machine and compiled code", ("data", "info --check", "warmup")),
    ("See everything in a few minutes, offline", ("demo",)),
)


class SuggestingGroup(click.Group):
    """A group of commands that answers an unknown name with the nearest one."""

    OTHERWISE: ClassVar[Mapping[str, str]] = {"help": "--help"}  # what to use for names that people expect

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command named by args[0]; for an unknown name, suggest the nearest or list all."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            near = f"did you mean {self.OTHERWISE[name]}?" if name in self.OTHERWISE else nearest(name, known)
            hint = near or f"choose one of {', '.join(known)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


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
    """What `refimpl` prints without a command: the jobs of the package and the commands that do them."""
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
        return _complain(_said(error) + where)
    except click.ClickException as error:
        return _complain(error.format_message())
    except click.Abort as error:  # Ctrl-C, where the command does not handle it itself
        if isinstance(error.__cause__, EOFError):
            raise error.__cause__ from None  # a defect, because no command reads input that could end
        again = shlex.join(["refimpl", *(sys.argv[1:] if args is None else args)])
        _say(f"stopped; no file is left half written; to start over: {again}")
        return INTERRUPTED
    except RefimplError as error:
        return _complain(str(error))
    except OSError as error:  # an error of the system that no command has explained
        return _complain(f"{error.filename or 'the system'}: {(error.strerror or str(error)).lower()}")
    except MemoryError:
        return _complain("not enough memory; use a smaller model, batch or data set")
    return result if isinstance(result, int) else 0


def _said(error: click.UsageError) -> str:
    """The error's message, followed by the nearest options or the nearest choice if there are any."""
    if isinstance(error, click.NoSuchOption) and error.possibilities:  # nearest first
        return f"{error.message} Did you mean {' or '.join(error.possibilities[:2])}?"
    if isinstance(error, click.BadParameter) and error.param and isinstance(error.param.type, click.Choice):
        typed = re.match("'(.*?)'", error.message)  # the message begins with these words
        near = nearest(typed[1], error.param.type.choices) if typed else ""
        return error.format_message().replace(error.message, near + error.message)
    return error.format_message()


@contextmanager
def _notes() -> Iterator[None]:
    """Print each warning about files of an older version once, as one line."""
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
    """Print the message on stderr as one line, without its line breaks."""
    click.echo(f"refimpl: {' '.join(message.split())}", err=True)
