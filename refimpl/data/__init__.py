"""Readers, the embedded digits, and the partition of a data set into nodes.

`load(name)` gives a `DataSet`, also of your own FILE.npz, `make_nodes(dataset, two_class(), seed)` its
(training, target) nodes; `Node.split` makes a node of anyone's own arrays.
"""

from refimpl.data.catalog import load
from refimpl.data.dataset import DataSet
from refimpl.data.episodes import episode
from refimpl.data.node import Node, Samples
from refimpl.data.partition import Partition, dirichlet, iid, make_nodes, some_classes, two_class

__all__ = [
    "DataSet",
    "Node",
    "Partition",
    "Samples",
    "dirichlet",
    "episode",
    "iid",
    "load",
    "make_nodes",
    "some_classes",
    "two_class",
]
