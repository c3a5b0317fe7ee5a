"""Time one layer or one network of one's own, beside its twins in PyTorch and onnxruntime.

Every result is compared with a float64 reference before it is timed, and candidates take turns. The command
line runs this in a process of its own on one core; a call from Python uses the process as it is, where
NumPy's products may use more threads than one.

Source: mathematics.md §9 (dense and executed FLOPs), §2.3 (fixed share), §3 and §6 (local step, adaptation).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.bench.candidates import (
    INSTALLED,
    ONNX,
    OURS,
    TORCH,
    Candidate,
    Row,
    time_case,
    timed_rows,
    torch_twin,
)
from refimpl.bench.cases import PASSES, Case, Geometry
from refimpl.bench.endtoend import TOLERANCE
from refimpl.bench.oracle import Reference, length
from refimpl.bench.peaks import blas, matrix_peaks
from refimpl.bench.tables import own_table
from refimpl.bench.timing import SMOKE, Effort
from refimpl.contracts import nothing
from refimpl.errors import InputError, expect_numbers, one_of, shown
from refimpl.federated.adapt import AdaptSettings, adapt
from refimpl.federated.local import LocalSettings, solve_local
from refimpl.files.storage import json_text
from refimpl.files.tables import table
from refimpl.nn.context import Context, FixedShare
from refimpl.nn.network import Network, draw_gate_noise
from refimpl.nn.predict import Predictor
from refimpl.nn.task import NetworkTask
from refimpl.nn.work import dense_work
from refimpl.registry import drawn, own_object
from refimpl.rng import SeedTree

PROGRAMS = ("forward", "gradient", "local step", "adaptation")
USUAL = Effort(rounds=5, seconds=0.3)
ETA, LAM = 0.05, 1.0  # of the local step, and ETA of the adaptation
PEAK_SIZES = (512, 1024)

Ours = tuple[Callable[[], Any], Callable[[Any], np.ndarray], float]  # run, its result as an array, FLOPs
Told = Callable[[Row], object]  # is given every row as soon as it is there


@dataclass(frozen=True)
class Timings:
    """What was measured of a layer or a network.

    subject: its name; rows: one for each candidate, pass, batch and share of closed channels, with seconds
    and FLOPs of a whole batch; peak: GFLOP/s of the best matrix product of NumPy, by which rates are judged.
    """

    subject: str
    rows: tuple[Row, ...]
    peak: float

    @property
    def refused(self) -> list[str]:
        """Why candidates were not timed; empty if all results were right."""
        return [row["refused"] for row in self.rows if "refused" in row]

    def table(self) -> str:
        """A line for each pass, batch and share, as text; other candidates' times relative to ours."""
        lines = [
            f"{self.subject}: FLOPs of a sample, times of a batch",
            table(*own_table(self.rows, self.peak)),
            f"best matrix product: {self.peak:.3g} GFLOP/s; largest spread between quartiles: "
            f"{max((row['noise'] for row in self.rows if 'noise' in row), default=0.0):.0%} of a median",
        ]
        return "\n".join([*lines, *(f"REFUSED: {why}" for why in self.refused)])

    def json(self) -> str:
        """Everything as JSON."""
        return json_text({"subject": self.subject, "peak_gflops": self.peak, "rows": list(self.rows)})

    def figure(self, path: str | Path) -> Path:
        """Draw seconds against executed FLOPs into a file, with proportional lines (needs matplotlib)."""
        return drawn(self, Path(path))


