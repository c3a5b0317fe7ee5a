"""The two stages of adaptation on one node: what the first computes and the second need not.

Stage I moves phi alone. So the backbone in front of the first gate computes in stage II, and in every
further step of stage I, what it computed before; and where stage I ran all channels of the gated layer, as
closed ones taught their gates, stage II has the values of whichever channels the moved gate opens. Closed
ones are then not zero: the layer behind must skip them.

Source: mathematics.md §6, §2.3b. Derived.
"""

from __future__ import annotations

from dataclasses import replace

from refimpl.kernels.operation import Kept
from refimpl.nn.context import Context
from refimpl.nn.course import Handover
from refimpl.nn.task import NetworkTask

KEPT_BYTES = 256 << 20  # of activations of all samples; from there on stages do not share them


def sharing(first: NetworkTask, second: NetworkTask, steps: int) -> tuple[NetworkTask, NetworkTask]:
    """The tasks, stage II going on from the activations that stage I leaves on the same samples and theta.

    Both train on all samples, in `steps` steps each. The tasks come back unchanged where their samples are
    not one array, where there is no program, and where there is nothing to keep or too much. The results are
    the same bit for bit (tested), whatever runs in between; where `first` has descended from another theta
    than `second` does, or not at all, `second` computes everything itself. Executed FLOPs are fewer.
    """
    one, two = first.program, second.program
    if one is None or two is None or one.whole or not one.gates or first.x is not second.x:
        return first, second
    sizes = (max(one.values, two.values), max(one.masks, two.masks), max(one.where, two.where))
    if sizes[0] * first.size * first.x.itemsize > KEPT_BYTES:
        return first, second
    everything = (
        Context(first.gating, first.train).routing.closed_channels_matter and first.gating.mode != "soft"
    )
    known = two.through_gate if everything and steps == 1 else two.before_gate
    if not known:
        return first, second
    kept_first, kept_second = Kept(*sizes, 0, one.before_gate), Kept(*sizes, known, 0)
    part = first.part_of(one, first.size)  # of both, as parts lie one after the other
    handover = Handover(kept_first, first.size, first.x.dtype)
    return (
        replace(first, kept=kept_first, handover=handover, part=part),
        replace(second, kept=kept_second, handover=handover, part=part),
    )
