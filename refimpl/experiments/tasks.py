"""The learning problems of nodes that have a network in common; nothing is kept for a node but its samples.

Source: mathematics.md §3 (L_i of node i).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from refimpl.data.node import Node
from refimpl.nn.task import NetworkTask


@dataclass(frozen=True)
class NodeTasks(Sequence[NetworkTask]):
    """The learning problem of each node's training samples, made when it is asked for.

    nodes: whose samples they are; first: the problem of the first node, which the others are like.
    """

    nodes: Sequence[Node]
    first: NetworkTask

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, number: Any) -> Any:
        return self.first.on(*self.nodes[number].train)
