"""A chain of layers, and the residual block built from two chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refimpl.errors import InputError
from refimpl.nn.layers import Layer, Shape
from refimpl.nn.layout import Parameter
from refimpl.nn.plan import Planner, Value
from refimpl.nn.run import PlannedBlock


def chain_parameters(layers: Sequence[Layer]) -> tuple[Parameter, ...]:
    """All parameters of the layers, in order."""
    return tuple(parameter for layer in layers for parameter in layer.parameters())


def chain_shape(layers: Sequence[Layer], shape: Shape) -> Shape:
    """Shape of one sample's output; raises where two layers do not fit."""
    for layer in layers:
        shape = layer.output_shape(shape)
    return shape


@dataclass(frozen=True)
class Residual(PlannedBlock):
    """y = body(x) + shortcut(x); an empty shortcut is the identity.

    Put a ReLU after the block for the usual form. Source: He et al. 2016, eq. 1. Derived.
    """

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    @property
    def inner(self) -> tuple[Layer, ...]:
        """The layers of both branches."""
        return self.body + self.shortcut

    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of both branches."""
        return chain_parameters(self.inner)

    def output_shape(self, shape: Shape) -> Shape:
        """The branches' common output shape."""
        body, shortcut = chain_shape(self.body, shape), chain_shape(self.shortcut, shape)
        if body != shortcut:
            raise InputError(f"Residual: branches must agree, got {body} and {shortcut}; adapt the shortcut")
        return body

    def expand(self, planner: Planner, x: Value) -> Value:
        """Both branches and their sum."""
        return planner.residual(self.body, self.shortcut, x)
