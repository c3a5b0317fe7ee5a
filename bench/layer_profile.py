"""Where the time of our convolutions goes, layer by layer, on one core: `python -m bench.layer_profile`.

A pass with all channels of the result closed still copies its operands into panels, one with all channels of
the operand closed still writes its results, and one with both closed does neither. The differences of their
times are the *copies* and the *stores*. *Calls* are what one sample takes with both closed: tables and calls,
which a batch without masks needs once. What is left of the whole time is *arithmetic*. The weight gradient
writes its sums where it computes them, so that its stores are in its arithmetic. Float32.

`--out FILE` keeps the times as JSON, `--table FILE ...` prints such files as Markdown, side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bench.kept import parser_of, show
from bench.layer_speed import OTHERS, PASSES, TWELVE, Layer, Row, operands

PARTS = ("arithmetic", "copies", "stores", "calls")
Runs = dict[str, Callable[[], Any]]


def passes(layer: Layer, batch: int) -> Iterator[tuple[str, Runs]]:
    """Each pass, whole and with operand or result closed."""
    import numpy as np

    from refimpl.kernels import sample_lanes, tiled_conv, tiled_weight_grad
    from refimpl.kernels.arrays import ALL_ON
    from refimpl.kernels.workspace import scratch

    (channels, filters, _, kernel, stride), (x, w, bias, dy) = layer, operands(layer, batch)
    moves = ((stride, stride), (kernel // 2, kernel // 2), (1, 1))
    closed = {n: np.zeros((batch, n), dtype=bool) for n in (channels, filters)}

    def correlation(source: Any, target: Any, transposed: bool) -> Runs:
        shapes = (source.shape[1:], target.shape[1:], w.shape[2:], moves, transposed, 4)
        memory = scratch(x.dtype, *tiled_conv.convolve_scratch(*shapes))

        def run(reads: Any, writes: Any, samples: int = batch) -> Callable[[], Any]:
            arguments = (w, bias[:0] if transposed else bias, *moves, transposed, reads, writes, False)
            return lambda: tiled_conv.convolve(source[:samples], *arguments, *memory, target[:samples])

        no_source, no_target = closed[source.shape[1]], closed[target.shape[1]]
        once = batch if sample_lanes.together(batch, *shapes) else 1
        return {
            "whole": run(ALL_ON, ALL_ON), "copies": run(ALL_ON, no_target), "stores": run(no_source, ALL_ON),
            "neither": run(no_source, no_target), "calls": run(no_source[:once], no_target[:once], once),
        }  # fmt: skip

    def products() -> Runs:
        sizes = (w.shape[2:], *moves[:2], x.shape[2:], dy.shape[2:], 4)
        memory = scratch(x.dtype, *tiled_weight_grad.weight_grad_scratch(channels, filters, *sizes))
        dw, db = np.zeros_like(w), np.zeros_like(bias)

        def run(x_mask: Any, dy_mask: Any, samples: int = batch) -> Callable[[], Any]:
            arguments = (*moves, x_mask, dy_mask, False, *memory, dw, db)
            return lambda: tiled_weight_grad.weight_grad(x[:samples], dy[:samples], *arguments)

        none, first = (closed[channels], closed[filters]), (closed[channels][:1], closed[filters][:1])
        return {
            "whole": run(ALL_ON, ALL_ON), "copies": run(ALL_ON, none[1]), "neither": run(*none),
            "calls": run(*first, 1),
        }  # fmt: skip

    yield PASSES[0], correlation(x, np.empty_like(dy), False)
    if channels > 3:  # nobody needs the gradient of images
        yield PASSES[1], correlation(dy, np.empty_like(x), True)
    yield PASSES[2], products()


def measure(batch: int, smoke: bool) -> Iterator[Row]:
    """One row for each layer and pass: seconds, operations a second, and the parts' shares."""
    from refimpl.bench.peaks import tile_peak
    from refimpl.bench.timing import SMOKE, Effort, interleave

    effort = SMOKE if smoke else Effort(rounds=9, seconds=0.4, clock="cpu")
    yield {"layer": "tile on registers", "pass": "", "gflops": tile_peak("float32", effort).gflops}
    for layer in TWELVE[:1] if smoke else (*TWELVE, *OTHERS):
        for pass_, runs in passes(layer, batch):
            seconds = {name: timing.seconds for name, timing in interleave(runs, effort).items()}
            whole, neither = seconds["whole"], seconds["neither"]
            parts = {part: seconds[part] - neither for part in ("copies", "stores") if part in seconds}
            parts["calls"] = seconds["calls"]
            shares = {part: time / whole for part, time in parts.items()}
            shares["arithmetic"] = 1 - sum(shares.values())
            pixels = (layer.size // layer.stride) ** 2
            flops = 2 * batch * layer.channels * layer.filters * layer.kernel**2 * pixels
            yield {
                "layer": layer.label, "pass": pass_, "batch": batch, "seconds": whole,
                "gflops": 1e-9 * flops / whole, "shares": shares,
            }  # fmt: skip


def table(files: list[dict[str, Any]]) -> str:
    """Rate and shares for each layer and pass, five columns for each file."""
    from refimpl.files.tables import markdown

    header, rows = ["layer, pass"], {}
    for file in files:
        header += [f"{file['kind']}: GFLOP/s", *PARTS]
        for row in file["rows"]:
            shares = row.get("shares", {})
            cells = [f"{row['gflops']:.0f}", *(f"{shares[p]:.0%}" if p in shares else "-" for p in PARTS)]
            rows.setdefault(f"{row['layer']} {row['pass']}".strip(), []).extend(cells)
    first = next(row for row in files[0]["rows"] if "batch" in row)
    facts = f"Batch {first['batch']}, float32. {files[0]['machine']}."
    return "\n\n".join([facts, markdown(header, [[label, *cells] for label, cells in rows.items()])])


def main() -> None:
    parser = parser_of("bench.layer_profile", __doc__)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    show(options, table, lambda: list(measure(options.batch, options.smoke)))


if __name__ == "__main__":
    main()
