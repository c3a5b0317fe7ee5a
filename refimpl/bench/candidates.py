"""Programs that compute a case: each is checked against the oracle, then timed if it is right.

Every installation has two of them, this package and NumPy.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from refimpl.bench.cases import RESULTS, Case, LayerData, layer_data
from refimpl.bench.oracle import Arrays, Reference, WrongResultError, check, reference, windows
from refimpl.bench.timing import Effort, interleave
from refimpl.kernels import conv, linear

OURS = "refimpl"
NUMPY = "numpy + BLAS"
TORCH, ONNX = "torch", "onnxruntime"


class Candidate(NamedTuple):
    """A program to check and to time.

    run: the function that is timed; arrays: converts its result to arrays in PyTorch's layout; skips: whether
    closed channels are left out; own: the right result, if the program computes something else than the case
    (a network without gates).
    """

    name: str
    run: Callable[[], Any]
    arrays: Callable[[Any], Arrays]
    skips: bool = False
    own: Reference | None = None


Maker = Callable[[Case, LayerData], Candidate | None]  # None: this candidate has no such pass


class Passes(NamedTuple):
    """The three passes of a layer; a result may be flat, or of any shape with as many entries."""

    forward: Callable[[], np.ndarray]
    input_grad: Callable[[], np.ndarray]
    weight_grad: Callable[[], tuple[np.ndarray, np.ndarray]]

    def candidate(self, name: str, case: Case, data: LayerData, skips: bool = False) -> Candidate:
        """The candidate of the case's pass, whose results get the shapes of the data."""
        forms = dict(zip(("y", "dx", "dw", "db"), (data.dy, data.x, data.weight, data.bias), strict=True))

        def arrays(result: Any) -> Arrays:
            results = result if isinstance(result, tuple) else (result,)
            pairs = zip(RESULTS[case.pass_], results, strict=True)
            return {name: array.reshape(forms[name].shape) for name, array in pairs}

        return Candidate(name, getattr(self, case.pass_), arrays, skips)


def ours(case: Case, data: LayerData) -> Candidate:
    """This package's kernels: closed channels are skipped."""
    x, weight, bias, dy, mask = data
    kernels: Any = conv
    g = case.geometry
    place: tuple[Any, ...] = ((g.stride, g.stride), (g.pad, g.pad))
    size: tuple[Any, ...] = (x.shape[2:],)
    more: dict[str, Any] = {"dilation": (g.dilation, g.dilation), "groups": g.groups}
    if g.linear:
        kernels, place, size, more = linear, (), (), {}
        x, weight, dy = (np.ascontiguousarray(array) for array in _flat(data))
    dw, db = np.empty_like(weight), np.empty_like(bias)

    def weight_grad() -> tuple[np.ndarray, np.ndarray]:
        kernels.weight_grad(x, dy, *place, dw, db, None, mask, **more)
        return dw, db

    passes = Passes(
        lambda: kernels.forward(x, weight, bias, *place, None, mask, **more),
        lambda: kernels.input_grad(dy, weight, *place, *size, mask, **more),
        weight_grad,
    )
    return passes.candidate(OURS, case, data, skips=True)


def torch_twin(case: Case, data: LayerData, name: str = TORCH, **layout: Any) -> Candidate:
    """PyTorch's layer, whose results are multiplied by the mask; `layout`: its memory layout, if not NCHW."""
    from refimpl.crosscheck.bridges.torch.passes import layer_passes

    g = case.geometry
    where = None if g.linear else (g.stride, g.pad, g.dilation, g.groups)
    passes = layer_passes(data.x, data.weight, data.bias, data.dy, data.mask, where, **layout)
    return Passes(*passes).candidate(name, case, data)


def _flat(data: LayerData) -> Iterator[np.ndarray]:
    """x, weight and dy of a fully connected layer as matrices."""
    return (array.reshape(array.shape[:2]) for array in (data.x, data.weight, data.dy))


def numpy_blas(case: Case, data: LayerData) -> Candidate | None:
    """Matrix products by NumPy's BLAS (for a convolution of unfolded windows), multiplied by the mask.

    Convolutions with stride, dilation or groups are left out.
    """
    if not case.geometry.plain:
        return None
    passes = (_numpy_linear if case.geometry.linear else _numpy_conv)(case, data)
    return passes.candidate(NUMPY, case, data)


