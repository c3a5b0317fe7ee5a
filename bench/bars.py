"""The figures the benchmark is judged by: what is wanted, what was measured, whether it is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bench.peers.onnx_names import DENSE
from bench.plans import BATCHES, CONVS
from refimpl.bench.candidates import OURS
from refimpl.bench.cases import FIRST_LAYER, GRID, PASSES
from refimpl.bench.programs import FULL_ROUND, MLP_ROUND, Adaptation, Inference, Model, Round, cnn3_round
from refimpl.bench.session import Results, gated
from refimpl.bench.tables import CASE, PROGRAM, pivot


class Bar(NamedTuple):
    """One figure; met is None where what was not measured could decide."""

    what: str
    wanted: str
    measured: str
    met: bool | None


class Times:
    """Seconds by case or program and candidate, from the results."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.cases = pivot(results["kernels"], CASE)
        self.programs = pivot(results["end_to_end"], PROGRAM)

    def case(self, layer: str, pass_: str, batch: int, off: float, dtype: str, name: str) -> float:
        """Seconds of the candidate, or of the fastest whose name starts with it; KeyError without."""
        return self._fastest(self.cases[layer, pass_, batch, dtype, off], name)

    def program(self, program, name: str, threads: int = 1) -> float:
        """The same for a whole program."""
        return self._fastest(self.programs[program.label, threads], name)

    @staticmethod
    def _fastest(found: dict, name: str) -> float:
        times = [row["seconds"] for key, row in found.items() if key.startswith(name)]
        if not times:
            raise KeyError(name)
        return min(times)


def geometric_mean(values: Iterable[float]) -> float:
    """The exponential of the mean logarithm; NaN if there are no values."""
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


GRID_KEYS = [(geometry.label, pass_, batch) for geometry in GRID for pass_ in PASSES for batch in BATCHES]


def ratios(times: Times, other: tuple[float, str], mine: tuple[float, str], dtype: str = "float32") -> list:
    """Seconds at (share off, candidate) relative to those at another, over what was measured."""
    out = []
    for key in GRID_KEYS:
        if all((*key, dtype, off) in times.cases for off in (other[0], mine[0])):
            seconds = [times.case(*key, off, dtype, name) for off, name in (other, mine)]
            out.append(seconds[0] / seconds[1])
    if not out:
        raise KeyError("the grid")
    return out


def count(values: list, planned: int = len(GRID_KEYS)) -> str:
    """Says so where only a part of what was planned could be measured."""
    return "" if len(values) == planned else f" ({len(values)} of {planned} measured)"


def at_least(wanted: float, values: list[float], planned: int) -> tuple[str, str, bool | None]:
    """All values reach `wanted`; undecided if so far they do but some are missing, ValueError without any."""
    reached = min(values) >= wanted
    text = ", ".join(f"{v:.2f}" for v in values) + count(values, planned)
    return f">= {wanted}", text, None if reached and len(values) < planned else reached


def dense(times: Times):
    found = ratios(times, (0.0, "torch"), (0.0, OURS))
    average, least = geometric_mean(found), min(found)
    text = f"{average:.2f}, least {least:.2f}{count(found)}"
    return "mean >= 1.0, least >= 0.85", text, average >= 1.0 and least >= 0.85


def first_layer(times: Times):
    label = FIRST_LAYER.label
    keys = [(label, pass_, batch) for pass_ in ("forward", "weight_grad") for batch in BATCHES]
    found = [
        times.case(*key, 0.0, "float32", "torch") / times.case(*key, 0.0, "float32", OURS)
        for key in keys
        if (*key, "float32", 0.0) in times.cases
    ]
    return at_least(1.0, found, len(keys))


def gated_own(times: Times):
    found = [ratios(times, (off, OURS), (0.0, OURS)) for off in (0.5, 0.75)]
    half, quarter = map(geometric_mean, found)
    text = f"{half:.2f}, {quarter:.2f}{count(found[0])}"
    return "<= 0.56, <= 0.32", text, half <= 0.56 and quarter <= 0.32


def gated_peer(times: Times):
    found = [ratios(times, (off, "torch"), (off, OURS)) for off in (0.5, 0.75)]
    half, quarter = map(geometric_mean, found)
    text = f"{half:.2f}, {quarter:.2f}{count(found[0])}"
    return ">= 1.8, >= 3.2", text, half >= 1.8 and quarter >= 3.2


def best_product(results: Results, dtype: str = "float32") -> float:
    """GFLOP/s of the fastest dense matrix product."""
    products = (peak for peak in results["peaks"] if not peak["name"].startswith("tile"))
    return max((peak["gflops"] for peak in products if peak["dtype"] == dtype), default=math.nan)


def rates(times: Times):
    best = best_product(times.results)
    keys = [(*key, "float32", 0.0) for key in GRID_KEYS if key[2] == 32]
    shares = [times.cases[key][OURS]["gflops"] / best for key in keys]
    average, least = geometric_mean(shares), min(shares)
    text = f"mean {average:.0%}, least {least:.0%} of {best:.0f} GFLOP/s"
    return "mean >= 85%, least >= 78%", text, average >= 0.85 and least >= 0.78


def double(times: Times):
    found = ratios(times, (0.0, "torch"), (0.0, OURS), "float64")
    return ">= 0.9", f"{geometric_mean(found):.2f}{count(found)}", geometric_mean(found) >= 0.9