def time_layer(
    geometry: Geometry,
    batch: int = 32,
    off: float | Iterable[float] = (0.0, 0.5),
    passes: Sequence[str] = PASSES,
    dtype: str = "float32",
    torch: bool = False,
    effort: Effort = USUAL,
    on_row: Told = nothing,
) -> Timings:
    """Time passes of a layer with shares `off` of its output channels closed, others in each sample.

    passes: of `forward`, `input_grad` and `weight_grad`; torch: also PyTorch's layer times the mask. A share
    of zero is always measured, so that times can be compared with it.
    """
    check_layer(geometry, batch)
    for name in passes:
        one_of("time_layer", "pass", name, PASSES)
    one_of("time_layer", "dtype", dtype, ("float32", "float64"))
    makers, rows = (*INSTALLED, *((torch_twin,) if torch else ())), []
    for case in [Case(geometry, name, batch, share, dtype) for name in passes for share in ascending(off)]:
        for row in time_case(case, makers, effort):
            rows.append(row)
            on_row(row)
    return Timings(geometry.label, tuple(rows), best_product(dtype, effort))


def check_layer(g: Geometry, batch: int) -> None:
    """Raise `InputError` unless the layer has results."""
    sizes = {name: getattr(g, name) for name in g._fields if name != "pad"}
    expect_numbers("time_layer", positive=True, whole=True, batch=batch, **sizes)
    expect_numbers("time_layer", whole=True, pad=g.pad)
    if g.result_size < 1 or g.channels % g.groups or g.filters % g.groups:
        raise InputError(
            "time_layer: expected images of at least the kernel's extent, and channels that the groups "
            f"divide, got {g.label}"
        )


def ascending(off: float | Iterable[float]) -> list[float]:
    """The shares in ascending order, zero among them."""
    given = [float(share) for share in (off if isinstance(off, Iterable) else [off])]
    for share in given:
        if not 0 <= share <= 1:
            raise InputError(f"bench: expected shares 0 <= off <= 1, got {share:g}")
    return sorted({0.0, *given})


def best_product(dtype: str, effort: Effort) -> float:
    """GFLOP/s of NumPy's best matrix product."""
    sizes = (64,) if effort == SMOKE else PEAK_SIZES
    return max(peak.gflops for peak in matrix_peaks((blas,), dtype, effort, sizes))


def time_network(
    network: Network,
    off: float | Iterable[float] = (0.0, 0.5, 0.75),
    batch: int | Sequence[int] = (1, 32),
    programs: Sequence[str] = PROGRAMS,
    w: np.ndarray | None = None,
    dtype: str = "float32",
    torch: bool = False,
    onnx: bool = False,
    effort: Effort = USUAL,
    on_row: Told = nothing,
) -> Timings:
    """Time a network with shares `off` of every gate's channels closed, others in each sample.

    programs: of `forward`, `gradient`, `local step` (one step of the local problem) and `adaptation` (both
    stages, one step each); w (d,): parameters [initial ones]; torch: also PyTorch's network, onnx: also
    onnxruntime, forward in float32. Samples are random.
    """
    for name in programs:
        one_of("time_network", "program", name, PROGRAMS)
    one_of("time_network", "dtype", dtype, ("float32", "float64"))
    shares, batches = ascending(off), [batch] if isinstance(batch, int) else list(batch)
    expect_numbers("time_network", positive=True, whole=True, **{"batch": min(batches, default=0)})
    if max(shares) > 0 and not network.gates:
        raise InputError(
            f"time_network: {network.name} has no gates, so no channels can be closed; give off=0, or gates "
            "with zoo.with_gates"
        )
    start = network.layout.initialise(SeedTree(0)) if w is None else w
    rows: list[Row] = []
    for count in batches:
        for share in shares:
            trial = Trial(network, start.astype(dtype), count, FixedShare(off=share))
            for name in programs:
                found = trial.time(name, torch, onnx and name == "forward" and dtype == "float32", effort)
                rows += found
                for row in found:
                    on_row(row)
    return Timings(network.name, tuple(rows), best_product(dtype, effort))


def answer(ask: Mapping[str, Any], on_row: Told) -> Timings:
    """What `python -m refimpl.bench --own ASK` measures: a `geometry`, or a `network` as FILE.py:NAME.

    smallest: tiny efforts, whose times mean nothing; the other entries are arguments of `time_layer` and
    `time_network`.
    """
    given = dict(ask)
    effort = SMOKE if given.pop("smallest") else USUAL
    if "geometry" in given:
        return time_layer(Geometry(*given.pop("geometry")), **given, effort=effort, on_row=on_row)
    return time_network(own_network(given.pop("network")), **given, effort=effort, on_row=on_row)


