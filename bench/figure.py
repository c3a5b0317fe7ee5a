"""The figure: seconds against executed FLOPs, with the line of perfect proportionality. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from bench.bars import Times, geometric_mean
from refimpl.bench.candidates import OURS
from refimpl.bench.cases import GRID, OFF_SHARES, PASSES
from refimpl.bench.session import Results

BATCH = 32
TICKS_MFLOP, TICKS_MS = (30, 100, 300), (0.3, 1, 3)


def draw(results: Results, path: Path) -> None:
    """One panel a pass; a line a layer, its points the shares of channels off."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "refimpl"  # the same results give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text as text
    from matplotlib import pyplot

    times = Times(results)
    figure, axes = pyplot.subplots(1, len(PASSES), figsize=(11, 3.8), sharey=True, layout="constrained")
    for axis, pass_ in zip(axes, PASSES, strict=True):
        _panel(axis, times, pass_)
    axes[0].set_ylabel(f"ms (batch {BATCH})")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(GRID) + 2, frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _panel(axis, times: Times, pass_: str) -> None:
    rates, peer, executed = [], None, []
    for number, geometry in enumerate(GRID):
        shares = [s for s in OFF_SHARES if (geometry.label, pass_, BATCH, "float32", s) in times.cases]
        rows = [times.cases[geometry.label, pass_, BATCH, "float32", share] for share in shares]
        flops = [row[OURS]["executed_flops"] / 1e6 for row in rows]
        executed += flops
        mine = [1e3 * row[OURS]["seconds"] for row in rows]
        axis.plot(flops, mine, "o-", color=f"C{number}", markersize=4, label=geometry.label)
        rates.append(flops[0] / mine[0])
        theirs = [[v["seconds"] for k, v in row.items() if k.startswith("torch")] for row in rows]
        if all(theirs):
            label = None if peer else "PyTorch, masked"
            best = [1e3 * min(values) for values in theirs]
            peer = axis.plot(flops, best, "x:", color=f"C{number}", markersize=4, alpha=0.7, label=label)
    rate, line = geometric_mean(rates), [min(executed), max(executed)]
    axis.plot(line, [x / rate for x in line], "k--", linewidth=0.8, label="proportional to FLOPs")
    axis.set(xscale="log", yscale="log", xlabel="executed MFLOP", title=pass_.replace("_", " "))
    axis.set_xticks(TICKS_MFLOP, map(str, TICKS_MFLOP))
    axis.set_yticks(TICKS_MS, map(str, TICKS_MS))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
