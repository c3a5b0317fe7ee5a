"""Normalised models on one thread against PyTorch and onnxruntime: `python -m bench.deep_speed`.

Of resnet20, conv4 and resnet12 in float32: one gradient with the statistics of the batch, and the logits of
the same samples with frozen statistics. Then both with half of the channels of every second convolution
closed by its gate; the others run the network without its gates, which would multiply by masks besides.
PyTorch runs as its users write it: with autograd, in evaluation with running statistics, in both layouts.
Gradients and logits must be near this package's in float64 before anything is timed. Every candidate then
takes its turn; "PyTorch / ours" is the time of PyTorch's faster layout divided by ours. `--out FILE` keeps
the times as JSON, `--table FILE ...` prints such files side by side. `bench/layer_speed.py` says how both
sides are made to use AVX2 only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.kept import parser_of, show

# Name, samples' shape, batch size.
CASES = (
    ("resnet20", (3, 32, 32), 64),
    ("conv4", (3, 32, 32), 25),
    ("conv4", (1, 28, 28), 25),
    ("resnet12", (3, 32, 32), 25),
)
LAYOUTS = ("NCHW", "channels-last")
COLUMNS = ("ours, ms", "PyTorch", "onnxruntime")
NEAR = 5e-3  # of the reference's length; where a sum is nearly 0, rounding decides which way ReLU goes


def torch_gradient(network, w, x, y, channels_last: bool) -> Callable:
    """PyTorch's gradient by autograd."""
    import torch
    from torch.nn import functional

    module, images = torch_side(network, w, x, channels_last)
    labels, slots = torch.from_numpy(y), network.layout.slots
    wanted = [module.get_parameter(slot.name) for slot in slots if slot.parameter.part == "theta"]
    return lambda: torch.autograd.grad(functional.cross_entropy(module(images), labels), wanted)


def torch_side(network, w, x, channels_last: bool):
    """The module and the samples in one memory layout."""
    import torch

    from refimpl.crosscheck.bridges.torch.network import build

    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = build(network, w, train=("theta",)).to(memory_format=layout)
    return module, torch.from_numpy(x).to(memory_format=layout)


def torch_logits(network, w, x, channels_last: bool) -> Callable:
    """PyTorch's inference."""
    import torch

    module, images = torch_side(network, w, x, channels_last)
    return torch.inference_mode()(lambda: module(images))


def onnx_logits(network, w, x) -> Callable:
    """Inference by onnxruntime."""
    import onnxruntime

    from refimpl.crosscheck.bridges.onnx import INPUT, OUTPUT, export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = export(network, w).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run([OUTPUT], {INPUT: x})[0]


def our_gradient(network, w, x, y) -> Callable:
    """This package's gradient of the backbone."""
    import numpy as np

    from refimpl.nn.task import NetworkTask

    (objective,) = NetworkTask(network, x, y, train=("theta",)).draw(np.random.default_rng(0), 1)
    gradient = np.empty_like(w)

    def run():
        objective(w, gradient)
        return gradient[network.layout.theta]

    return run


def our_logits(network, w, x) -> Callable:
    """This package's inference."""
    from refimpl.nn.predict import Predictor

    predictor = Predictor(network, w)
    return lambda: predictor(x).logits


