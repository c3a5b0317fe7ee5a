"""A team: several members of one architecture, each with sub-networks, and all their parameters in one w.

A sub-network of a member shares the member's weights. Its normalisations have statistics of their own, and
scale and shift of their own unless the team shares them.

Source: mathematics.md §15.1, §15.2. Reconstructed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from refimpl.nn.layers import Normalisation
from refimpl.nn.layout import Layout, Parameter
from refimpl.nn.network import Network
from refimpl.nn.norms import calibrate, frozen
from refimpl.nn.plan import every_layer

LEADER = "leader"


class Part(NamedTuple):
    """A sub-network.

    member: the name of the member whose weights it shares; depth: how many blocks of each stage it has.
    """

    member: str
    depth: int


@dataclass(frozen=True)
class Team:
    """The members that `parts` name, each a copy of `network` at the depths that its parts name.

    own_norms: whether scale and shift of normalisations belong to a depth, and not to all of a member.
    leader: the Leader's network, if it is another one (Teammates with gates have a Leader without).
    """

    network: Network
    parts: tuple[Part, ...]
    own_norms: bool = True
    leader: Network | None = None

    @cached_property
    def layout(self) -> Layout:
        """Where everything lies in w: names are `<member>.<name>`, those of a lesser depth `...depth1...`."""
        found = {parameter.name: parameter for part in self.parts for parameter in self._parameters(part)}
        return Layout(found.values())

    def _whole(self, part: Part) -> Network:
        """The member's network at the full depth."""
        return self.leader if self.leader and part.member == LEADER else self.network

    @cached_property
    def _norms(self) -> frozenset[str]:
        """The parameters of normalisations, by their names in the network."""
        norms = [one for one in every_layer(self.network.layers) if isinstance(one, Normalisation)]
        return frozenset(parameter.name for norm in norms for parameter in norm.parameters())

    def _parameters(self, part: Part) -> Iterator[Parameter]:
        """What the sub-network declares when it is at rest, under its names in the team."""
        for slot in self.at_rest(part).layout.slots:
            yield replace(slot.parameter, name=self._name(part, slot.parameter))

    def _name(self, part: Part, parameter: Parameter) -> str:
        name = parameter.name
        own = parameter.part == "stats" or (self.own_norms and name in self._norms)
        if own and part.depth < self._whole(part).depth:
            layer, kind = name.rsplit(".", 1)
            name = f"{layer}.depth{part.depth}.{kind}"
        return f"{part.member}.{name}"

    def training(self, part: Part) -> Network:
        """The sub-network as it is trained: its normalisations take the statistics of the batch."""
        return self._whole(part).at_depth(part.depth)

    def at_rest(self, part: Part) -> Network:
        """The sub-network as it is used: its normalisations have the statistics that `calibrated` sets."""
        return frozen(self.training(part))

    @cached_property
    def _entries(self) -> dict[tuple[Part, bool], np.ndarray]:
        return {
            (part, rests): self.layout.entries(
                self._name(part, slot.parameter)
                for slot in (self.at_rest(part) if rests else self.training(part)).layout.slots
            )
            for part in self.parts
            for rests in (False, True)
        }

    def entries(self, part: Part, at_rest: bool = False) -> np.ndarray:
        """Where the sub-network's parameters lie in w: `w[entries]` are those of `training` or `at_rest`."""
        return self._entries[part, at_rest]

    @property
    def normalises_gated(self) -> bool:
        """Whether some statistics are at rest even in training: those under a gate."""
        layouts = (self.training(part).layout for part in self.parts)
        return any(layout.stats.start < layout.size for layout in layouts)

    def calibrated(self, w: np.ndarray, x: np.ndarray) -> np.ndarray:
        """A copy of w (d,) in which each sub-network has the statistics of the samples x (n, ...)."""
        found = w.copy()
        for part in self.parts:
            where = self.entries(part, at_rest=True)
            found[where] = calibrate(self.at_rest(part), found[where], x)
        return found