def own_network(named: str) -> Network:
    """The network that FILE.py:NAME defines."""
    found = own_object(named, "bench network", "a Network")
    if not isinstance(found, Network):
        raise InputError(f"bench network: expected {named} to be a refimpl.Network, got {shown(found)}")
    return found


@dataclass(frozen=True, eq=False)
class Trial:
    """A network on a batch of random samples, with fixed masks."""

    network: Network
    w: np.ndarray
    batch: int
    gating: FixedShare

    @cached_property
    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """x (batch, *input_shape), y (batch,)."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch, *self.network.input_shape)).astype(np.float32)
        return x.astype(self.w.dtype), rng.integers(0, self.network.classes, self.batch)

    @cached_property
    def noise(self) -> dict[str, np.ndarray]:
        """What makes the masks, by gate name."""
        rng = np.random.default_rng(0)
        return draw_gate_noise(self.network, self.batch, rng, self.w.dtype, self.gating)

    def ours(self, name: str, compiled: bool = True) -> Ours:
        """A program by name: the function to time, what its result says, and the FLOPs it executes."""
        network, w, (x, y) = self.network, self.w, self.samples
        if name == "forward":
            if not compiled:
                return lambda: network.forward(w, x, Context(self.gating))[0], np.asarray, 0.0
            predictor = Predictor(network, w, self.gating)
            return lambda: predictor(x), lambda found: found.logits, float(predictor(x).flops)
        if name == "adaptation":
            settings = AdaptSettings(ETA, ETA, gating=self.gating)
            done = adapt(network, w, x, y, settings)
            flops = done.flops_gate + done.flops_backbone
            return lambda: adapt(network, w, x, y, settings), lambda found: found.w - w, flops
        task, rng = NetworkTask(network, x, y, self.gating, compiled=compiled), np.random.default_rng(0)
        if name == "local step":
            settings_ = LocalSettings(LAM, ETA, 1)
            flops = solve_local(task, w, settings_, rng).flops
            return lambda: solve_local(task, w, settings_, rng), lambda found: found.w - w, flops
        (objective,), gradient = task.draw(rng, 1), np.empty_like(w)
        objective(w, gradient)

        def run() -> np.ndarray:
            objective(w, gradient)
            return gradient

        return run, np.asarray, objective.measure()[0]

    def reference(self, name: str) -> Reference:
        """The result in float64, layer by layer; of an adaptation, in compiled code."""
        wide = Trial(self.network, self.w.astype(np.float64), self.batch, self.gating)
        run, result, _ = wide.ours(name, compiled=False)
        return Reference({name: result(run())}, TOLERANCE, length)

    def time(self, name: str, torch: bool, onnx: bool, effort: Effort) -> list[Row]:
        """A row for each candidate."""
        run, result, executed = self.ours(name)
        made = [Candidate(OURS, run, lambda found: {name: result(found)}, skips=True)]
        if torch:
            from refimpl.crosscheck.bridges.torch.passes import network_passes

            theirs = network_passes(self.network, self.w, self.samples, self.noise, (ETA, LAM))[name]
            made.append(Candidate(TORCH, theirs, lambda found: {name: found}))
        if onnx:
            from refimpl.crosscheck.bridges.onnx import export, runner

            inputs = {"x": self.samples[0]} | {f"noise.{gate}": one for gate, one in self.noise.items()}
            other = runner(export(self.network, self.w, self.gating), inputs)
            made.append(Candidate(ONNX, other, lambda found: {name: found}))
        train = () if name == "forward" else ("theta",)
        facts: Row = {
            "layer": self.network.name,
            "pass": name,
            "batch": self.batch,
            "off": self.gating.off,
            "dtype": str(self.w.dtype),
            "dense_flops": float(dense_work(self.network, self.batch, train).total),
        }
        return timed_rows(facts, made, self.reference(name), executed, effort)
