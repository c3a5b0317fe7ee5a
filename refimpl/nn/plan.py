"""The plan of a network: its layers as single steps, with the masks and gradients of each.

This is the only place that knows which channels are computed and which gradients are wanted
(mathematics.md §2.3b). All that works with a network reads its plan: `run.py` calls the layers, `lowering.py`
makes the compiled program, `work.py` counts operations, `hessian.py` takes second derivatives.

* Forward, a step reads only the open channels of its input.
* Backward, the gradient of its input is computed for all channels where a closed channel's gate learns from
  it, else only for the open ones.
* A gated block becomes: the gate's pooling, linear, ReLU and linear steps, its decision, the steps of the
  body, and the product with the mask. A residual block becomes both branches and their sum.
* A value that is read twice gets a `Fork`, the only step whose input gradient is added to one that is there
  already. It comes before the first reader, so going backward it is the last.

Source: mathematics.md §2.3b. Derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from refimpl.nn.context import Routing
from refimpl.nn.joins import Add, Fork, Product
from refimpl.nn.layers import Block, Layer, Shape

NONE = -1  # no mask, or no gate
GIVEN = -2  # the mask that the caller of a block gives for its input


class Value(NamedTuple):
    """What a step computes: its number (0: the input), a sample's shape and the mask of its channels.

    moves: something that it is computed from is trained; learns: its gradient is wanted.
    """

    number: int
    shape: Shape
    mask: int = NONE
    moves: bool = False
    learns: bool = False


class Step(NamedTuple):
    """One layer at work. Masks are given as numbers of gates, and NONE stands for all channels.

    inputs, output: numbers of values; shape, result: of one sample of its first input and of its output;
    reads: channels of the input that are not zero; writes: channels computed; dy_mask: channels of the
    output's gradient that count; dx_mask: channels of the input's gradient that are wanted;
    moves, needs: for each input, whether it depends on anything trained and whether its gradient is wanted;
    need_dw: whether the layer's parameters are trained; gate: the gate that the step belongs to.
    """

    layer: Any
    inputs: tuple[int, ...]
    output: int
    shape: Shape
    result: Shape
    reads: int = NONE
    writes: int = NONE
    dy_mask: int = NONE
    dx_mask: int = NONE
    moves: tuple[bool, ...] = (False,)
    needs: tuple[bool, ...] = (False,)
    need_dw: bool = False
    gate: int = NONE

    @property
    def learns(self) -> bool:
        """Whether the step takes part in the backward pass."""
        return any(self.needs) or self.need_dw

    def given(self, values: Mapping[int, Any]) -> Any:
        """What the step reads of the values by number: its input, or a tuple of its inputs."""
        found = tuple(values[number] for number in self.inputs)
        return found if len(found) > 1 else found[0]


class Planner:
    """Adds steps one by one; blocks call it to plan what is inside them."""

    def __init__(self, routing: Routing, gates: Sequence[str]) -> None:
        self.routing = routing
        self.numbers = {name: number for number, name in enumerate(gates)}
        self.steps: list[Step] = []
        self.gate = NONE  # the gate whose own steps are being added

    def chain(self, layers: Sequence[Layer], x: Value, writes: int = NONE, live: int = NONE) -> Value:
        """One layer after the other. Inside a gated body `writes` are computed and `live` have gradients."""
        for layer in layers:
            x = (
                layer.expand(self, x)
                if isinstance(layer, Block)
                else self.add(layer, x, writes=writes, live=live)
            )
        return x

    def add(self, layer: Any, *inputs: Value, writes: int = NONE, live: int = NONE) -> Value:
        """A single layer."""
        x, routing = inputs[0], self.routing
        passed = x.mask if layer.keeps_zero else NONE
        trained = any(parameter.part in routing.train for parameter in layer.parameters())
        moves, needs = tuple(v.moves for v in inputs), tuple(v.learns for v in inputs)
        step = Step(
            layer,
            tuple(value.number for value in inputs),
            len(self.steps) + 1,
            x.shape,
            layer.output_shape(x.shape),
            x.mask,
            passed if writes == NONE else writes,
            self._wanted(passed) if live == NONE else live,
            self._wanted(x.mask),
            moves,
            needs,
            trained,
            self.gate,
        )
        self.steps.append(step)
        return Value(step.output, step.result, step.writes, trained or any(moves), step.learns)

    def _wanted(self, mask: int) -> int:
        """The channels of a gradient that are computed, where `mask` says which of the value are open."""
        return NONE if self.routing.closed_channels_matter else mask

    def _fork(self, x: Value, learns: bool) -> Value:
        """x for a second reader; where its gradient is not wanted this is x itself."""
        return self.add(Fork(), x) if learns else x._replace(learns=False)

    def residual(self, body: Sequence[Layer], shortcut: Sequence[Layer], x: Value) -> Value:
        """Both branches and their sum; the shortcut comes first, so its gradient is added last."""
        beside = self.chain(shortcut, self._fork(x, x.learns))
        return self.add(Add(), self.chain(body, x), beside)

    def gated(self, gate: Any, body: Sequence[Layer], x: Value) -> Value:
        """The decision, the body and the product; the gate's share of the input's gradient is added last."""
        routing = self.routing
        if not routing.gated:
            return self.chain(body, x)
        number = self.numbers[gate.name]
        mask = NONE if routing.smooth else number
        self.gate = number
        looks_at = self._fork(x, x.learns and routing.gates_learn and not routing.detach)
        decision = self.chain(gate.layers(x.shape), looks_at)
        self.gate = NONE
        y = self.chain(body, x, NONE if routing.closed_channels_matter else mask, mask)
        self.gate = number
        product = self.add(Product(gate.name), y, decision, writes=mask)
        self.gate = NONE
        return product


@lru_cache(maxsize=256)
def plan(layers: tuple[Layer, ...], shape: Shape, routing: Routing, inside: bool = False) -> tuple[Step, ...]:
    """The steps of a chain of layers on samples of `shape`, in order.

    With `inside` the chain is a part of something: the gradient of its input is wanted, and the caller may
    give a mask of that input. Raises `InputError` where two layers do not fit.
    """
    planner = Planner(routing, gate_names(layers))
    planner.chain(layers, Value(0, shape, GIVEN if inside else NONE, inside, inside))
    return tuple(planner.steps)


def every_layer(layers: Sequence[Layer]) -> Iterator[Layer]:
    """All layers, in the order in which they are declared, those inside blocks included."""
    for layer in layers:
        yield layer
        if isinstance(layer, Block):
            yield from every_layer(layer.inner)


def gate_names(layers: Sequence[Layer]) -> list[str]:
    """The names of all gates; a gate's number is its place here."""
    return [layer.gate.name for layer in every_layer(layers) if hasattr(layer, "gate")]
