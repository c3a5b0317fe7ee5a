"""Every layer: value against a formula, gradient against finite differences, masks that really skip."""

from __future__ import annotations

import numpy as np
import pytest
import tape
from checks import assert_close, assert_gradients, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from strategies import LayerCase, activations, channelwise_cases, conv_cases, examples, linear_cases, pools

from refimpl.errors import InputError
from refimpl.nn.gradcheck import probe
from refimpl.nn.layers import Back, BatchNorm2d, Conv2d, Flow, Linear
from refimpl.nn.layout import Layout
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

CHANNELWISE = st.one_of(pools, activations, st.just(GlobalAvgPool2d()), st.just(Flatten()))
CASES = st.one_of(conv_cases(), linear_cases(), channelwise_cases(CHANNELWISE))


def broadcast(mask, array):
    """The mask at every entry of `array` (N, C, ...), or (N, C*size) where C stands for groups."""
    if mask is None:
        return np.ones(array.shape, dtype=bool)
    maps = array.reshape(*mask.shape, -1)
    return np.broadcast_to(mask[..., None], maps.shape).reshape(array.shape)


class Run:
    """A layer on numbers from the case's seed, run forward and backward."""

    def __init__(self, case: LayerCase, dtype="float64", closed=0.0, masked=True, dy_closed=0.0):
        rng = np.random.default_rng(case.seed)
        layer, layout = case.layer, Layout(case.layer.parameters())
        self.w = rng.standard_normal(layout.size).astype(dtype)
        x = rng.standard_normal((case.batch, *case.shape)).astype(dtype)
        self.x = np.where(broadcast(case.reads, x), x, x.dtype.type(closed))
        reads, writes = (case.reads, case.writes) if masked else (None, None)
        params = layout.views(self.w)
        self.y, self.mask, cache = layer.forward(params, self.x, Flow(None, reads, writes))
        dy = rng.standard_normal(self.y.shape).astype(dtype)
        self.dy = np.where(broadcast(case.writes, dy), dy, dy.dtype.type(dy_closed))
        self.dw = np.full(layout.size, np.nan, dtype=dtype)
        back = Back(None, writes, reads)
        self.dx = layer.backward(self.dy, cache, params, layout.views(self.dw), back)


@given(conv_cases())
@examples(60)
def test_convolution_gradient(case):
    assert_gradients(errors_of(case))


@given(linear_cases())
@examples(25)
def test_linear_gradient(case):
    assert_gradients(errors_of(case))


@given(channelwise_cases(CHANNELWISE))
@examples(60)
def test_channelwise_gradient(case):
    assert_gradients(errors_of(case))


@given(channelwise_cases(st.just(BatchNorm2d("bn", 1))))
@examples(15)
def test_batch_norm_gradient(case):
    layer = BatchNorm2d("bn", case.shape[0])
    assert_gradients(errors_of(case._replace(layer=layer, reads=None, writes=None)))


def errors_of(case: LayerCase):
    rng = np.random.default_rng(case.seed)
    return probe(case.layer, case.shape, case.batch, rng, case.reads, case.writes).errors(rng)


@given(CASES)
@examples(100)
def test_against_multiplication_by_masks(case):
    """What skipping computes is what multiplying by the masks computes, in all passes."""
    run = Run(case)
    layout = Layout(case.layer.parameters())
    params = {name: tape.Var(value) for name, value in layout.to_arrays(run.w).items()}
    x = tape.Var(run.x)
    y = tape.run_layer(case.layer, params, x, None)
    open_outputs = broadcast(case.writes, y.value)
    assert_close(run.y, y.value * open_outputs, "reference", what="y")
    masked = tape.mul(tape.reshape(y, *run.y.shape), tape.Var(open_outputs * run.dy))
    tape.backward(tape.Var(masked.value.sum(), (masked, lambda g: np.broadcast_to(g, run.y.shape))))
    assert_close(run.dx, x.grad * broadcast(case.reads, x.value), "reference", what="dx")
    for name, view in layout.views(run.dw).items():
        assert_close(view, params[name].grad, "reference", what=name)


@given(CASES)
@examples(60)
def test_float32_agrees_with_float64(case):
    single, double = Run(case, "float32"), Run(case)
    for name in ("y", "dx", "dw"):
        array = getattr(single, name)
        assert array.dtype == np.float32
        assert_close(array, getattr(double, name), "reference", "float32", name)