def half_closed(name: str, shape):
    """The model with a gate on every second convolution, and parameters that close half of its channels."""
    import numpy as np

    from refimpl.nn import zoo
    from refimpl.nn.layers import Conv2d
    from refimpl.nn.plan import every_layer
    from refimpl.rng import SeedTree

    convolutions = [
        layer.name for layer in every_layer(zoo.network(name, (), shape).layers) if isinstance(layer, Conv2d)
    ]
    network = zoo.network(name, convolutions[1::2], shape)
    w, rng = network.layout.initialise(SeedTree(0), "float32"), np.random.default_rng(1)
    views = network.layout.views(w)
    for block in network.gates:
        channels = block.gate.out_channels
        closed = rng.permutation(np.arange(channels) < channels // 2)
        views[f"{block.gate.name}.fc2.weight"][:] = 0
        views[f"{block.gate.name}.fc2.bias"][0::2] = np.where(closed, 0.5, -0.5)
        views[f"{block.gate.name}.fc2.bias"][1::2] = 0
    return network, w


def open_twin(network, w):
    """The same network with all channels open and no gates."""
    from refimpl.nn.norms import without_gates

    plain, arrays = without_gates(network), network.layout.to_arrays(w)
    return plain, plain.layout.from_arrays({name: arrays[name] for name in plain.layout.by_name})


def measure(name: str, shape, batch: int, effort) -> list[dict[str, object]]:
    """All passes of one model; raises `AssertionError` where two sides differ that compute the same."""
    import numpy as np

    from refimpl.nn import zoo
    from refimpl.nn.norms import calibrate, frozen
    from refimpl.rng import SeedTree

    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *shape)).astype("float32")
    found = []
    for gated in (False, True):
        network = zoo.network(name, (), shape)
        w = network.layout.initialise(SeedTree(0), "float32")
        if gated:
            network, w = half_closed(name, shape)
        still, y = frozen(network), rng.integers(0, network.classes, batch)
        start = still.layout.initialise(SeedTree(0), "float32")
        at = still.layout.from_arrays(still.layout.to_arrays(start) | network.layout.to_arrays(w))
        at = calibrate(still, at, x)
        arrays = still.layout.to_arrays(at)
        w = network.layout.from_arrays({name: arrays[name] for name in network.layout.by_name})
        others, idle = open_twin(network, w), open_twin(still, at)
        passes = {
            "gradient": {
                "ours": our_gradient(network, w, x, y),
                **{key: torch_gradient(*others, x, y, key != "NCHW") for key in LAYOUTS},
            },
            "inference": {
                "ours": our_logits(still, at, x),
                **{key: torch_logits(*idle, x, key != "NCHW") for key in LAYOUTS},
                "onnxruntime": onnx_logits(*idle, x),
            },
        }
        wide = x.astype("float64")
        exact = {
            "gradient": our_gradient(network, w.astype("float64"), wide, y),
            "inference": our_logits(still, at.astype("float64"), wide),
        }
        for what, runs in passes.items():
            check(f"{name}, {what}", exact[what](), {"ours": runs["ours"]} if gated else runs)
            found.append(
                timed(f"{name}, {'x'.join(map(str, shape))}, batch {batch}", what, gated, runs, effort)
            )
    return found


def check(what: str, reference, runs: dict[str, Callable]) -> None:
    """Raise `AssertionError` where a result is far from the reference."""
    import numpy as np

    for key, run in runs.items():
        result = run()
        parts = result if isinstance(result, tuple) else (result,)
        flat = np.concatenate([np.asarray(part).ravel() for part in parts])
        error = np.linalg.norm(flat - reference.ravel()) / np.linalg.norm(reference)
        assert error < NEAR, f"{what}: {key} is {error:.1e} from float64"


def timed(case: str, what: str, gated: bool, runs: dict[str, Callable], effort) -> dict[str, object]:
    """Seconds of every candidate."""
    from refimpl.bench.timing import interleave

    times = {key: timing.seconds for key, timing in interleave(runs, effort).items()}
    return {"network": case, "pass": f"{what}, half closed" if gated else what, **times}


def table(files: list[dict[str, Any]]) -> str:
    """Kept times as Markdown, the kinds of processor side by side."""
    from refimpl.files.tables import markdown

    head = ["network, pass", *(f"{one['kind']}: {what}" for one in files for what in COLUMNS)]
    rows = [
        [f"{kinds[0]['network']}: {kinds[0]['pass']}", *(cell for times in kinds for cell in cells(times))]
        for kinds in zip(*(one["rows"] for one in files), strict=True)
    ]
    measured = f"PyTorch / ours and onnxruntime / ours. {files[0]['machine']}."
    return f"{measured}\n\n{markdown(head, rows)}"


def cells(times: dict[str, Any]) -> list[str]:
    """Our milliseconds, and how many times as long PyTorch's faster layout and onnxruntime take."""
    own, torch, onnx = times["ours"], min(times[key] for key in LAYOUTS), times.get("onnxruntime")
    return [f"{1e3 * own:.1f}", f"{torch / own:.2f}", f"{onnx / own:.2f}" if onnx else "-"]


def main() -> None:
    parser = parser_of("bench.deep_speed", __doc__)
    parser.add_argument("--model", choices=sorted({case[0] for case in CASES}), help="this model alone")
    options = parser.parse_args()

    def rows() -> list[dict[str, Any]]:
        import torch

        torch.set_num_threads(1)
        from refimpl.bench.timing import SMOKE, Effort

        effort = SMOKE if options.smoke else Effort(rounds=7, seconds=3.0, clock="cpu")
        chosen = [case for case in CASES if options.model in (None, case[0])]
        return [one for case in chosen for one in measure(*case, effort)]

    show(options, table, rows)


if __name__ == "__main__":
    main()
