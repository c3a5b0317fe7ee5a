"""Read data sets, among them the embedded digits, and deal their samples to nodes.

`load(name)` gives a `DataSet`, also from your own FILE.npz; `make_nodes(dataset, two_class(), seed)` makes
its (training, target) nodes; `Node.split` makes a node from your own arrays.
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
