"""Whole programs to be timed, described by plain numbers: a round of MetaGater, an adaptation, an inference.

A program's data, starting point and mini-batches are arrays, so that any framework can compute the same
thing; `endtoend` runs them with this package.

Gates have a chosen share of channels closed: A2 is zero, so that the decision is the same for every
input, and b2 is (-1, +1) for open channels, (+1, -1) for closed ones. (Pruned networks have (0, 0) for
closed; the margin keeps a channel closed while phi is trained for a few steps.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refimpl.contracts import Penalty
from refimpl.nn import zoo
from refimpl.nn.network import Network
from refimpl.nn.task import draw_batches
from refimpl.optim import prox
from refimpl.rng import SeedTree
from refimpl.shares import nearest

SEED = 0
RHO = 0.01


@dataclass(frozen=True)
class Model:
    """A model of the zoo by name, the layers that carry gates, the share of channels off."""

    kind: str
    gates: tuple[str, ...] = ()
    off: float = 0.0

    @cached_property
    def network(self) -> Network:
        """The network itself."""
        return zoo.network(self.kind, self.gates)

    @property
    def label(self) -> str:
        """The name in tables: `cnn3`, `cnn3, conv3 75% off`."""
        return f"{self.kind}, {'+'.join(self.gates)} {self.off:.0%} off" if self.gates else self.kind

    def parameters(self, dtype: str = "float32") -> np.ndarray:
        """The initial vector, with constant gates that close a random share `off` of their channels."""
        w = self.network.layout.initialise(SeedTree(SEED), dtype)
        views, rng = self.network.layout.views(w), np.random.default_rng(SEED)
        for block in self.network.gates:
            name, channels = block.gate.name, block.gate.out_channels
            views[f"{name}.fc2.weight"][:] = 0
            closed = rng.permutation(channels) < nearest(self.off, channels)
            views[f"{name}.fc2.bias"][0::2] = np.where(closed, 1, -1)
            views[f"{name}.fc2.bias"][1::2] = np.where(closed, -1, 1)
        return w

    def samples(self, count: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        """Random images (count, *input_shape) and labels (count,)."""
        rng = np.random.default_rng(SEED + 1)
        x = rng.standard_normal((count, *self.network.input_shape), dtype=np.float32).astype(dtype)
        return x, rng.integers(0, self.network.classes, count)


@dataclass(frozen=True)
class Round:
    """One round: `nodes` nodes take `steps` steps on batches of `batch` samples; then the server steps.

    train: trained parts, ("theta",) leaves the gates fixed. The numbers lam, eta, beta are those of
    mathematics.md §3-4; the penalty is a group lasso on the gates.
    """

    model: Model
    nodes: int
    steps: int
    batch: int
    train: tuple[str, ...] = ("theta", "phi")
    samples: int = 60  # of each node
    lam: float = 1.0
    eta: float = 0.05
    beta: float = 0.5

    @property
    def label(self) -> str:
        """The name in tables."""
        fixed = ", phi fixed" if self.model.gates and "phi" not in self.train else ""
        return f"round {self.model.label}{fixed}, {self.nodes} nodes x {self.steps} steps x {self.batch}"

    @property
    def full(self) -> bool:
        """Whether a step is one on all samples of a node, so that no mini-batch has to be gathered."""
        return self.batch == self.samples

    def data(self, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
        """x (nodes, samples, *input_shape), y (nodes, samples)."""
        x, y = self.model.samples(self.nodes * self.samples, dtype)
        return x.reshape(self.nodes, self.samples, *x.shape[1:]), y.reshape(self.nodes, self.samples)

    def batches(self) -> np.ndarray:
        """The mini-batches that round 1 draws: indices (nodes, steps, batch)."""
        streams = (SeedTree(SEED).generator("local", 1, node) for node in range(self.nodes))
        return np.stack([draw_batches(rng, self.samples, self.batch, self.steps) for rng in streams])

    @property
    def penalty(self) -> Penalty:
        """The penalty h: a group lasso on the gates, or nothing without gates."""
        network, phi = self.model.network, self.model.network.layout.phi
        if not network.gates:
            return prox.Zero()
        groups = prox.Groups(*network.gate_groups, size=phi.stop - phi.start)
        return prox.Separable(((phi, prox.GroupLasso(groups, RHO)),))


@dataclass(frozen=True)
class Adaptation:
    """Both stages at one target node: a gradient step on phi, then one on theta, on `support` samples."""

    model: Model
    support: int = 40
    eta: float = 0.05

    @property
    def label(self) -> str:
        """The name in tables."""
        return f"adaptation {self.model.label}, {self.support} samples"


@dataclass(frozen=True)
class Inference:
    """Logits of one batch."""

    model: Model
    batch: int

    @property
    def label(self) -> str:
        """The name in tables."""
        return f"inference {self.model.label}, batch {self.batch}"


Program = Round | Adaptation | Inference

MLP_ROUND = Round(Model("mlp"), nodes=5, steps=20, batch=20)
FULL_ROUND = Round(Model("mlp"), nodes=5, steps=1, batch=1875, samples=1875)  # of the paper's protocol


def cnn3_round(steps: int, off: float | None, train: tuple[str, ...] = ("theta", "phi")) -> Round:
    """20 nodes on CIFAR shapes; off: share of conv 3's channels closed, None for no gates at all."""
    model = Model("cnn3") if off is None else Model("cnn3", ("conv3",), off)
    return Round(model, nodes=20, steps=steps, batch=20, train=train)