def _numpy_linear(case: Case, data: LayerData) -> Passes:
    gate = None if data.mask is None else data.mask.astype(case.dtype)
    x, weight, dy = _flat(data)

    def forward() -> np.ndarray:
        y = x @ weight.T + data.bias
        return y if gate is None else y * gate

    def input_grad() -> np.ndarray:
        return (dy if gate is None else dy * gate) @ weight

    def weight_grad() -> tuple[np.ndarray, np.ndarray]:
        masked = dy if gate is None else dy * gate
        return masked.T @ x, masked.sum(axis=0)

    return Passes(forward, input_grad, weight_grad)


def _numpy_conv(case: Case, data: LayerData) -> Passes:
    x, weight, bias, dy, mask = data
    g = case.geometry
    gate = None if mask is None else mask[:, :, None].astype(case.dtype)
    matrix, pixels = weight.reshape(g.filters, -1), g.result_size**2
    columns = np.empty((case.batch, matrix.shape[1], pixels), dtype=case.dtype)
    shaped = columns.reshape(case.batch, g.channels, g.kernel, g.kernel, g.result_size, g.result_size)
    flat_dy = dy.reshape(case.batch, g.filters, pixels)

    def forward() -> np.ndarray:
        np.copyto(shaped, windows(x, g.kernel, g.pad))
        y = np.matmul(matrix, columns)
        y += bias[:, None]
        return y if gate is None else np.multiply(y, gate, out=y)

    def input_grad() -> np.ndarray:
        np.matmul(matrix.T, flat_dy if gate is None else flat_dy * gate, out=columns)
        edge, last = g.size + 2 * g.pad, g.result_size
        padded = np.zeros((case.batch, g.channels, edge, edge), dtype=case.dtype)
        for i in range(g.kernel):
            for j in range(g.kernel):
                padded[:, :, i : i + last, j : j + last] += shaped[:, :, i, j]
        return padded[:, :, g.pad : g.pad + g.size, g.pad : g.pad + g.size]

    def weight_grad() -> tuple[np.ndarray, np.ndarray]:
        np.copyto(shaped, windows(x, g.kernel, g.pad))
        masked = flat_dy if gate is None else flat_dy * gate
        dw = np.zeros_like(matrix)
        for one, part in zip(masked, columns, strict=True):
            dw += one @ part.T
        return dw, masked.sum(axis=(0, 2))

    return Passes(forward, input_grad, weight_grad)


INSTALLED: tuple[Maker, ...] = (ours, numpy_blas)


# --- timing them

Row = dict[str, Any]  # one candidate on one case, as in the JSON file


def time_case(case: Case, makers: Iterable[Maker], effort: Effort) -> list[Row]:
    """One row for each candidate that can run this case; a refused one has `refused` instead of times."""
    data = layer_data(case)
    made = [candidate for make in makers if (candidate := make(case, data)) is not None]
    facts = {
        "layer": case.geometry.label,
        "channels": case.geometry.channels,
        "pass": case.pass_,
        "batch": case.batch,
        "off": case.off,
        "dtype": case.dtype,
        "dense_flops": case.dense_flops,
    }
    return timed_rows(facts, made, reference(case, data), case.flops, effort)


def timed_rows(
    facts: Row, candidates: Iterable[Candidate], wanted: Reference, executed: float, effort: Effort
) -> list[Row]:
    """`facts` with what was measured of each candidate, or with the reason why it was refused.

    executed: FLOPs of a candidate that skips closed channels; others execute `facts["dense_flops"]`.
    """
    errors: dict[str, float] = {}
    right: dict[str, Candidate] = {}
    refused: list[Row] = []
    for candidate in candidates:
        try:
            arrays = candidate.arrays(candidate.run())
            errors[candidate.name] = check(candidate.name, arrays, candidate.own or wanted)
            right[candidate.name] = candidate
        except WrongResultError as error:
            refused.append(facts | {"candidate": candidate.name, "refused": str(error)})
    rows = []
    for name, timing in interleave({name: one.run for name, one in right.items()}, effort).items():
        flops = executed if right[name].skips else facts["dense_flops"]
        rates = {"noise": timing.noise, "executed_flops": flops, "gflops": 1e-9 * flops / timing.seconds}
        rows.append(facts | {"candidate": name, "error": errors[name]} | timing._asdict() | rates)
    return rows + refused
