"""The vector tile against the readable kernels: the same bits, whatever the shape, stride or mask."""

from __future__ import annotations

import numpy as np
import pytest
from checks import assert_same_bits
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_kernels_plain import (
    ALL_ON,
    DTYPES,
    conv_cases,
    linear_cases,
    make_conv,
    make_linear,
    plain_forward,
    plain_input_grad,
    plain_linear_forward,
    plain_linear_input_grad,
    plain_linear_weight_grad,
    plain_weight_grad,
    spoil,
)

from refimpl.errors import ConfigError, InputError
from refimpl.kernels import (
    conv,
    jit,
    linear,
    target,
    tiled_conv,
    tiled_linear,
    tiled_weight_grad,
    vector,
    workspace,
)

pytestmark = pytest.mark.skipif(not jit.USE_TILE, reason="REFIMPL_KERNELS=plain or NUMBA_DISABLE_JIT")


def mask_or_none(mask):
    return mask if mask.shape[0] else None


def tile_conv(case):
    """(y, dx, dweight, dbias) of a convolution."""
    reads, writes = mask_or_none(case.in_mask), mask_or_none(case.out_mask)
    step, more = (case.stride, case.pad), {"dilation": case.dilation, "groups": case.groups}
    dweight, dbias = np.full_like(case.weight, np.nan), np.full_like(case.bias, np.nan)
    conv.weight_grad(case.x, case.dy, *step, dweight, dbias, reads, writes, **more)
    y, dx = np.full_like(case.dy, np.nan), np.full_like(case.x, np.nan)
    return (
        conv.forward(case.x, case.weight, case.bias, *step, reads, writes, out=y, **more),
        conv.input_grad(case.dy, case.weight, *step, case.x.shape[2:], writes, reads, out=dx, **more),
        dweight,
        dbias,
    )


def plain_conv(case):
    return plain_forward(case), plain_input_grad(case), *plain_weight_grad(case)


def tile_linear(case):
    """(y, dx, dweight, dbias) of a fully connected layer."""
    reads, writes = mask_or_none(case.in_mask), mask_or_none(case.out_mask)
    dweight, dbias = np.full_like(case.weight, np.nan), np.full_like(case.bias, np.nan)
    linear.weight_grad(case.x, case.dy, dweight, dbias, reads, writes)
    return (
        linear.forward(case.x, case.weight, case.bias, reads, writes, out=np.full_like(case.dy, np.nan)),
        linear.input_grad(case.dy, case.weight, writes, reads, out=np.full_like(case.x, np.nan)),
        dweight,
        dbias,
    )


def plain_linear(case):
    return plain_linear_forward(case), plain_linear_input_grad(case), *plain_linear_weight_grad(case)


WEIGHTS = ("dweight", "dbias")


def assert_all_same_bits(got, expected, names=("y", "dx", *WEIGHTS)):
    for name, a, b in zip(names, got, expected, strict=True):
        assert_same_bits(a, b, name)


@settings(max_examples=120, deadline=None)
@given(conv_cases())
@example(make_conv(1, np.float32, 1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)))
@example(make_conv(2, np.float32, 2, 9, 13, (8, 8), (1, 1), (1, 1), (0, 0), "mixed", "mixed"))
@example(make_conv(3, np.float64, 2, 3, 4, (6, 7), (1, 1), (2, 2), (0, 0), "mixed", "mixed"))
@example(make_conv(4, np.float32, 1, 2, 3, (4, 4), (2, 2), (3, 3), (2, 2)))
@example(make_conv(5, np.float32, 2, 6, 6, (9, 9), (3, 3), (1, 1), (1, 1), "mixed", "mixed", groups=6))
@example(make_conv(6, np.float64, 2, 40, 20, (9, 7), (3, 3), (2, 1), (2, 3), "mixed", "mixed", (2, 3), 2))
def test_convolution_has_the_bits_of_the_plain_kernel(case):
    assert_all_same_bits(tile_conv(case), plain_conv(case))


@settings(max_examples=30, deadline=None)
@given(conv_cases(largest=21, most_channels=40))
def test_larger_convolutions_have_the_bits_of_the_plain_kernel(case):
    assert_all_same_bits(tile_conv(case), plain_conv(case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "filters", "size"), [(3, 32, 32), (32, 64, 16), (64, 128, 8), (16, 20, 7)]
)
@pytest.mark.parametrize("kinds", [("none", "none"), ("none", "mixed"), ("mixed", "mixed"), ("on", "off")])
def test_layers_of_real_networks_have_the_bits_of_the_plain_kernel(dtype, channels, filters, size, kinds):
    case = make_conv(7, dtype, 2, channels, filters, (size, size), (3, 3), (1, 1), (1, 1), *kinds)
    assert_all_same_bits(tile_conv(case), plain_conv(case))


