"""Compile what training, adaptation and evaluation need, by doing a little of each.

Numba compiles a function for each combination of types and keeps the machine code on disk; so one step on a
small network in each floating-point type is enough for networks of all sizes.

Where nothing has been kept and a second core is free, another process compiles the backward passes of single
layers, and this one loads them from the disk. Nothing depends on the other process: what it has not left on
the disk is compiled here.

Source: mathematics.md §4, §6 (what is computed once). Derived.
"""

from __future__ import annotations

import sys

import numpy as np

from refimpl.federated.adapt import AdaptSettings, report_node
from refimpl.federated.local import LocalSettings
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.rounds import Participation, run_rounds
from refimpl.kernels import activation, compiling, conv, linear, loss, norm, pool, program, vector
from refimpl.kernels.arrays import ALL_ON, INTS
from refimpl.nn import zoo
from refimpl.nn.distillation import check_soft_targets
from refimpl.nn.network import Network
from refimpl.nn.predict import predict
from refimpl.nn.task import NetworkTask, draw_batches
from refimpl.optim import accel, prox
from refimpl.registry import PENALTIES
from refimpl.rng import SeedTree

ONE, NONE, TWO = (1, 1), (0, 0), (2, 2)  # strides, paddings and windows


def warm_up(dtype: str = "float32", threads: int | None = None) -> None:
    """Compile everything for numbers of `dtype`; threads: 1 for no second process (None: all cores)."""
    if compiling.may_share(threads) and not compiling.is_kept(program.descend, w=dtype):
        with compiling.beside(__name__, dtype):
            forward(dtype)
            prediction(dtype)
    everything(dtype)


def warm_up_options(dtype: str = "float32") -> None:
    """Compile what only some options need, so that runs with the usual options do not wait for it."""
    v = np.ones(3, dtype)
    usual = {name: key.default for name, key in PENALTIES.keys().items()}
    for penalty in PENALTIES:
        PENALTIES.make(penalty, usual, groups=prox.Groups.from_sizes([v.size])).prox(v, 1.0, v)


def forward(dtype: str) -> None:
    """The layers' forward passes, with those activations that only some networks have."""
    small = _Small(dtype)
    conv.forward(small.image, small.pixel, small.vector, ONE, NONE)  # the same kernel has its input gradient
    linear.forward(small.matrix, small.matrix, small.vector)
    pool.max_forward(small.image, TWO, TWO, NONE, ALL_ON, small.pixel, small.where)
    pool.average_forward(small.image, TWO, TWO, NONE, ALL_ON, small.pixel)
    for apply in (activation.relu_forward, activation.softplus_forward, activation.tanh_forward):
        apply(small.map, ALL_ON, small.map)
    activation.leaky_forward(small.map, 0.1, ALL_ON, small.map)
    norm.batch_norm_forward(*small.affine, 1.0, small.map, small.wide[0], small.map)
    norm.group_norm_forward(*small.affine, 1.0, small.map, small.wide, small.map)
    norm.frozen_norm_forward(*small.affine, *small.statistics, 1.0, ALL_ON, small.map)
    activation.channel_means(small.map, ALL_ON, small.matrix)
    activation.sigmoid_scaled(small.matrix, 1.0, small.matrix, small.matrix)


def backward(dtype: str) -> None:
    """The layers' backward passes, and the loss."""
    small = _Small(dtype)
    conv.weight_grad(small.image, small.image, ONE, NONE, small.pixel, small.vector)
    linear.weight_grad(small.matrix, small.matrix, small.matrix.copy(), small.vector)
    linear.input_grad(small.matrix, small.matrix)
    pool.max_backward(small.pixel, small.where, TWO, TWO, NONE, ALL_ON, small.image)
    pool.average_backward(small.pixel, TWO, TWO, NONE, ALL_ON, small.image)
    for derive in (activation.relu_backward, activation.softplus_backward, activation.tanh_backward):
        derive(small.map, small.map, ALL_ON, small.map)
    activation.leaky_backward(small.map, small.map, 0.1, ALL_ON, small.map)
    gradients = (np.ones(1, dtype), np.ones(1, dtype), small.map)
    norm.batch_norm_backward(small.map, small.map, small.wide[0], small.vector, *gradients)
    norm.group_norm_backward(small.map, small.map, small.wide, small.vector, False, *gradients)
    norm.frozen_norm_backward(
        small.map, small.map, small.vector, *small.statistics, 1.0, ALL_ON, False, *gradients
    )
    activation.channel_products(small.map, small.map, small.matrix)
    zero, soft = np.zeros(1, np.int64), check_soft_targets("warm-up", None, 1, 1, dtype)
    loss.softmax_cross_entropy(small.matrix, zero, small.matrix)
    loss.add_losses(0.0, small.matrix, zero, soft, zero, 1, small.matrix)


class _Small:
    """What single layers are run on: of one sample, and mostly of one number."""

    def __init__(self, dtype: str) -> None:
        self.image, self.pixel = np.ones((1, 1, 2, 2), dtype), np.ones((1, 1, 1, 1), dtype)
        self.map, self.matrix, self.vector = (np.ones((1,) * axes, dtype) for axes in (3, 2, 1))
        self.where = np.zeros((1, 1, 1, 1), INTS)  # of the largest number of a window
        self.affine, self.statistics = (self.map, self.vector, self.vector), (self.vector, self.vector)
        self.wide = np.ones((1, 1))


def prediction(dtype: str) -> None:
    """A prediction; and what a round does besides descents: drawing batches, the proximal step, a mean."""
    network, x, _ = _gated(dtype)
    w = network.layout.initialise(SeedTree(0), dtype)
    predict(network, w, x)
    draw_batches(np.random.default_rng(0), 4, 2, 1)
    _penalty(network).prox(w, 1.0, w.copy())
    vector.mean_of_rows(w[None], np.ones(1), np.empty(w.size))  # in double, as rounds add up


def everything(dtype: str) -> None:
    """One round of MetaGater and one adaptation of a small gated CNN."""
    network, x, y = _gated(dtype)
    method = MetaGater(LocalSettings(1.0, 0.1, 1), accel.GhadimiLan(0.5), _penalty(network))
    w = network.layout.initialise(SeedTree(0), dtype)
    tasks = [NetworkTask(network, x, y, batch_size=2)]
    for state, _ in run_rounds(method, tasks, method.start(w), range(1, 2), Participation(), SeedTree(0)):
        report_node("", network, method.model(state), (x, y), (x, y), AdaptSettings(0.1, 0.1))


def _gated(dtype: str) -> tuple[Network, np.ndarray, np.ndarray]:
    """A small network with a gate, four samples for it and their labels."""
    x = np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(dtype)
    return zoo.digits((2, 2)), x, np.array([0, 1, 0, 1])


def _penalty(network: Network) -> prox.Separable:
    """The group Lasso on the network's gates."""
    phi = network.layout.phi
    groups = prox.Groups(*network.gate_groups, size=phi.stop - phi.start)
    return prox.Separable(((phi, prox.GroupLasso(groups, 0.01)),))


if __name__ == "__main__":  # the other process
    compiling.tell_names(lambda: backward(sys.argv[1]))
