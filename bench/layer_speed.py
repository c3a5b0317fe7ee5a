"""Dense convolutions of many shapes against PyTorch, on one core: `python -m bench.layer_speed`.

The layers of the other tables, and layers with other kernels, strides and odd numbers of channels; float32.
Our results are first checked against PyTorch's; then we and PyTorch in two memory layouts take turns in one
process. `--out FILE` keeps the times as JSON, `--table FILE ...` prints such files as Markdown, side by side.

With NUMBA_CPU_NAME=znver3 NUMBA_CPU_FEATURES="" and ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 both
sides use AVX2 only, on a processor that has more; what masked stores cost on AMD's it does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import geometric_mean
from typing import Any, NamedTuple

from bench.kept import parser_of, show


class Layer(NamedTuple):
    """A convolution of square images, padded so that stride 1 keeps their size."""

    channels: int
    filters: int
    size: int
    kernel: int = 3
    stride: int = 1

    @property
    def label(self) -> str:
        """The name in tables."""
        more = f", {self.kernel}x{self.kernel}" + (f" stride {self.stride}" if self.stride > 1 else "")
        return f"{self.channels}->{self.filters}@{self.size}x{self.size}{more}"


TWELVE = (Layer(3, 32, 32), Layer(32, 64, 16), Layer(64, 64, 16), Layer(64, 128, 8), Layer(128, 128, 8))
OTHERS = (
    Layer(16, 16, 32), Layer(16, 32, 32, 3, 2), Layer(32, 32, 16), Layer(32, 64, 16, 3, 2), Layer(64, 64, 8),
    Layer(16, 32, 32, 1, 2), Layer(64, 128, 16, 1), Layer(48, 96, 20, 5), Layer(96, 48, 14, 7),
    Layer(20, 48, 28),
)  # fmt: skip
PASSES = ("forward", "input grad", "weight grad")
GROUPS = {"3x3 layers of the paper's networks": TWELVE, "other layers": OTHERS}
Row = dict[str, Any]


def operands(layer: Layer, batch: int) -> tuple[Any, Any, Any, Any]:
    """Random x, weight, bias and dy of a layer, float32."""
    import numpy as np

    rng, (channels, filters, size, kernel, stride) = np.random.default_rng(0), layer
    x = rng.standard_normal((batch, channels, size, size), dtype=np.float32)
    w = rng.standard_normal((filters, channels, kernel, kernel), dtype=np.float32)
    bias, rest = rng.standard_normal(filters, dtype=np.float32), -(-size // stride)
    return x, w, bias, rng.standard_normal((batch, filters, rest, rest), dtype=np.float32)


def passes(layer: Layer, batch: int) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """Each pass with the calls of all sides; raises `AssertionError` where results are far apart."""
    import numpy as np
    import torch

    from refimpl.kernels import conv

    (_, filters, size, kernel, stride), (x, w, bias, dy) = layer, operands(layer, batch)
    step, pad = (stride, stride), (kernel // 2, kernel // 2)
    dw, db = np.empty_like(w), np.empty_like(bias)

    def weight_grad() -> Any:
        conv.weight_grad(x, dy, step, pad, dw, db)
        return dw

    def theirs(form: Any, pass_: str) -> Callable[[], Any]:
        images, weight, slopes = (torch.from_numpy(a).to(memory_format=form) for a in (x, w, dy))
        if pass_ == "forward":
            shift = torch.from_numpy(bias)
            return lambda: torch.conv2d(images, weight, shift, stride, pad)
        at = PASSES.index(pass_) - 1
        which = [at == 0, at == 1, at == 1]
        back = torch.ops.aten.convolution_backward
        rest = ([filters], step, pad, [1, 1], False, [0, 0], 1, which)
        return lambda: back(slopes, images, weight, *rest)[at]

    own = (
        lambda: conv.forward(x, w, bias, step, pad),
        lambda: conv.input_grad(dy, w, step, pad, (size, size)),
        weight_grad,
    )
    for pass_, ours in zip(PASSES, own, strict=True):
        if pass_ == "input grad" and layer.channels == 3:
            continue  # nobody needs the gradient of images
        runs = {"ours": ours, "NCHW": theirs(torch.contiguous_format, pass_)}
        runs["channels-last"] = theirs(torch.channels_last, pass_)
        results = [np.asarray(run()) for run in runs.values()]
        for other in results[1:]:
            assert np.linalg.norm(other - results[0]) < 1e-4 * np.linalg.norm(results[0]), (layer, pass_)
        yield pass_, runs


def measure(batches: list[int], smoke: bool) -> Iterator[Row]:
    """One row for each case: seconds of each side."""
    import torch

    from refimpl.bench.timing import SMOKE, Effort, interleave

    torch.set_num_threads(1)
    effort = SMOKE if smoke else Effort(rounds=7, seconds=0.4, clock="cpu")
    with torch.inference_mode():
        for layer in TWELVE[:1] if smoke else (*TWELVE, *OTHERS):
            for batch in batches:
                for pass_, runs in passes(layer, batch):
                    seconds = {name: timing.seconds for name, timing in interleave(runs, effort).items()}
                    yield {"layer": layer.label, "pass": pass_, "batch": batch, **seconds}


def table(files: list[dict[str, Any]]) -> str:
    """PyTorch's faster layout / ours for each layer and pass, a column for each file and batch."""
    from refimpl.files.tables import markdown

    columns: dict[str, dict[tuple[str, str], float]] = {}
    for file in files:
        for row in file["rows"]:
            ratio = min(row["NCHW"], row["channels-last"]) / row["ours"]
            columns.setdefault(f"{file['kind']}, {row['batch']}", {})[row["layer"], row["pass"]] = ratio
    first = next(iter(columns.values()))
    rows = [
        [f"{layer} {pass_}", *(f"{own[layer, pass_]:.2f}" for own in columns.values())]
        for layer, pass_ in first
    ]
    for name, group in GROUPS.items():
        labels = {layer.label for layer in group}
        found = [[ratio for key, ratio in own.items() if key[0] in labels] for own in columns.values()]
        if all(found):
            rows.append([f"{name}: mean", *(f"{geometric_mean(one):.2f}" for one in found)])
            rows.append([f"{name}: least", *(f"{min(one):.2f}" for one in found)])
    return "\n\n".join([f"PyTorch / ours. {files[0]['machine']}.", markdown(["layer, pass", *columns], rows)])


def main() -> None:
    parser = parser_of("bench.layer_speed", __doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[32])
    options = parser.parse_args()
    show(options, table, lambda: list(measure(options.batches, options.smoke)))


if __name__ == "__main__":
    main()