@settings(max_examples=120, deadline=None)
@given(linear_cases())
@example(make_linear(1, np.float32, 20, 784, 100))
@example(make_linear(2, np.float32, 1, 784, 10, 16, "mixed", "mixed"))
@example(make_linear(3, np.float64, 33, 130, 37, 10, "mixed", "on"))
def test_linear_has_the_bits_of_the_plain_kernel(case):
    assert_all_same_bits(tile_linear(case), plain_linear(case))


@settings(max_examples=80, deadline=None)
@given(linear_cases(most=70))
@example(make_linear(1, np.float32, 20, 784, 100))
@example(make_linear(2, np.float64, 200, 65, 7))
def test_a_stepped_weight_has_the_bits_of_its_gradient_and_a_step(case):
    case = case._replace(in_mask=ALL_ON, out_mask=ALL_ON)
    (n, features), outputs, dtype = case.x.shape, case.dy.shape[1], case.x.dtype
    gradient, dbias = plain_linear_weight_grad(case)
    centre, eta, lam = np.roll(case.weight, 1), dtype.type(0.05), dtype.type(0.7)
    expected, weight, own = case.weight.copy(), case.weight.copy(), np.full_like(dbias, np.nan)
    vector.local_step(expected.reshape(-1), gradient.reshape(-1), centre.reshape(-1), eta, lam)
    _, ints = workspace.scratch(dtype, *tiled_linear.scratch(n, features, outputs))
    tiled_linear.weight_step(case.x, case.dy, eta, lam, centre, ints, weight, own)
    assert_all_same_bits((weight, own), (expected, dbias), WEIGHTS)


@settings(max_examples=40, deadline=None)
@given(conv_cases(most_channels=20), linear_cases())
def test_what_closed_channels_hold_has_no_effect(conv_case, linear_case):
    for case, run in ((conv_case, tile_conv), (linear_case, tile_linear)):
        spoilt = case._replace(x=spoil(case.x, case.in_mask), dy=spoil(case.dy, case.out_mask))
        assert_all_same_bits(run(spoilt), run(case))


def test_gating_changes_no_bit_of_the_channels_both_compute():
    case = make_conv(3, np.float32, 4, 24, 40, (9, 9), (3, 3), (1, 1), (1, 1), out_kind="mixed")
    dense, gated = tile_conv(case._replace(out_mask=ALL_ON))[0], tile_conv(case)[0]
    np.testing.assert_array_equal(gated[case.out_mask], dense[case.out_mask])
    np.testing.assert_array_equal(gated[~case.out_mask], 0)


def in_parts(case, weight_grad, sizes):
    """Weight gradient of the batch, some samples at a time; without masks for sides that have none."""
    dweight, dbias = np.full_like(case.weight, np.nan), np.full_like(case.bias, np.nan)
    first = 0
    for size in sizes:
        part = slice(first, first + size)
        masks = (mask[part] if mask.shape[0] else mask for mask in (case.in_mask, case.out_mask))
        weight_grad(case.x[part], case.dy[part], masks, first > 0, dweight, dbias)
        first += size
    return dweight, dbias


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "filters", "size", "groups"), [(3, 8, 12, 1), (20, 12, 9, 1), (40, 12, 4, 1), (40, 12, 4, 2)]
)
@pytest.mark.parametrize(
    "kinds", [("none", "none"), ("none", "mixed"), ("mixed", "none"), ("mixed", "mixed")]
)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2), (3, 1)])
def test_weight_gradients_of_parts_go_on_where_the_last_ended(
    dtype, channels, filters, size, groups, kinds, sizes
):
    shape = (size, size), (3, 3), (1, 1), (1, 1)
    case = make_conv(9, dtype, 4, channels, filters, *shape, *kinds, groups=groups)
    needs = tiled_weight_grad.weight_grad_scratch(
        channels, filters, (3, 3), (1, 1), (1, 1), (size, size), (size, size), case.x.itemsize, (1, 1), groups
    )

    def convolution(x, dy, masks, more, dweight, dbias):
        memory = workspace.scratch(x.dtype, *needs)
        tiled_weight_grad.weight_grad(x, dy, *case.steps, *masks, more, *memory, dweight, dbias)

    assert_all_same_bits(in_parts(case, convolution, sizes), plain_weight_grad(case), WEIGHTS)
    flat = make_linear(8, dtype, 4, channels * 16, filters, channels, *kinds)
    needs_flat = tiled_linear.scratch(4, channels * 16, filters)

    def linear_layer(x, dy, masks, more, dweight, dbias):
        memory = workspace.scratch(x.dtype, *needs_flat)
        tiled_linear.weight_grad(x, dy, *masks, more, *memory, dweight, dbias)

    got, expected = in_parts(flat, linear_layer, sizes), plain_linear_weight_grad(flat)
    assert_all_same_bits(got, expected, WEIGHTS)


def test_half_closed_inputs_take_both_routes_of_the_weight_gradient():
    few_pixels = make_conv(5, np.float32, 3, 40, 12, (4, 4), (3, 3), (1, 1), (1, 1), "mixed", "mixed")
    many_pixels = make_conv(6, np.float32, 3, 40, 12, (20, 20), (3, 3), (1, 1), (1, 1), "mixed", "mixed")
    for case in (few_pixels, many_pixels):
        assert_all_same_bits(tile_conv(case), plain_conv(case))


