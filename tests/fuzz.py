"""Mutated inputs for every reader: only clean errors, bounded memory, no hang.

`python tests/fuzz.py --inputs 100000 --seed 0` prints a table of all loaders, with the losses; input n of a
loader depends on the seed alone. `--guided LOADER` lets atheris, where it is installed, choose the inputs by
what they cover. A new reader is a row in `fuzz_loaders.LOADERS`.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import signal
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType

from fuzz_loaders import LOADERS, Loader

from refimpl.errors import OlderVersionWarning, RefimplError

MEMORY = 48 * 2**20  # bytes a reader may allocate for an input of at most LARGEST bytes
LARGEST = 2**18
SECONDS = 5.0  # of the processor for one input; the slowest good ones take some milliseconds
CLAIMS = (
    b"1000000000000",
    b"-1",
    b"0",
    b"99999999999999999999",
    b"1e400",
    b"NaN",
    b"Infinity",
    b"null",
    b"true",
)
WORDS = (b"[]", b"{}", b'""', b"[[", b"(", b")", b"\n", b"\\", b'"', b"'", b"\0", b"\xff", b"\xed\xa0\x80")


DIGIT = re.compile(rb"[0-9]")


class HangError(BaseException):
    """Past the time for one input; no reader may catch it."""


# --- mutation


def mutate(data: bytes, rng: random.Random) -> bytes:
    """`data` after one to six random changes."""
    out = bytearray(data)
    for _ in range(1 + min(int(rng.expovariate(0.7)), 5)):
        rng.choice(CHANGES)(out, rng)
        del out[LARGEST:]
    return bytes(out)


def _place(out: bytearray, rng: random.Random) -> int:
    """Anywhere, but every other time near the beginning, where headers are."""
    return rng.randrange(min(len(out), 64) + 1) if rng.random() < 0.5 else rng.randrange(len(out) + 1)


def _slice(out: bytearray, rng: random.Random) -> slice:
    start = _place(out, rng)
    return slice(start, start + int(rng.expovariate(0.1)) + 1)


def _flip(out: bytearray, rng: random.Random) -> None:
    if out:
        out[_place(out, rng) % len(out)] ^= 1 << rng.randrange(8)


def _overwrite(out: bytearray, rng: random.Random) -> None:
    place = _place(out, rng)
    new = rng.randbytes(rng.choice((1, 1, 2, 4, 8)))
    out[place : place + len(new)] = new


def _number(out: bytearray, rng: random.Random) -> None:
    """A binary number at the edge of what its width holds."""
    width, place = rng.choice((1, 2, 4, 8)), _place(out, rng)
    value = rng.choice((0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1))
    out[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _written_number(out: bytearray, rng: random.Random) -> None:
    """Another number or word in the place of a written one."""
    digits = [match.start() for match in DIGIT.finditer(out)]
    start = end = rng.choice(digits) if digits else _place(out, rng)
    while end < len(out) and (48 <= out[end] <= 57 or out[end] == 46):
        end += 1
    out[start:end] = rng.choice(CLAIMS)


def _cut(out: bytearray, rng: random.Random) -> None:
    del out[_place(out, rng) :]


def _delete(out: bytearray, rng: random.Random) -> None:
    del out[_slice(out, rng)]


def _repeat(out: bytearray, rng: random.Random) -> None:
    part = _slice(out, rng)
    out[part.start : part.start] = bytes(out[part]) * rng.choice((1, 1, 2, 100, 5000))


def _move(out: bytearray, rng: random.Random) -> None:
    place = _place(out, rng)
    out[place:place] = bytes(out[_slice(out, rng)])


def _word(out: bytearray, rng: random.Random) -> None:
    place = _place(out, rng)
    out[place:place] = rng.choice(WORDS + CLAIMS)


Change = Callable[[bytearray, random.Random], None]
CHANGES: tuple[Change, ...] = (
    _flip, _flip, _overwrite, _number, _written_number, _cut, _delete, _repeat, _move, _word
)  # fmt: skip


# --- judgement


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    """Raise `HangError` within, after `SECONDS`."""

    def late(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def place_for(loader: Loader, folder: Path) -> Path:
    """The path inputs are written to, with the other files around it."""
    for name, data in {loader.file: b"", **loader.beside}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder / loader.file


def judge(loader: Loader, path: Path, data: bytes) -> str:
    """`accepted`, `refused`, or what went wrong when the loader read `data`.

    Warnings count as errors, but for those that a file looks like an older version's. Memory is what Python,
    NumPy and the decompressors ask for, touched or not; so `tracemalloc` must be running.
    """
    path.write_bytes(data)
    tracemalloc.reset_peak()
    before, verdict = tracemalloc.get_traced_memory()[0], "accepted"
    try:
        with limited_time(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", OlderVersionWarning)
            loader.read(path)
    except RefimplError as error:
        verdict = "refused" if _one_line(str(error)) else f"loss: message {str(error)[:200]!r}"
    except HangError:
        return f"loss: more than {SECONDS} s"
    except KeyboardInterrupt:  # of whoever runs this
        raise
    except BaseException as error:
        return f"loss: {type(error).__name__}: {str(error)[:200]}"
    used = tracemalloc.get_traced_memory()[1] - before
    return verdict if used <= MEMORY else f"loss: {used >> 20} MiB allocated ({verdict})"


def _one_line(message: str) -> bool:
    return 0 < len(message) < 1000 and len(message.splitlines()) == 1


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Memory is counted within."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


# --- many inputs


def inputs(loader: Loader, count: int, seed: int) -> Iterator[bytes]:
    """`count` mutated inputs: the same for the same seed."""
    return (nth_input(loader, seed, number) for number in range(count))


def nth_input(loader: Loader, seed: int, number: int) -> bytes:
    """One of them; every eighth starts from a hostile file."""
    rng = random.Random(f"{loader.name} {seed} {number}")
    start = rng.choice(loader.seeds + loader.hostile if number % 8 == 0 else loader.seeds)
    return loader.dress(mutate(start, rng))


def run(loader: Loader, count: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Verdicts by kind, and one line for each input that went wrong; those inputs are kept in `folder`."""
    kinds, losses = Counter[str](), []
    path = place_for(loader, folder)
    with tracing():
        for number, data in enumerate(inputs(loader, count, seed)):
            verdict = judge(loader, path, data)
            kinds[verdict.partition(":")[0]] += 1
            if verdict.startswith("loss"):
                kept = folder / f"loss-{number}"
                kept.write_bytes(data)
                losses.append(f"{loader.name}, input {number}, {kept}: {verdict}")
    return kinds, losses


