"""No kernel reads or writes outside its arrays, to the byte: arrays lie against pages nobody may touch."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from guards import guarded
from test_kernels_plain import make_conv, make_linear

from refimpl.kernels import tiled_conv, tiled_linear, tiled_weight_grad


def scratch(dtype, needs):
    """Scratch arrays of exactly the size asked for, filled with nonsense."""
    return np.full(needs[0], np.nan, dtype=dtype), np.full(needs[1], 2**30, dtype=np.int32)


def run_conv(case, at_end):
    def g(array):
        return guarded(array, at_end)

    x, weight, bias, dy = g(case.x), g(case.weight), g(case.bias), g(case.dy)
    reads, writes = g(case.in_mask), g(case.out_mask)
    (filters, channels), window, item = weight.shape[:2], weight.shape[2:], x.itemsize
    size, result = x.shape[2:], dy.shape[2:]
    step, dilation, ins = case.steps, case.dilation, channels * case.groups
    inner, outer = (ins, *size), (filters, *result)

    needs = tiled_conv.convolve_scratch(inner, outer, window, step, False, item, case.groups)
    memory = map(g, scratch(x.dtype, needs))
    y, dx = g(np.full_like(dy, np.nan)), g(np.full_like(x, np.nan))
    tiled_conv.convolve(x, weight, bias, *step, False, reads, writes, True, *memory, y)
    needs = tiled_conv.convolve_scratch(outer, inner, window, step, True, item, case.groups)
    memory = map(g, scratch(x.dtype, needs))
    tiled_conv.convolve(dy, weight, bias[:0], *step, True, writes, reads, True, *memory, dx)
    shape = ins, filters, window, case.stride, case.pad, size, result, item, dilation, case.groups
    needs = tiled_weight_grad.weight_grad_scratch(*shape)
    memory = map(g, scratch(x.dtype, needs))
    dweight, dbias = g(np.full_like(weight, np.nan)), g(np.full_like(bias, np.nan))
    for more, arrays in zip((False, True), (list(memory), map(g, scratch(x.dtype, needs))), strict=True):
        tiled_weight_grad.weight_grad(x, dy, *step, reads, writes, more, *arrays, dweight, dbias)


def run_linear(case, at_end):
    def g(array):
        return guarded(array, at_end)

    x, weight, bias, dy = g(case.x), g(case.weight), g(case.bias), g(case.dy)
    reads, writes = g(case.in_mask), g(case.out_mask)
    needs = tiled_linear.scratch(x.shape[0], x.shape[1], dy.shape[1])

    def memory():
        return map(g, scratch(x.dtype, needs))

    tiled_linear.forward(x, weight, bias, reads, writes, *memory(), g(np.full_like(dy, np.nan)))
    tiled_linear.input_grad(dy, weight, writes, reads, *memory(), g(np.full_like(x, np.nan)))
    dweight, dbias = g(np.full_like(weight, np.nan)), g(np.full_like(bias, np.nan))
    for more in (False, True):
        tiled_linear.weight_grad(x, dy, reads, writes, more, *memory(), dweight, dbias)
    rate, (_, ints) = x.dtype.type(0.1), memory()
    tiled_linear.weight_step(x, dy, rate, rate, g(np.zeros_like(case.weight)), ints, weight, dbias)


def run_everything():
    """Shapes with every kind of remainder, with and without masks, from both sides."""
    convolutions = [
        (2, 3, 5, (5, 7), (3, 3), (1, 1), (1, 1)),
        (1, 5, 9, (8, 8), (3, 3), (1, 1), (1, 1)),
        (1, 33, 7, (16, 16), (3, 3), (1, 1), (1, 1)),
        (2, 3, 8, (32, 32), (3, 3), (1, 1), (1, 1)),
        (2, 4, 6, (9, 17), (5, 2), (2, 3), (2, 1)),
        (2, 4, 6, (9, 9), (1, 1), (2, 2), (0, 0)),
        (2, 6, 5, (7, 7), (1, 1), (1, 1), (0, 0)),
        (1, 2, 3, (4, 4), (2, 2), (3, 3), (3, 3)),
    ]
    others = [  # dilated, or in groups
        ((2, 5, 4, (9, 9), (3, 3), (1, 1), (2, 2)), (2, 2), 1),
        ((1, 35, 4, (9, 9), (3, 2), (2, 3), (1, 4)), (3, 4), 1),
        ((2, 6, 9, (9, 7), (3, 3), (2, 1), (1, 1)), (1, 2), 3),
        ((2, 17, 17, (9, 9), (3, 3), (1, 1), (1, 1)), (1, 1), 17),
        ((1, 4, 4, (8, 8), (5, 3), (2, 2), (2, 1)), (1, 1), 4),
    ]
    linears = [(1, 1, 1, 1), (1, 7, 5, 1), (20, 98, 10, 2), (17, 33, 13, 3), (5, 64, 40, 16)]
    for at_end in (True, False):
        for dtype in (np.float32, np.float64):
            for kinds in (("none", "none"), ("mixed", "mixed"), ("off", "on"), ("on", "off")):
                for shape in convolutions:
                    run_conv(make_conv(1, dtype, *shape, *kinds), at_end)
                for shape, dilation, groups in others:
                    run_conv(make_conv(1, dtype, *shape, *kinds, dilation, groups), at_end)
                for n, features, outputs, group in linears:
                    run_linear(make_linear(1, dtype, n, features, outputs, group, *kinds), at_end)
    print("touched nothing else")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses mprotect")
def test_kernels_stay_inside_their_arrays():
    code = "import faulthandler; faulthandler.enable(); import test_kernels_guard as t; t.run_everything()"
    run = in_a_process(code)
    assert run.stdout.strip() == "touched nothing else", run.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses mprotect")
def test_the_guard_bites():
    code = "import guards, numpy as np, ctypes; a = guards.guarded(np.ones(4), True); "
    code += "ctypes.c_double.from_address(a.ctypes.data + 32).value"
    assert in_a_process(code).returncode < 0


def in_a_process(code):
    """Run code that imports what this file imports."""
    command = [sys.executable, "-P", "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