def programs(wanted: float, name: str, chosen: list, threads: int = 1):
    """Peer's time relative to ours for each of the programs."""

    def bar(times: Times):
        measured = [p for p in chosen if (p.label, threads) in times.programs]
        found = [times.program(p, name, threads) / times.program(p, OURS, threads) for p in measured]
        return at_least(wanted, found, len(chosen))

    return bar


def two_threads_against_jax(times: Times):
    theirs = min(times.program(MLP_ROUND, "jax", threads) for threads in (1, 2))
    return at_least(2.4, [theirs / times.program(MLP_ROUND, OURS, 2)], 1)


def scaling(wanted: float, planned: list):
    """Our own time with one thread relative to that with two."""

    def bar(times: Times):
        both = [p for p in planned if (p.label, 2) in times.programs]
        found = [times.program(p, OURS, 1) / times.program(p, OURS, 2) for p in both]
        return at_least(wanted, found, len(planned))

    return bar


def memory(times: Times):
    def least(column: str) -> tuple[float, float]:
        rows = {row["candidate"]: row[column] / 2**20 for row in times.results["memory"]}
        return rows[OURS], min(size for name, size in rows.items() if name.startswith("torch"))

    (mine, theirs), (own, other) = least("process_bytes"), least("round_bytes")
    text = f"{mine:.0f} against {theirs:.0f} MB; the round itself {own:.0f} against {other:.0f} MB"
    return "less than PyTorch", text, mine < theirs


def interpreter(times: Times):
    shares = [row["share"] for row in times.results["interpreter"]]
    return "< 10% each", ", ".join(f"{share:.1%}" for share in shares), max(shares) < 0.1


def rounds(off: float | None, train: tuple[str, ...] = ("theta", "phi")) -> list[Round]:
    """The CIFAR round of one and of five steps."""
    return [cnn3_round(steps, off, train) for steps in (1, 5)]


INFERENCES = [Inference(gated(0.75), batch) for batch in BATCHES]
ALL_GATED = [Inference(Model("cnn3", CONVS, 0.75), batch) for batch in BATCHES]

BARS: tuple[tuple[str, Callable], ...] = (
    ("dense layers, fastest PyTorch / ours", dense),
    ("3->32@32x32 dense: forward, weight gradient x batch 1, 32, 256", first_layer),
    ("50 %, 75 % off: ours / our dense", gated_own),
    ("50 %, 75 % off: PyTorch masked / ours", gated_peer),
    ("dense layers at batch 32, rate against the best matrix product", rates),
    ("float64 dense layers, PyTorch / ours", double),
    ("MNIST round, JAX / ours", programs(1.3, "jax", [MLP_ROUND])),
    ("MNIST round, tuned PyTorch / ours", programs(2.0, "torch tuned", [MLP_ROUND])),
    ("MNIST round, ordinary PyTorch / ours", programs(4.0, "torch autograd", [MLP_ROUND])),
    ("MNIST round, JAX (best) / ours on two threads", two_threads_against_jax),
    ("MNIST round, one thread / two threads, ours", scaling(1.7, [MLP_ROUND])),
    ("MNIST round of full gradients, tuned PyTorch / ours", programs(1.2, "torch tuned", [FULL_ROUND])),
    ("MNIST round of full gradients, JAX / ours", programs(1.2, "jax", [FULL_ROUND])),
    ("cnn3 round ungated (1, 5 steps), tuned PyTorch / ours", programs(1.2, "torch tuned", rounds(None))),
    (
        "cnn3 round, phi trained, 0 % off (1, 5 steps), tuned PyTorch / ours",
        programs(1.2, "torch tuned", rounds(0.0)),
    ),
    (
        "cnn3 round, phi trained, conv3 75 % off (1, 5 steps), tuned PyTorch / ours",
        programs(1.4, "torch tuned", rounds(0.75)),
    ),
    (
        "cnn3 round, phi fixed, conv3 75 % off (1, 5 steps), tuned PyTorch / ours",
        programs(1.8, "torch tuned", rounds(0.75, ("theta",))),
    ),
    ("cnn3 round (1, 5 steps), one thread / two threads, ours", scaling(1.85, rounds(None))),
    ("adaptation, 50 % off, tuned PyTorch / ours", programs(1.6, "torch tuned", [Adaptation(gated(0.5))])),
    ("adaptation, 75 % off, tuned PyTorch / ours", programs(2.0, "torch tuned", [Adaptation(gated(0.75))])),
    (
        "inference, conv3 75 % off (batch 1, 32, 256), onnxruntime dense / ours",
        programs(1.2, DENSE, INFERENCES),
    ),
    ("inference, all convs 75 % off, onnxruntime / ours", programs(2.5, DENSE, ALL_GATED)),
    ("interpreter's share of a local solve: MNIST MLP, digits, CIFAR network", interpreter),
    ("peak memory of the CIFAR round", memory),
)


def judge(results: Results) -> list[Bar]:
    """All figures."""
    times, out = Times(results), []
    for what, bar in BARS:
        try:
            out.append(Bar(what, *bar(times)))
        except (KeyError, ValueError):
            out.append(Bar(what, "", "not measured", None))
    return out