def our_functions() -> Iterator[FunctionType]:
    """What coverage is counted of: the package but kernels (everything loaded would take minutes)."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith("refimpl.") and not name.startswith("refimpl.kernels"):
            for value in list(vars(module).values()):
                parts = list(vars(value).values()) if isinstance(value, type) else [value]
                yield from (f for f in parts if isinstance(f, FunctionType) and f.__module__ == name)


def guided(loader: Loader, count: int, seed: int) -> None:
    """`count` inputs chosen by atheris; ends the process, with a traceback at the first loss."""
    import atheris

    for function in our_functions():
        atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as folder:
        path, corpus = place_for(loader, Path(folder)), Path(folder) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(loader.seeds):
            (corpus / str(number)).write_bytes(data)
        tracemalloc.start()

        def one(data: bytes) -> None:
            verdict = judge(loader, path, loader.dress(data))
            if verdict.startswith("loss"):
                raise AssertionError(f"{loader.name}: {verdict}")

        atheris.Setup([sys.argv[0], f"-runs={count}", f"-seed={seed + 1}", str(corpus)], one)
        atheris.Fuzz()


def main() -> int:
    """Print the table; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="of all loaders together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="loaders whose name contains this")
    parser.add_argument(
        "--guided", action="store_true", help="inputs chosen by atheris, for --only one loader"
    )
    options = parser.parse_args()
    chosen = [loader for loader in LOADERS if options.only in loader.name]
    if options.guided:
        (loader,) = [loader for loader in LOADERS if options.only == loader.name]
        guided(loader, options.inputs, options.seed)
    each, found, started = -(-options.inputs // len(chosen)), list[str](), time.perf_counter()
    kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"{'loader':32}{'inputs':>8}{'accepted':>10}{'refused':>9}{'losses':>8}", flush=True)
    for number, loader in enumerate(chosen):
        kinds, losses = run(loader, each, options.seed, kept / str(number))
        counts = f"{each:8}{kinds['accepted']:10}{kinds['refused']:9}{kinds['loss']:8}"
        print(f"{loader.name:32}{counts}", flush=True)
        found += losses
    print(*found, sep="\n")
    print(f"{each * len(chosen)} inputs, {len(found)} losses, {time.perf_counter() - started:.0f} s")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