@settings(max_examples=20, deadline=None)
@given(conv_cases(), st.sampled_from(["strided", "read-only"]))
def test_any_memory_layout_is_accepted_and_compiled_once(case, layout):
    def awkward(array):
        if layout == "read-only":
            view = array.copy()
            view.setflags(write=False)
            return view
        wide = np.zeros((*array.shape, 2), dtype=array.dtype)
        wide[..., 0] = array
        return wide[..., 0]

    odd = case._replace(**{name: awkward(getattr(case, name)) for name in ("x", "weight", "bias", "dy")})
    assert_all_same_bits(tile_conv(odd._replace(bias=case.bias, weight=case.weight)), tile_conv(case))
    step, more = (case.stride, case.pad), {"dilation": case.dilation, "groups": case.groups}
    y = conv.forward(odd.x, odd.weight, odd.bias, *step, **more)
    np.testing.assert_array_equal(y, conv.forward(case.x, case.weight, case.bias, *step, **more))
    for kernel in (
        tiled_conv.convolve,
        tiled_weight_grad.weight_grad,
        tiled_linear.forward,
        tiled_linear.input_grad,
        tiled_linear.weight_grad,
    ):
        assert len(kernel.signatures) <= 2  # one per dtype


def test_wrong_arguments_are_refused_in_one_line():
    x, weight, bias = np.ones((2, 3, 5, 5)), np.ones((4, 3, 3, 3)), np.ones(4)
    step = (1, 1), (1, 1)
    dy = np.ones((2, 4, 5, 5))
    flat, matrix = np.ones((2, 6)), np.ones((4, 6))
    wrong = [
        lambda: conv.forward(x.astype(np.float32), weight, bias, *step),
        lambda: conv.forward(x.astype(int), weight.astype(int), bias.astype(int), *step),
        lambda: conv.forward(x[:, :2], weight, bias, *step),
        lambda: conv.forward(x, weight[0], bias, *step),
        lambda: conv.forward(x, weight, bias[:3], *step),
        lambda: conv.forward(x, weight, bias, (0, 1), (1, 1)),
        lambda: conv.forward(x, weight, bias, (1, 1), (-1, 1)),
        lambda: conv.forward(x, weight, bias, *step, groups=3),
        lambda: conv.forward(x, weight, bias, *step, groups=2),
        lambda: conv.forward(x, weight, bias, *step, dilation=(0, 1)),
        lambda: conv.forward(x, weight, bias, *step, dilation=(4, 1)),
        lambda: conv.forward(x[:, :, :1, :1], weight, bias, (1, 1), (0, 0)),
        lambda: conv.forward(x, weight, bias, *step, np.ones((2, 4), bool)),
        lambda: conv.forward(x, weight, bias, *step, np.ones((2, 3))),
        lambda: conv.forward(x, weight, bias, *step, out=np.ones((2, 4, 5, 4))),
        lambda: conv.forward(x, weight, bias, *step, out=dy.astype(np.float32)),
        lambda: conv.input_grad(dy, weight, *step, (6, 5)),
        lambda: conv.weight_grad(x, dy, *step, weight[:, :, ::-1], bias),
        lambda: conv.weight_grad(x, dy, *step, weight, bias[:2]),
        lambda: conv.weight_grad(x[:1], dy, *step, weight, bias),
        lambda: linear.forward(flat, matrix[:, :5].copy(), bias),
        lambda: linear.forward(flat, matrix, bias, np.ones((2, 4), bool)),
        lambda: linear.forward(flat, matrix, bias, None, np.ones((2, 3), bool)),
        lambda: linear.input_grad(dy[:, :, 0, 0], matrix[:3]),
        lambda: linear.weight_grad(flat, dy[:, :, 0, 0].copy(), matrix[:3].copy(), bias),
    ]
    for call in wrong:
        with pytest.raises(InputError, match=r"^(conv|linear)\.\w+: .*(expected|fit|divide)") as info:
            call()
        assert "\n" not in str(info.value)


def test_tile_sizes_follow_the_register_count():
    assert target.tile_size(32) == (6, 4)
    assert target.tile_size(16) == (4, 3)
    for registers in (16, 32):
        sizes = target.tile_sizes(registers)
        assert target.tile_size(registers) in sizes
        assert all(m % 2 == 0 and m * v + v + 1 <= registers for m, v in sizes)


def test_the_environment_chooses_the_kernels(monkeypatch):
    monkeypatch.delenv("REFIMPL_KERNELS", raising=False)
    assert jit.chosen_kernels() == "tile"
    monkeypatch.setenv("REFIMPL_KERNELS", "plain")
    assert jit.chosen_kernels() == "plain"
    monkeypatch.setenv("REFIMPL_KERNELS", "magic")
    with pytest.raises(ConfigError, match="choose one of tile, plain"):
        jit.chosen_kernels()