@given(CASES)
@examples(100)
def test_closed_channels_are_never_read_and_come_out_as_zeros(case):
    if isinstance(case.layer, Flatten):
        return  # a view: nothing is computed, so nothing is skipped
    clean, poisoned = Run(case), Run(case, closed=np.nan, dy_closed=np.nan)
    for name in ("y", "dx", "dw"):
        assert_same_bits(getattr(poisoned, name), getattr(clean, name), name)
    assert not poisoned.y[~broadcast(case.writes, poisoned.y)].any()
    assert not poisoned.dx[~broadcast(case.reads, poisoned.dx)].any()


@given(CASES, st.sampled_from(("float32", "float64")))
@examples(100)
def test_skipping_changes_no_bit_of_open_channels(case, dtype):
    gated, dense = Run(case, dtype), Run(case, dtype, masked=False)
    open_y, open_dx = broadcast(case.writes, gated.y), broadcast(case.reads, gated.dx)
    assert_same_bits(gated.y[open_y], dense.y[open_y], "y")
    assert_same_bits(gated.dx[open_dx], dense.dx[open_dx], "dx")
    assert_same_bits(gated.dw, dense.dw, "dw")


def test_masks_pass_through_layers_that_keep_zeros():
    mask = np.array([[True, False]])
    x = np.ones((1, 2, 2, 2))
    x[0, 1] = 0
    for layer in (ReLU(), Tanh(), MaxPool2d(2), AvgPool2d(2), GlobalAvgPool2d(), Flatten()):
        assert layer.forward({}, x, Flow(None, mask, None))[1] is mask, layer
    y, out, _ = Softplus().forward({}, x, Flow(None, mask, None))
    assert out is None, "softplus(0) = log 2 is not zero: its output is open everywhere"
    assert y[0, 1, 0, 0] == pytest.approx(np.log(2))


# Kinks


def test_relu_has_derivative_zero_at_zero():
    x = np.array([[-1.0, -0.0, 0.0, 2.0]])
    y, _, cache = ReLU().forward({}, x, Flow())
    assert_same_bits(y, np.array([[0.0, 0.0, 0.0, 2.0]]))
    dx = ReLU().backward(np.ones_like(x), cache, {}, {}, Back())
    assert_same_bits(dx, np.array([[0.0, 0.0, 0.0, 1.0]]))


