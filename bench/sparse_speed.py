"""Pruned convolutions against our own dense kernels: `python -m bench.sparse_speed`.

Each pass of 3x3 convolutions whose weights are kept at random, and the gradient of Conv-4 on 25 images, from
dense and from sparse kernels in turn, in one process and on one core; float32. Every result is first checked
against the dense kernels. `--out FILE` keeps the times as JSON, `--table FILE ...` prints such files side by
side as Markdown. With NUMBA_CPU_NAME=znver3 NUMBA_CPU_FEATURES="" the kernels are those of a processor with
AVX2 only, and the results say so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from refimpl.bench.process import pin

LAYERS = ((32, 8), (32, 16), (32, 32), (64, 8), (64, 16), (64, 32), (128, 8), (128, 16))  # channels, pixels
KEPT, BATCH = (0.2, 0.1), 25
PASSES = ("forward", "input grad", "weight grad")
WHOLE = "conv4 gradient"
Row = dict[str, Any]
Run = Callable[[], object]


def passes(channels: int, pixels: int, share: float) -> Iterator[tuple[str, Run, Run]]:
    """The name of each pass, the sparse and the dense call; raises `AssertionError` if they disagree."""
    import numpy as np

    from refimpl.kernels import conv, sparse
    from refimpl.kernels.workspace import aligned, scratch

    rng, once = np.random.default_rng(0), (1, 1)
    shape = (BATCH, channels, pixels, pixels)

    def images() -> Any:
        out = aligned(np.dtype("float32"), int(np.prod(shape))).reshape(shape)
        out[:] = rng.standard_normal(shape)
        return out

    kept = rng.random((channels, channels, 3, 3)) < share
    w = (rng.standard_normal(kept.shape) * kept).astype("float32")
    bias, dbias, flat = np.zeros(channels, "float32"), np.zeros(channels, "float32"), w.reshape(-1)
    x, dy, y, dx, own_y, own_dx = (images() for _ in range(6))
    dw, own_dw = np.empty_like(w), np.empty_like(w)
    there, back = sparse.tables_of(kept, sparse.Geometry((pixels, pixels), once, once))
    memory = [scratch(x.dtype, *sparse.sparse_scratch(t, channels, channels, 4)) for t in (there, back)]
    memory = [max(memory, key=lambda arrays: arrays[0].size)] * 2
    calls = (
        lambda: sparse.convolve(x, flat, bias, there, *memory[0], own_y),
        lambda: sparse.convolve(dy, flat, bias[:0], back, *memory[1], own_dx),
        lambda: sparse.weight_grad(x, dy, False, there, *memory[0], own_dw.reshape(-1), dbias),
    )
    dense = (
        lambda: conv.forward(x, w, bias, once, once, out=y),
        lambda: conv.input_grad(dy, w, once, once, shape[2:], out=dx),
        lambda: conv.weight_grad(x, dy, once, once, dw, dbias),
    )
    for run in (*calls, *dense):
        run()
    np.testing.assert_array_equal(own_y, y)
    np.testing.assert_array_equal(own_dx, dx)
    np.testing.assert_allclose(own_dw, dw * kept, rtol=0, atol=1e-2)
    yield from zip(PASSES, calls, dense, strict=True)


def gradient(share: float) -> tuple[Run, Run]:
    """The gradient of Conv-4 (64 channels, 32x32 images, five classes) under a mask, and without one."""
    import numpy as np

    from refimpl.nn import zoo
    from refimpl.nn.task import NetworkTask
    from refimpl.nn.weightmask import WeightMask
    from refimpl.rng import SeedTree

    network, rng = zoo.MODELS["conv4"]().build((3, 32, 32), 5), np.random.default_rng(0)
    w, kept = network.layout.initialise(SeedTree(0), "float32"), np.ones(network.layout.size, bool)
    for slot in network.layout.slots:
        if len(slot.shape) == 4:
            kept[slot.start : slot.stop] = rng.random(slot.stop - slot.start) < share
    x, y = rng.standard_normal((BATCH, 3, 32, 32)).astype("float32"), np.arange(BATCH) % 5
    runs = []
    for mask in (WeightMask(network.layout, kept), None):
        task = NetworkTask(network, x, y, train=("theta",), weights=mask)
        (objective,) = task.draw(rng, 1)
        runs.append(lambda objective=objective: objective(w, np.empty_like(w)))
    return runs[0], runs[1]


def measure(smoke: bool) -> Iterator[Row]:
    """One row for each case."""
    from refimpl.bench.timing import SMOKE, Effort, interleave

    effort = SMOKE if smoke else Effort(seconds=2.0, clock="cpu")
    for share in KEPT:
        cases = [
            (f"{channels}->{channels}@{pixels}x{pixels}", *case)
            for channels, pixels in (LAYERS[:1] if smoke else LAYERS)
            for case in passes(channels, pixels, share)
        ]
        cases.append((WHOLE, "gradient", *gradient(share)))
        for layer, pass_, sparse, dense in cases:
            times = interleave({"sparse": sparse, "dense": dense}, effort)
            seconds = {name: timing.seconds for name, timing in times.items()}
            yield {"layer": layer, "pass": pass_, "kept": share, **seconds}


Ratios = dict[tuple[str, str, float], float]  # by layer, pass and share kept


def table(results: Sequence[dict[str, Any]]) -> str:
    """Dense / sparse side by side for each kind of processor: by layer and pass, and the geometric means."""
    from refimpl.files.tables import markdown

    kinds = {one["processor"]: _ratios(one) for one in results}
    layers = [layer for layer in dict.fromkeys(r["layer"] for r in results[0]["rows"]) if layer != WHOLE]
    header = ["layer", *(f"{kind}: {_pruned(k)}" for kind in kinds for k in KEPT)]
    rows = [
        [layer, *(_cell(found, [layer], k) for found in kinds.values() for k in KEPT)] for layer in layers
    ]
    rows.append(["geometric mean", *(_cell(found, layers, k) for found in kinds.values() for k in KEPT)])
    means = ["", *(f"three passes, {_pruned(k)}" for k in KEPT), *(f"{WHOLE}, {_pruned(k)}" for k in KEPT)]
    return (
        "Dense / sparse seconds of the forward pass, the input gradient and the weight gradient; batch 25, "
        f"float32, processor time.\n\n{markdown(header, rows)}\n\nGeometric means over layers and passes, "
        f"and the whole gradient:\n\n{markdown(means, [_summary(*kind, layers) for kind in kinds.items()])}\n"
    )


def _ratios(results: dict[str, Any]) -> Ratios:
    return {(r["layer"], r["pass"], r["kept"]): r["dense"] / r["sparse"] for r in results["rows"]}


def _pruned(kept: float) -> str:
    return f"{100 - 100 * kept:.0f} % pruned"


def _cell(found: Ratios, layers: Sequence[str], kept: float) -> str:
    """The means over the layers, of each pass."""
    means = [geometric_mean(found[layer, p, kept] for layer in layers) for p in PASSES]
    return ", ".join(f"{mean:.2f}" for mean in means)


def _summary(kind: str, found: Ratios, layers: Sequence[str]) -> list[str]:
    means = [geometric_mean(found[layer, p, k] for layer in layers for p in PASSES) for k in KEPT]
    return [kind, *(f"{ratio:.2f}" for ratio in (*means, *(found[WHOLE, "gradient", k] for k in KEPT)))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sparse_speed", description=__doc__)
    parser.add_argument("--out", type=Path, help="where the times are kept as JSON")
    parser.add_argument("--table", type=Path, nargs="+", help="print kept times instead of measuring")
    parser.add_argument("--smoke", action="store_true", help="two samples of one layer, to see that it works")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(path.read_text()) for path in options.table]))
        return
    pin(1)
    from refimpl.files.environment import environment
    from refimpl.kernels.target import VECTOR_BYTES

    cpu = environment()["cpu"]
    processor = f"{cpu['model']} as {cpu['name']}, {8 * VECTOR_BYTES}-bit vectors"
    results = {"processor": processor, "rows": list(measure(options.smoke))}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table([results]))


if __name__ == "__main__":
    main()
