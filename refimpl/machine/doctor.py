"""Check whether this machine computes correctly, and fast.

The kernels are compared with the readable kernels and with formulas, compiled programs with their layers;
then known traps are looked for. A failed check means wrong numbers; a warning means slow or unsteady times.
"""

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.bench import oracle
from refimpl.bench.candidates import ours
from refimpl.bench.cases import PASSES, Case, Geometry, LayerData, layer_data
from refimpl.bench.formulas import comparisons
from refimpl.bench.process import THREAD_VARIABLES
from refimpl.errors import RefimplError
from refimpl.files.environment import cores
from refimpl.files.tables import counted
from refimpl.kernels import conv, linear, plain
from refimpl.kernels.arrays import ALL_ON
from refimpl.kernels.jit import cache_folder, chosen_kernels, settings
from refimpl.nn import zoo
from refimpl.nn.lowering import uncompiled
from refimpl.nn.task import NetworkTask
from refimpl.registry import MODELS
from refimpl.rng import SeedTree

OK, WARNING, FAILED = "ok", "warning", "failed"
CHECKS = 14  # number of findings of `examine`
DIFFERS = "differs in some bit from the readable kernel's"
SHAPES = (Geometry(5, 19, 9), Geometry(37, 19, 1, 1, 0))  # sizes that are no multiple of a vector's length
SLOW_SECONDS = 0.1  # for a small file to reach the disk; a local one takes some milliseconds
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of cgroups, versions 2 and 1
CGROUP = Path("/sys/fs/cgroup")


class Finding(NamedTuple):
    """One check: its name, `ok`, `warning` or `failed`, and what was found."""

    check: str
    state: str
    detail: str


class Verdict(NamedTuple):
    """What a check found, without its name."""

    state: str
    detail: str


def examine(threads: int | None = None) -> Iterator[Finding]:
    """All checks, one after the other; threads: as many as runs will use (None: all cores)."""
    for dtype in ("float32", "float64"):
        yield Finding(f"kernels {dtype}", *check_kernels(dtype))
        yield Finding(f"layers {dtype}", *check_layers(dtype))
        yield Finding(f"program {dtype}", *check_program(dtype))
    yield Finding("compiled models", *check_models())
    yield Finding("denormals", *check_denormals())
    yield Finding("kernel choice", *check_choice())
    yield Finding("cache", *check_cache())
    yield Finding("threads", *check_threads(threads or cores()))
    yield Finding("cpu quota", *check_quota())
    yield Finding("load", *check_load())
    yield Finding("blas", OK, f"{blas()} (used by peers in benchmarks, not by training)")


# --- right numbers


def check_kernels(dtype: str) -> Verdict:
    """Compare every pass of small weighted layers with the oracle and, bit by bit, with readable kernels."""
    worst = 0.0
    for shape, off in itertools.product(SHAPES, (0.0, 0.5)):
        cases = [Case(shape, pass_, 3, off, dtype) for pass_ in PASSES]
        data = layer_data(cases[0])
        right = readable_results(shape, data)
        for case in cases:
            candidate = ours(case, data)
            arrays = candidate.arrays(candidate.run())
            try:
                worst = max(worst, oracle.check(case.label, arrays, oracle.reference(case, data)))
            except RefimplError as error:
                return Verdict(FAILED, str(error))
            for name in differing(arrays, right):
                return Verdict(FAILED, f"{case.label}: {name} {DIFFERS}")
        if not shape.linear:
            for name in differing_strided(shape, data):
                return Verdict(FAILED, f"stride 2 off {off:.0%} {dtype}: {name} {DIFFERS}")
    return Verdict(
        OK,
        "convolution and linear, forward and both gradients, open and gated: bits of the readable kernels "
        f"(strides 1 and 2), {worst:.0e} from NumPy in float64 (stride 1)",
    )


def differing(arrays: oracle.Arrays, right: oracle.Arrays) -> list[str]:
    """Names of the arrays that differ in a bit from the right ones."""
    return [name for name, array in arrays.items() if array.tobytes() != right[name].tobytes()]