def test_the_first_maximum_in_scan_order_wins_a_tie():
    x = np.array([[[[1.0, 3.0, 2.0, 2.0], [3.0, 3.0, 2.0, 2.0]]]])
    y, _, cache = MaxPool2d(2).forward({}, x, Flow())
    assert y.ravel().tolist() == [3.0, 2.0]
    dx = MaxPool2d(2).backward(np.array([[[[5.0, 7.0]]]]), cache, {}, {}, Back())
    assert dx.tolist() == [[[[0.0, 5.0, 7.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]]


def test_overlapping_windows_add_up():
    x = np.array([[[[0.0, 9.0, 0.0]]]])
    layer = MaxPool2d((1, 2), 1)
    y, _, cache = layer.forward({}, x, Flow())
    assert y.ravel().tolist() == [9.0, 9.0]
    dx = layer.backward(np.array([[[[1.0, 10.0]]]]), cache, {}, {}, Back())
    assert dx.ravel().tolist() == [0.0, 11.0, 0.0]


# Numbers from outside


def test_convolution_against_another_framework():
    """stride (2,1), padding (1,0); literals printed by PyTorch 2.13 in float64:

    x = torch.arange(24.).double().reshape(1,2,4,3).sin().requires_grad_()
    w = torch.arange(24.).double().reshape(2,2,3,2).cos().requires_grad_()
    b = torch.tensor([0.25,-0.5]).double().requires_grad_()
    y = F.conv2d(x, w, b, stride=(2,1), padding=(1,0))
    (y*torch.arange(y.numel()).double().reshape(y.shape)).sum().backward()
    """
    x = np.sin(np.arange(24.0)).reshape(1, 2, 4, 3)
    w = np.concatenate([np.cos(np.arange(24.0)), [0.25, -0.5]])
    layer = Conv2d("c", 2, 2, (3, 2), (2, 1), (1, 0))
    layout = Layout(layer.parameters())
    y, _, cache = layer.forward(layout.views(w), x, Flow())
    dw = np.full_like(w, np.nan)
    dy = np.arange(y.size, dtype=float).reshape(y.shape)
    dx = layer.backward(dy, cache, layout.views(w), layout.views(dw), Back())
    assert_close(y.ravel(), CONV_Y, "golden", what="y")
    assert_close(dx.ravel(), CONV_DX, "golden", what="dx")
    assert_close(dw, CONV_DW, "golden", what="dw")


# fmt: off
CONV_Y = [
    -1.741636113994, -1.50409458653, -1.297618877086, -4.057008471375, -2.012117484105,
    0.3419323904112, -2.925677660414, -2.994209892466,
]
CONV_DX = [
    0.5469488728313, -2.771212396943, -4.788432060895, 3.232485831101, 8.889668636878,
    6.880879882961, -0.01187036384728, -6.82939245254, -8.287792879813, -7.053244123668,
    -9.748202882238, -1.075156809972, 1.632328247254, -0.2960067656387, -3.649776563006,
    1.882397517187, 6.972552293083, 6.522899686658, 2.157492303263, -2.688561753847,
    -6.567495607224, -7.677908016521, -12.70508709802, -3.71655404837,
]
CONV_DW = [
    -1.988167469804, -4.390377814605, 2.253599784566, 5.191345364133, -1.564628857493,
    -5.046937116094, 0.436865730319, -3.459999108969, -0.6321758277279, 4.029197527204,
    1.358854032536, -3.517761322986, -4.450897418796, -11.25328489449, 7.129768125877,
    18.77979839204, -4.554969309075, -18.08588946574, 1.886403824287, -8.457202343147,
    -3.502239500858, 13.92358493885, 6.119609443487, -11.93525141103, 6.0, 22.0,
]
# fmt: on


def test_batch_norm_against_another_framework():
    """Literals printed by PyTorch 2.13 in float64:

    x = torch.arange(12.).double().reshape(2,2,3,1).sin().requires_grad_()
    g = torch.tensor([1.5,-0.5]).double().requires_grad_()
    b = torch.tensor([0.25,1.0]).double().requires_grad_()
    y = F.batch_norm(x, None, None, g, b, training=True, eps=1e-5)
    (y*torch.arange(12.).double().reshape(y.shape).cos()).sum().backward()
    """
    x = np.sin(np.arange(12.0)).reshape(2, 2, 3, 1)
    w = np.array([1.5, -0.5, 0.25, 1.0])
    layer = BatchNorm2d("bn", 2)
    layout = Layout(layer.parameters())
    y, _, cache = layer.forward(layout.views(w), x, Flow())
    dw = np.full_like(w, np.nan)
    dy = np.cos(np.arange(12.0)).reshape(y.shape)
    dx = layer.backward(dy, cache, layout.views(w), layout.views(dw), Back())
    assert_close(y.ravel(), BN_Y, "golden", what="y")
    assert_close(dx.ravel(), BN_DX, "golden", what="dx")
    assert_close(dw, BN_DW, "golden", what="dw")


# fmt: off
BN_Y = [
    -1.361558566304, 1.248212897358, 1.458572512907, 0.4528483781472, 1.282461748754,
    1.469207186155, -2.228148866943, 0.6760457103739, 1.706876312608, 0.2024660130312,
    1.085867631926, 1.507149041987,
]
BN_DX = [
    0.2858590714592, 1.165672682053, -1.614859580508, 0.04987388697617, 0.3252281048302,
    -0.4088382810989, -0.6032382166237, 1.322673032888, -0.5561069892687, -0.1998821490405,
    0.3576574180233, -0.1240389796903,
]
BN_DW = [
    -2.563592735512, -2.293991538943, 2.692727976506, -3.105750024974,
]
# fmt: on


def test_batch_norm_output_has_mean_zero_and_variance_one():
    x = 3 + 10 * np.random.default_rng(0).standard_normal((4, 2, 3, 3))
    y, mask, _ = BatchNorm2d("bn", 2, eps=0.0).forward(
        {"bn.weight": np.ones(2), "bn.bias": np.zeros(2)}, x, Flow()
    )
    assert mask is None
    assert_close(y.mean((0, 2, 3)), np.zeros(2), "reference", scale=1.0)
    assert_close(y.var((0, 2, 3)), np.ones(2), "reference")


# Which gradients are written


@given(CASES)
@examples(30)
def test_unwanted_gradients_are_left_alone(case):
    layout = Layout(case.layer.parameters())
    rng = np.random.default_rng(case.seed)
    params = layout.views(rng.standard_normal(layout.size))
    x = rng.standard_normal((case.batch, *case.shape))
    y, _, cache = case.layer.forward(params, x, Flow())
    dw = np.full(layout.size, np.nan)
    back = Back(None, need_dx=False, need_dw=False)
    dx = case.layer.backward(np.ones_like(y), cache, params, layout.views(dw), back)
    assert dx is None
    assert np.isnan(dw).all()


# Sizes and messages


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (Conv2d("c", 3, 8, 3), (3, 8, 9), (8, 6, 7)),
        (Conv2d("c", 3, 8, (3, 5), stride=(2, 1), padding=(1, 2)), (3, 8, 9), (8, 4, 9)),
        (Conv2d("c", 1, 2, 1, stride=3), (1, 7, 8), (2, 3, 3)),
        (Linear("f", 6, 4), (6,), (4,)),
        (MaxPool2d(2), (5, 7, 8), (5, 3, 4)),
        (AvgPool2d((3, 2), (1, 2)), (5, 7, 8), (5, 5, 4)),
        (Conv2d("c", 6, 4, 3, dilation=(2, 3), groups=2), (6, 8, 9), (4, 4, 3)),
        (MaxPool2d(3, 2, 1), (5, 7, 8), (5, 4, 4)),
        (GlobalAvgPool2d(), (5, 7, 8), (5,)),
        (Flatten(), (5, 7, 8), (280,)),
        (BatchNorm2d("b", 5), (5, 7, 8), (5, 7, 8)),
        (ReLU(), (5, 7, 8), (5, 7, 8)),
    ],
)
def test_output_shapes(layer, shape, expected):
    assert layer.output_shape(shape) == expected
    params = Layout(layer.parameters()).views(np.zeros(Layout(layer.parameters()).size))
    assert layer.forward(params, np.ones((2, *shape)), Flow())[0].shape == (2, *expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2d("c", 3, 8, 3).output_shape((2, 8, 8)), "c: expected input channels"),
        (lambda: Conv2d("c", 3, 8, 3).output_shape((3,)), "c: expected input channels"),
        (lambda: Conv2d("c", 3, 8, 5).output_shape((3, 4, 9)), "smaller than the kernel"),
        (lambda: Conv2d("c", 3, 8, 0), "at least 1"),
        (lambda: Conv2d("c", 3, 8, 3, stride=0), "at least 1"),
        (lambda: Conv2d("c", 3, 8, 3, padding=-1), "padding at least 0"),
        (lambda: Conv2d("c", 3, 8, dilation=0), "at least 1"),
        (lambda: Conv2d("c", 3, 8, groups=2), "groups must divide the channels 3 and 8, got 2"),
        (lambda: Conv2d("c", 3, 8, 3, dilation=4).output_shape((3, 8, 9)), "smaller than the kernel"),
        (lambda: Conv2d("c", 0, 8), "at least 1"),
        (lambda: Linear("f", 4, 0), "at least 1"),
        (lambda: Linear("f", 4, 2).output_shape((5,)), "f: expected input shape"),
        (lambda: BatchNorm2d("b", 4).output_shape((5, 2, 2)), "b: expected channels"),
        (lambda: MaxPool2d(3).output_shape((1, 2, 9)), "smaller than the window"),
        (lambda: AvgPool2d(2).output_shape((4,)), "AvgPool2d: expected an input of shape"),
        (lambda: MaxPool2d(0), "at least 1"),
        (lambda: AvgPool2d(2, 0), "at least 1"),
        (lambda: MaxPool2d(3, 2, 2), "padding must be 0 to half of the window"),
        (lambda: GlobalAvgPool2d().output_shape((4,)), "GlobalAvgPool2d: expected"),
    ],
)
def test_sizes_that_cannot_work_say_so(make, message):
    with pytest.raises(InputError, match=message):
        make()
