"""Results as Markdown: the README's tables."""

from __future__ import annotations

from bench.bars import Times, best_product, judge
from refimpl.bench.candidates import OURS
from refimpl.bench.cases import FIRST_LAYER, GRID, PASSES
from refimpl.bench.session import Results, refused
from refimpl.bench.tables import duration
from refimpl.files.tables import markdown

BATCH = 32


def command(path: str) -> str:
    """What the marks in the README say around the tables of a file."""
    return f"python -m bench readme {path}"


def machine(results: Results) -> str:
    """One line: processor, versions, how times were taken."""
    facts = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("peers", {}).items())
    clock = "" if facts["clock"] == "wall" else ", processor time"
    return (
        f"{facts['cpu']['model']} ({facts['cpu']['name']}), one core, float32, medians of interleaved "
        f"runs{clock}; best dense matrix product {best_product(results):.0f} GFLOP/s. {versions}."
    )


def layers(results: Results) -> str:
    """A line for each layer and pass at batch 32."""
    times, best = Times(results), best_product(results)
    header = ["layer, pass", "dense GFLOP/s", "of best product", "PyTorch / ours"]
    header += [f"{off} % off: {what}" for off in (50, 75) for what in ("of dense", "PyTorch / ours")]
    rows = []
    for geometry in (FIRST_LAYER, *GRID):
        for pass_ in PASSES:
            found = times.cases.get((geometry.label, pass_, BATCH, "float32", 0.0), {})
            if OURS not in found:
                continue
            rate = found[OURS]["gflops"]
            cells = [f"{geometry.label} {pass_.replace('_', ' ')}", f"{rate:.0f}", f"{rate / best:.0%}"]
            rows.append(cells + _shares(times, geometry.label, pass_))
    return markdown(header, rows)


def _shares(times: Times, layer: str, pass_: str) -> list[str]:
    def seconds(off: float, name: str) -> float:
        try:
            return times.case(layer, pass_, BATCH, off, "float32", name)
        except KeyError:
            return float("nan")

    cells = [f"{seconds(0.0, 'torch') / seconds(0.0, OURS):.2f}"]
    for off in (0.5, 0.75):
        mine = seconds(off, OURS)
        cells += [f"{mine / seconds(0.0, OURS):.2f}", f"{seconds(off, 'torch') / mine:.2f}"]
    return cells


COLUMNS = ("torch autograd", "torch tuned", "torch", "jax", "onnxruntime")


def programs(results: Results) -> str:
    """A line for each program on one thread: our time, on two threads too, and others relative to it."""
    times = Times(results)
    header = ["program", OURS, "2 threads", "PyTorch", "PyTorch tuned", "JAX", "onnxruntime (no gates)"]
    rows = []
    for (label, threads), found in times.programs.items():
        if threads != 1 or OURS not in found:
            continue
        mine = found[OURS]["seconds"]
        two = times.programs.get((label, 2), {}).get(OURS)
        plain = [name for name in found if name.startswith("torch") and "tuned" not in name]
        groups = [plain, *([n for n in found if n.startswith(c)] for c in ("torch tuned", "jax", "onnx"))]
        cells = [label, duration(mine), duration(two["seconds"]) if two else ""]
        rows.append(cells + [_relative([found[name]["seconds"] for name in names], mine) for names in groups])
    return markdown(header, rows)


def _relative(times: list[float], mine: float) -> str:
    return f"{min(times) / mine:.2f}x" if times else ""


def bars(results: Results) -> str:
    """What is wanted against what was measured."""
    verdict = {True: "yes", False: "**no**", None: "-"}
    rows = [[bar.what, bar.wanted, bar.measured, verdict[bar.met]] for bar in judge(results)]
    return markdown(["figure", "wanted", "measured", "met"], rows)


def readme(results: Results) -> str:
    """Machine, layers, programs, what was refused, what was aimed at."""
    why = "\n".join(f"- {reason}" for reason in refused(results))
    parts = (machine(results), layers(results), programs(results), why, bars(results))
    return "\n\n".join(part for part in parts if part)
