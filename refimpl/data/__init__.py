"""Read data sets, among them the embedded digits, and deal their samples to nodes.

`load(name)` gives a `DataSet`, also from your own FILE.npz; `make_nodes(dataset, Partition(Classes(2)),
seed)` makes its (training, target) nodes; `Node.split` makes a node from your own arrays.
"""

from refimpl.data.catalog import load
from refimpl.data.dataset import DataSet
from refimpl.data.deal import Classes, Dirichlet, Iid
from refimpl.data.episodes import Episodes, class_split
from refimpl.data.node import Node, Samples
from refimpl.data.partition import Partition, make_nodes

__all__ = [
    "Classes",
    "DataSet",
    "Dirichlet",
    "Episodes",
    "Iid",
    "Node",
    "Partition",
    "Samples",
    "class_split",
    "load",
    "make_nodes",
]
