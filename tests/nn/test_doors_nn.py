"""Whatever reaches the kernels through layers is made tidy or refused."""

from __future__ import annotations

import numpy as np
import pytest
from awkward import AWKWARD, REFUSED, read_only, refuses, strided
from checks import assert_same_bits

from refimpl.nn.chain import Residual
from refimpl.nn.context import Context
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import Back, BatchNorm2d, Conv2d, Flow, Linear
from refimpl.nn.layout import Layout
from refimpl.nn.norms import FrozenNorm2d, GroupNorm
from refimpl.nn.pointwise import LeakyReLU, ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from refimpl.rng import SeedTree

BOTH = Context(train=("theta", "phi"))


LAYERS = {
    "conv": (Conv2d("c", 3, 4, 3), (3, 6, 5)),
    "conv without bias": (Conv2d("c", 3, 4, 3, bias=False), (3, 6, 5)),
    "linear": (Linear("l", 6, 4), (6,)),
    "batch norm": (BatchNorm2d("b", 3), (3, 6, 5)),
    "group norm": (GroupNorm("b", 4, groups=2), (4, 6, 5)),
    "frozen norm": (FrozenNorm2d("b", 3), (3, 6, 5)),
    "relu": (ReLU(), (3, 6, 5)),
    "leaky relu": (LeakyReLU(0.1), (3, 6, 5)),
    "softplus": (Softplus(), (3, 6, 5)),
    "tanh": (Tanh(), (3, 6, 5)),
    "max": (MaxPool2d(2), (3, 6, 4)),
    "overlapping max": (MaxPool2d(3, 1), (3, 6, 5)),
    "average": (AvgPool2d(2), (3, 6, 4)),
    "overlapping average": (AvgPool2d(3, 2), (3, 7, 5)),
    "padded max": (MaxPool2d(3, 2, 1), (3, 6, 5)),
    "global": (GlobalAvgPool2d(), (3, 6, 5)),
    "flatten": (Flatten(), (3, 6, 5)),
    "residual": (Residual((Conv2d("c", 3, 3, 3, padding=1), ReLU())), (3, 6, 5)),
    "gated": (Gated(ChannelGate("g", 3, 4), (Conv2d("c", 3, 4, 3), ReLU())), (3, 6, 5)),
}
ANY_SHAPE = {
    "relu",
    "leaky relu",
    "softplus",
    "tanh",
    "flatten",
}  # these take samples with any number of axes
MASKED = [
    name for name in LAYERS if name not in ("batch norm", "group norm", "frozen norm", "residual", "gated")
]
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


class Passes:
    """A layer with parameters, samples and a gradient, run forward and backward."""

    def __init__(self, name, dtype, samples=4):
        self.layer, shape = LAYERS[name]
        self.layout, rng = Layout(self.layer.parameters()), np.random.default_rng(0)
        self.w = self.layout.initialise(SeedTree(0), dtype)
        self.x = rng.standard_normal((samples, *shape)).astype(dtype)
        self.dy = rng.standard_normal((samples, *self.layer.output_shape(shape))).astype(dtype)

    def forward(self, x, flow=None):
        return self.layer.forward(self.layout.views(self.w), x, flow or Flow(BOTH))

    def backward(self, cache, dy, back=None):
        gradient = np.full_like(self.w, 7)
        params, grads = self.layout.views(self.w), self.layout.views(gradient)
        return self.layer.backward(dy, cache, params, grads, back or Back(BOTH)), gradient


# Layers


@both_dtypes
@pytest.mark.parametrize("form", AWKWARD)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_arrays_however_they_lie(name, form, dtype):
    passes, awkward = Passes(name, dtype), AWKWARD[form]
    y, _, cache = passes.forward(passes.x)
    expected = passes.backward(cache, passes.dy)
    found, _, odd_cache = passes.forward(awkward(passes.x))
    assert_same_bits(found, y)
    for got, wanted in zip(passes.backward(odd_cache, awkward(passes.dy)), expected, strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_refuse_what_they_would_have_to_change(name, form):
    passes, spoil = Passes(name, "float32"), REFUSED[form]
    _, _, cache = passes.forward(passes.x)
    if not (name in ANY_SHAPE and form in ("an axis less", "an axis more")):
        refuses(lambda: passes.forward(spoil(passes.x)))
    refuses(lambda: passes.backward(cache, spoil(passes.dy)))
    refuses(lambda: passes.backward(cache, passes.dy[:-1].copy()))
    refuses(lambda: passes.backward(cache, passes.dy[:, :-1].copy()))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_give_nothing_for_no_samples(name):
    passes = Passes(name, "float32", samples=0)
    y, _, cache = passes.forward(passes.x)
    assert y.shape == passes.dy.shape
    dx, _ = passes.backward(cache, passes.dy)
    assert dx.shape == passes.x.shape


@pytest.mark.parametrize("name", MASKED)
def test_masks_are_boolean_and_fit(name):
    passes = Passes(name, "float64")
    is_weighted = bool(passes.layer.parameters())
    mask = np.random.default_rng(1).random((4, passes.x.shape[1])) < 0.5
    x = passes.x * mask.reshape(*mask.shape, *(1,) * (passes.x.ndim - 2))

    def flow(mask):
        return Flow(BOTH, None, mask) if name == "softplus" else Flow(BOTH, mask)

    def back(mask):
        return Back(BOTH, None if is_weighted else mask, mask)

    y, _, cache = passes.forward(x, flow(mask))
    dx, _ = passes.backward(cache, passes.dy, back(mask))
    for awkward in (np.asfortranarray, strided, read_only):
        odd = awkward(mask)
        found, _, odd_cache = passes.forward(x, flow(odd))
        assert_same_bits(found, y)
        assert_same_bits(passes.backward(odd_cache, passes.dy, back(odd))[0], dx)
    if name == "flatten":
        return  # it hands the mask on to layers that look at it
    for wrong in (
        mask.astype(float),
        mask.astype(int),
        mask[:-1],
        mask[:, :0],
        mask[0],
        np.ones((4, 7), bool),
    ):
        refuses(lambda wrong=wrong: passes.forward(x, flow(wrong)))
        refuses(lambda wrong=wrong: passes.backward(cache, passes.dy, back(wrong)))
