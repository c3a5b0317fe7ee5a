"""Run a plan step by step, forward and backward: the readable path. Source: mathematics.md §2.3b. Derived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.kernels.arrays import tidy_float
from refimpl.nn.context import Context
from refimpl.nn.layers import Array, Arrays, Back, Block, Flow, Gradient, Mask
from refimpl.nn.plan import GIVEN, NONE, Step, plan


class Trace(NamedTuple):
    """What a forward pass leaves for the backward pass: each step's cache, and the masks by gate."""

    context: Context
    steps: Sequence[Step]
    caches: list[Any]
    masks: dict[int, Mask]


def run_forward(
    steps: Sequence[Step], params: Arrays, x: np.ndarray, context: Context, reads: Mask = None
) -> tuple[np.ndarray, Trace]:
    """The output for x, of which only the channels `reads` are not zero, and the trace."""
    values: dict[int, Any] = {0: x}
    trace = Trace(context, steps, [], {NONE: None, GIVEN: reads})
    for step in steps:
        flow = Flow(context, trace.masks[step.reads], trace.masks[step.writes])
        y, mask, cache = step.layer.forward(params, step.given(values), flow)
        if getattr(step.layer, "decides", False):
            trace.masks[step.gate] = mask
        values[step.output] = y
        trace.caches.append(cache)
    return values[len(steps)], trace


def run_backward(trace: Trace, dy: np.ndarray, params: Arrays, grads: Arrays) -> np.ndarray | None:
    """Write the gradients of trained parameters; returns that of the input, None unless it is wanted."""

    def backward(step: Step, slope: Any, cache: Any) -> Any:
        masks = trace.masks[step.dy_mask], trace.masks[step.dx_mask]
        back = Back(trace.context, *masks, any(step.needs), step.need_dw)
        return step.layer.backward(slope, cache, params, grads, back)

    found: np.ndarray | None = carried_back(trace, dy, backward)
    return found


def carried_back(trace: Trace, slope: Any, backward: Callable[[Step, Any, Any], Any]) -> Any:
    """Carry the gradient of the output back through the steps that learn; returns that of the input.

    backward(step, slope, cache) gives the gradient of a step's input, or of each of its inputs, from that of
    its output. Gradients of a value that is read twice are added up. The result is None unless it is wanted.
    """
    slopes = {len(trace.steps): slope}
    for step, cache in zip(reversed(trace.steps), reversed(trace.caches), strict=True):
        if not step.learns:
            continue
        dx = backward(step, slopes.pop(step.output), cache)
        parts = dx if len(step.inputs) > 1 else (dx,)
        for number, part, wanted in zip(step.inputs, parts, step.needs, strict=True):
            if wanted:
                slopes[number] = slopes[number] + part if number in slopes else part
    return slopes.get(0)


class PlannedBlock(Block):
    """A block that can be used like a layer by itself: its passes are those of its own plan."""

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Trace]:
        """Output, its channel mask, and the trace."""
        x = tidy_float(type(self).__name__, "x", x)
        context = flow.context or Context()
        steps = plan((self,), x.shape[1:], context.routing, inside=True)
        y, trace = run_forward(steps, params, x, context, flow.reads)
        return y, trace.masks[steps[-1].writes], trace

    def backward(self, dy: Array, cache: Trace, params: Arrays, grads: Arrays, back: Back) -> Gradient:
        """Write the gradients of what the context of the forward pass trains; return dx."""
        dx = run_backward(cache, dy, params, grads)
        return dx if back.need_dx else None