def differing_strided(shape: Geometry, data: LayerData) -> list[str]:
    """Names of the results of a convolution with stride 2 that differ from the readable kernels' in a bit."""
    step, pad = (2, 2), (shape.pad, shape.pad)
    data = data._replace(dy=data.dy[:, :, ::2, ::2].copy())
    x, weight, bias, dy, mask = data
    fast = {"dw": np.empty_like(weight), "db": np.empty_like(bias)}
    fast["y"] = conv.forward(x, weight, bias, step, pad, None, mask)
    fast["dx"] = conv.input_grad(dy, weight, step, pad, (x.shape[2], x.shape[3]), mask)
    conv.weight_grad(x, dy, step, pad, fast["dw"], fast["db"], None, mask)
    return differing(fast, readable_results(shape, data, step))


def readable_results(shape: Geometry, data: LayerData, step: conv.Pair = (1, 1)) -> oracle.Arrays:
    """The readable kernels' results of all passes: y, dx, dw and db; step: of a convolution."""
    x, weight, bias, dy = data[:4]
    mask, pad = conv.or_all_on(data.mask), (shape.pad, shape.pad)
    results = y, dx, dw, db = [np.empty_like(array) for array in (dy, x, weight, bias)]
    if shape.linear:
        x, weight, dy, y, dx, dw = (array.reshape(array.shape[:2]) for array in (x, weight, dy, y, dx, dw))
        plain.linear_forward(x, weight, bias, ALL_ON, mask, y)
        plain.linear_input_grad(dy, weight, mask, ALL_ON, dx)
        plain.linear_weight_grad(x, dy, ALL_ON, mask, dw, db)
    else:
        plain.conv_forward(x, weight, bias, step, pad, (1, 1), ALL_ON, mask, y)
        plain.conv_input_grad(dy, weight, step, pad, (1, 1), mask, ALL_ON, dx)
        plain.conv_weight_grad(x, dy, step, pad, (1, 1), ALL_ON, mask, dw, db)
    return dict(zip(("y", "dx", "dw", "db"), results, strict=True))


def check_layers(dtype: str) -> Verdict:
    """Every other layer, the loss and the proximal operators, against their formulas."""
    worst, names = 0.0, list[str]()
    for name, got, wanted, terms in comparisons(dtype):
        allowed = oracle.rounding(dtype, terms)
        error = oracle.error_of(got, oracle.Reference(wanted, allowed))
        if not error <= allowed:
            detail = f"{name}: {error:.2g} (relative) from NumPy in float64, allowed {allowed:.2g}"
            return Verdict(FAILED, detail)
        worst, names = max(worst, error), names + [name] * (name not in names)
    return Verdict(OK, f"{', '.join(names)}: {worst:.0e} from NumPy in float64")


def check_program(dtype: str) -> Verdict:
    """A whole gated network as one compiled program against its layers: loss, gradient, open channels."""
    network, rng = zoo.digits((4, 6), gates=("conv1", "conv2")), np.random.default_rng(0)
    x, y = rng.standard_normal((7, *network.input_shape)).astype(dtype), rng.integers(0, network.classes, 7)
    task = NetworkTask(network, x, y)
    if task.program is None:
        return Verdict(OK, "not used with these kernels; the layers run")
    w = network.layout.initialise(SeedTree(0), dtype)
    phi = network.layout.phi
    w[phi] += (0.5 * rng.standard_normal(w[phi].size)).astype(dtype)  # closes some channels
    results = []
    for one in (task, replace(task, compiled=False)):
        (objective,) = one.draw(rng, 1)
        gradient = np.empty_like(w)
        results.append((objective(w, gradient), gradient.tobytes(), objective.measure()))
    for what, *both in zip(("loss", "gradient", "number of open channels"), *results, strict=True):
        if both[0] != both[1]:
            return Verdict(FAILED, f"the {what} of a gated network is not that of the layers")
    closed = results[0][2][1]
    return Verdict(
        OK, f"loss and gradient of a gated network, {closed:.0%} of channels off: bits of the layers"
    )


def check_models() -> Verdict:
    """Whether every model runs as a compiled program, those of `--use` files among them."""
    kinds = {name: uncompiled(zoo.network(name)) for name in MODELS}
    slow = [f"{name} (no operation for {kind})" for name, kind in kinds.items() if kind]
    if slow:
        return Verdict(WARNING, f"these run layer by layer, several times slower: {', '.join(slow)}")
    return Verdict(OK, "all")


