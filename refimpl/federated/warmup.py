"""Compile what training, adaptation and evaluation need, by doing a little of each.

Numba compiles a function for each combination of types and keeps the machine code on disk; so one step on a
small network in each floating-point type is enough for networks of all sizes.

Where nothing has been kept and a second core is free, another process compiles the layers of convolutional
networks, and this one loads them from the disk. Nothing depends on the other process: what it has not left on
the disk is compiled here.

Operations that networks without them do not need, such as normalisation, are compiled when a program first
runs them (`kernels/jit.py`, large kernels).

Source: mathematics.md §4, §6 (what is computed once). Derived.
"""

from __future__ import annotations

import sys

import numpy as np

from refimpl.federated.adapt import AdaptSettings, report_node
from refimpl.federated.local import LocalSettings
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.rounds import Participation, run_rounds
from refimpl.kernels import activation, compiling, conv, loss, pool, program, sample_lanes
from refimpl.kernels.arrays import ALL_ON, INTS
from refimpl.kernels.target import VECTOR_BYTES
from refimpl.nn import zoo
from refimpl.nn.distillation import check_soft_targets
from refimpl.nn.network import Network
from refimpl.nn.task import NetworkTask
from refimpl.optim import accel, prox
from refimpl.registry import PENALTIES
from refimpl.rng import SeedTree

ONE, NONE, TWO = (1, 1), (0, 0), (2, 2)  # strides, paddings and windows


def warm_up(dtype: str = "float32", threads: int | None = None) -> None:
    """Compile the usual for numbers of `dtype`; threads: 1 for no second process (None: all cores)."""
    if compiling.may_share(threads) and not compiling.is_kept(program.descend, w=dtype):
        with compiling.beside(__name__, dtype):
            fully_connected(dtype)
    everything(dtype)


def warm_up_options(dtype: str = "float32") -> None:
    """Compile what only some options need, so that runs with the usual options do not wait for it."""
    v = np.ones(3, dtype)
    usual = {name: key.default for name, key in PENALTIES.keys().items()}
    for penalty in PENALTIES:
        PENALTIES.make(penalty, usual, groups=prox.Groups.from_sizes([v.size])).prox(v, 1.0, v)


def single_layers(dtype: str) -> None:
    """Layers of convolutional networks and the loss, those first that the first process needs first."""
    image, pixel = np.ones((1, 1, 2, 2), dtype), np.ones((1, 1, 1, 1), dtype)
    map_, matrix, vector_ = (np.ones((1,) * axes, dtype) for axes in (3, 2, 1))
    zero, soft = np.zeros(1, np.int64), check_soft_targets("warm-up", None, 1, 1, dtype)
    loss.add_losses(0.0, matrix, zero, soft, zero, 1, matrix)
    activation.relu_forward(map_, ALL_ON, map_)  # the kernel of the backward pass is in it
    activation.sigmoid_scaled(matrix, 1.0, matrix, matrix)
    activation.channel_products(map_, map_, matrix)
    conv.weight_grad(image, image, ONE, NONE, pixel, vector_)
    conv.forward(image, pixel, vector_, ONE, NONE)  # the same kernel has its input gradient
    _many_samples(dtype)
    _behind_pooling(dtype)
    where = np.zeros((1, 1, 1, 1), INTS)  # of the largest number of a window
    pool.max_forward(image, TWO, TWO, NONE, ALL_ON, pixel, where)
    pool.max_backward(pixel, where, TWO, TWO, NONE, ALL_ON, image)
    activation.channel_means(map_, ALL_ON, matrix)
    loss.softmax_cross_entropy(matrix, zero, matrix)


def fully_connected(dtype: str) -> None:
    """What `everything` does, with a network that has no convolutions."""
    x, y = _samples(dtype)
    _round(zoo.mlp((64, 2, 10), ("fc1",)), x.reshape(len(x), -1), y)


def everything(dtype: str) -> None:
    """One round of MetaGater and one adaptation of a small gated CNN."""
    _round(zoo.digits((2, 2)), *_samples(dtype))
    _many_samples(dtype)
    _behind_pooling(dtype)


def _many_samples(dtype: str) -> None:
    """A convolution of so many samples that they are the lanes of vectors (`sample_lanes`)."""
    x = np.ones((sample_lanes.MOST_VECTORS * VECTOR_BYTES, 1, 2, 2), dtype)
    conv.forward(x, np.ones((1, 1, 3, 3), dtype), np.ones(1, dtype), ONE, ONE)


def _behind_pooling(dtype: str) -> None:
    """The gradients of a convolution where most of dy is zero (`few_slopes`)."""
    channels = 2 * VECTOR_BYTES // np.dtype(dtype).itemsize
    x, weight = np.ones((1, channels, 2, 2), dtype), np.ones((1, channels, 3, 3), dtype)
    dy, moves = np.zeros((1, 1, 2, 2), dtype), (ONE, ONE)
    conv.weight_grad(x, dy, *moves, weight, np.zeros(1, dtype))
    conv.input_grad(dy, weight, *moves, (2, 2))


def _round(network: Network, x: np.ndarray, y: np.ndarray) -> None:
    """One round of MetaGater and one adaptation."""
    method = MetaGater(LocalSettings(1.0, 0.1, 2), accel.GhadimiLan(0.5), _penalty(network))
    w = network.layout.initialise(SeedTree(0), x.dtype.name)
    tasks = [NetworkTask(network, x, y, batch_size=2)]
    for state, _ in run_rounds(method, tasks, method.start(w), range(1, 2), Participation(), SeedTree(0)):
        report_node("", network, method.model(state), (x, y), (x, y), AdaptSettings(0.1, 0.1))


def _samples(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Four images and their labels."""
    x = np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(dtype)
    return x, np.array([0, 1, 0, 1])


def _penalty(network: Network) -> prox.Separable:
    """The group Lasso on the network's gates."""
    phi = network.layout.phi
    groups = prox.Groups(*network.gate_groups, size=phi.stop - phi.start)
    return prox.Separable(((phi, prox.GroupLasso(groups, 0.01)),))


if __name__ == "__main__":  # the other process
    compiling.tell_names(lambda: single_layers(sys.argv[1]))
