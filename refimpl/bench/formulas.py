"""Layers that have no second, readable kernel, compared with their formulas in NumPy and float64.

The formulas are those of the template for other implementations (`crosscheck/template`), which has nothing of
the kernels that are judged. Closed channels are zero and pass no gradient back.
Source: mathematics.md §2.1 (pools, activations), §2.4 (loss), §5 (proximal operators); Ioffe & Szegedy 2015
(batch normalisation).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from refimpl.contracts import Penalty
from refimpl.crosscheck.golden.describe import describe
from refimpl.crosscheck.template import module
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.layers import Back, BatchNorm2d, Flow, Layer
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from refimpl.optim import prox

Arrays = dict[str, np.ndarray]
SHAPE = (4, 5, 9, 19)  # of sizes that no vector divides
GROUPS = prox.Groups.from_sizes((3, 17, 1, 40))
LAYERS: tuple[tuple[str, Layer], ...] = (
    *(("max pooling", MaxPool2d(*window)) for window in ((2,), (3, 2), (3, 2, 1))),
    *(("average pooling", AvgPool2d(*window)) for window in ((2,), (3, 2), (3, 2, 1))),
    ("global pooling", GlobalAvgPool2d()),
    ("relu", ReLU()),
    ("softplus", Softplus()),
    ("tanh", Tanh()),
    ("batch normalisation", BatchNorm2d("norm", SHAPE[1])),
)


class Comparison(NamedTuple):
    """A layer's results, those of its formula, and the number of terms of the longest sum in any of them."""

    name: str
    got: Arrays
    wanted: Arrays
    terms: int


def comparisons(dtype: str) -> Iterator[Comparison]:
    """Every layer that has a formula, on normal data of `dtype` with a third of the channels closed."""
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal(SHAPE).astype(dtype), rng.random(SHAPE[:2]) > 1 / 3
    for name, layer in LAYERS:
        yield alone(name, layer, x, mask, rng)
    yield cross_entropy(dtype, rng)
    yield from proximal(dtype, rng)


def formula(kind: str, given: Arrays, **settings: Any) -> Arrays:
    """What a case of golden files of this kind has as outputs, computed in float64."""
    wide = {name: array.astype(float) if array.dtype.kind == "f" else array for name, array in given.items()}
    found: Arrays = module("numpy").KINDS[kind](wide, {**settings, "kind": kind})
    return found


def alone(name: str, layer: Layer, x: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Comparison:
    """The output of a layer, and the gradients of its input and of the parameters it may have.

    All channels are open to a layer with parameters: what it computes in one depends on all samples.
    """
    params = {one.name: rng.standard_normal(one.shape).astype(x.dtype) for one in layer.parameters()}
    grads = {one: np.empty_like(array) for one, array in params.items()}
    closed = None if params else mask
    y, _, cache = layer.forward(params, x, Flow(reads=closed, writes=closed))
    dy = rng.standard_normal(y.shape).astype(x.dtype)
    dx = layer.backward(dy, cache, params, grads, Back(dy_mask=closed))
    assert dx is not None
    (entry,) = describe([layer])
    own = {one.rpartition(".")[2]: array for one, array in params.items()}
    shown = np.ones_like(mask) if closed is None else mask
    wanted = formula(entry.pop("type"), {"x": x, "dy": dy, "mask": shown, **own}, **entry)
    got = {"y": y, "grad.x": dx} | {f"grad.{one.rpartition('.')[2]}": array for one, array in grads.items()}
    return Comparison(name, got, wanted, x.size // x.shape[1] if params else x[0, 0].size)


def cross_entropy(dtype: str, rng: np.random.Generator) -> Comparison:
    """Mean of -log softmax at the labels, and its gradient."""
    logits, labels = 5 * rng.standard_normal((7, 10)).astype(dtype), rng.integers(0, 10, 7)
    dlogits = np.empty_like(logits)
    loss = softmax_cross_entropy(logits, labels, dlogits)
    wanted = formula("cross_entropy", {"logits": logits, "labels": labels})
    got = {"loss": np.array(loss), "grad.logits": dlogits}
    return Comparison("cross-entropy", got, wanted, logits.shape[1])


def proximal(dtype: str, rng: np.random.Generator) -> Iterator[Comparison]:
    """Soft thresholds by entry and by group; some entries and groups become zero, others do not."""
    v, step, rho = rng.standard_normal(GROUPS.size).astype(dtype), 0.5, 1.0
    cases: tuple[tuple[str, str, Penalty], ...] = (
        ("group prox", "group_lasso", prox.GroupLasso(GROUPS, rho)),
        ("l1 prox", "l1", prox.L1(rho)),
    )
    for name, kind, penalty in cases:
        out = np.empty_like(v)
        got = {"prox": out, "value": np.array(penalty.prox(v, step, out))}
        given = {"v": v, "indptr": GROUPS.indptr, "indices": GROUPS.indices}
        wanted = formula("prox", given, step=step, penalty={"type": kind, "rho": rho})
        yield Comparison(name, got, wanted, v.size)