def check_denormals() -> Verdict:
    """Numbers below the smallest normal one must not become zero, in NumPy or in compiled code."""
    for dtype in (np.float32, np.float64):
        tiny = np.array(np.finfo(dtype).tiny / 8).astype(dtype)
        if not (halved_by_numpy(tiny) > 0 and halved_by_kernels(tiny) > 0):
            return Verdict(
                FAILED,
                f"{np.dtype(dtype)} numbers below {np.finfo(dtype).tiny:.1e} become zero: a library loaded "
                "into this process has switched them off, and results will differ from other machines'",
            )
    return Verdict(OK, "kept")


def halved_by_numpy(number: np.ndarray) -> float:
    """Half of a number, as NumPy divides."""
    return float(number / number.dtype.type(2))


def halved_by_kernels(number: np.ndarray) -> float:
    """Half of a number, as compiled kernels multiply: a layer with one weight."""
    one = np.full((1, 1), number)
    return float(linear.forward(one, np.full_like(one, 0.5), np.zeros_like(one[0]))[0, 0])


# --- speed


def check_choice() -> Verdict:
    """Whether the fast kernels are the ones in use."""
    name = chosen_kernels()
    if name == "tile":
        return Verdict(OK, name)
    why = "NUMBA_DISABLE_JIT" if settings.DISABLE_JIT else "REFIMPL_KERNELS"
    return Verdict(WARNING, f"{name}, the slow readable ones, because {why} is set")


def check_cache() -> Verdict:
    """Whether compiled code is kept in the right folder, on a disk that is not slow."""
    folder = cache_folder()
    files = [path for path in folder.rglob("*.nb[ic]") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    compiled = f"{counted(len(files), 'file')}, {size:.1f} MiB"
    detail = f"{folder}: {compiled if files else 'nothing compiled yet: refimpl warmup'}"
    wanted = settings.CACHE_DIR
    if wanted and not folder.is_relative_to(wanted):
        return Verdict(WARNING, f"NUMBA_CACHE_DIR={wanted} cannot be written, so it is {detail}")
    try:
        seconds = seconds_to_write(folder)
    except OSError as error:
        why = (error.strerror or "unknown").lower()
        return Verdict(WARNING, f"cannot be written ({why}), so kernels are compiled anew: {detail}")
    if seconds > SLOW_SECONDS:
        detail = f"slow ({seconds:.2f} s for a small file); set NUMBA_CACHE_DIR to a local folder; {detail}"
        return Verdict(WARNING, detail)
    return Verdict(OK, detail)


def seconds_to_write(folder: Path) -> float:
    """How long a small file takes to reach the disk."""
    started, path = time.perf_counter(), folder / f".doctor-{os.getpid()}"
    try:
        with open(path, "wb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    return time.perf_counter() - started


def check_threads(threads: int) -> Verdict:
    """Whether the threads, times those that libraries start in each, are at most as many as the cores."""
    there = cores()
    for name in THREAD_VARIABLES:
        each = os.environ.get(name, "")
        if each.isdecimal() and int(each) > 1 and int(each) * threads > there:
            detail = f"{threads} threads with {name}={each} each are more than {there} cores; set {name}=1"
            return Verdict(WARNING, detail)
    if threads > there:
        return Verdict(WARNING, f"{threads} threads on {there} cores; use --threads {there}")
    return Verdict(OK, f"{threads} on {there} cores")


def check_quota() -> Verdict:
    """Whether a container may use all the cores it sees."""
    there, allowed = cores(), quota()
    if allowed is None:
        return Verdict(OK, "none")
    if allowed >= there:
        return Verdict(OK, f"{allowed:g} cores")
    detail = f"{allowed:g} of the {there} cores it sees: threads will be stopped at times; use --threads "
    return Verdict(WARNING, f"this container may use {detail}{max(1, int(allowed))}")


def quota() -> float | None:
    """The number of cores that the control group allows, which may be a fraction; None for no limit."""
    for files in QUOTAS:
        try:
            words = " ".join((CGROUP / file).read_text() for file in files).split()
            limit, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # no such version, or the word max
            continue
        if limit > 0 and period > 0:
            return limit / period
    return None


def check_load() -> Verdict:
    """Whether other programs keep the cores busy."""
    there = cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > there:
        return Verdict(WARNING, f"{load:.1f} on {there} cores: do not trust seconds measured now")
    return Verdict(OK, f"{load:.1f} on {there} cores")


def blas() -> str:
    """NumPy's linear algebra library."""
    found = np.show_config(mode="dicts")
    library = found.get("Build Dependencies", {}).get("blas", {})
    return " ".join(str(library[key]) for key in ("name", "version") if key in library) or "unknown"
